from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convkit.checkpoint.rows import Held, Rows
from convkit.errors import UnsupportedError
from convkit.families import mapping, pooling
from convkit.families.config import Config
from convkit.families.family import family_of, family_of_architecture
from convkit.ggml.file import GgufFile
from convkit.ggml.model import GgufModel, Output, write
from convkit.ggml.types import TYPES
from tests import material
from tests.families import journey
from tests.families.networks import HALF_GELU, Network

pytest.importorskip("transformers", reason="transformers is the reference")
pytest.importorskip("xllamacpp", reason="llama.cpp computes what was written")

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_QWEN = Network("qwen2_moe", "qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": 64})
_MIXTRAL = Network("mixtral", "mixtral", {"num_local_experts": 4})
_GPT2 = Network("gpt2", "gpt2", limit=HALF_GELU)
_BERT = Network("bert", "bert", cls="BertForMaskedLM", limit=HALF_GELU)


def saved(network: Any, folder: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A network's folder; with `tensors`, in place of those that transformers writes."""
    from safetensors.torch import save_file

    network.save_pretrained(folder)
    if tensors is not None:
        held = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def old_names(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


@pytest.mark.parametrize(
    ("network", "renamed"),
    [
        pytest.param(_MIXTRAL, str, id="Mixtral as transformers 5 holds it"),
        pytest.param(_QWEN, str, id="Qwen's mixture as transformers 5 holds it"),
        pytest.param(_GPT2, lambda n: n.removeprefix("transformer."), id="GPT-2 of 2019"),
        pytest.param(_BERT, old_names, id="BERT of 2018"),
    ],
)
def test_other_names_lead_to_the_same_tensors(
    network: Network, renamed: Callable[[str], str], tmp_path: Path
) -> None:
    built = network.build()
    state = {n: t for n, t in built.state_dict().items() if n != "lm_head.weight" or not (
        built.config.tie_word_embeddings)}  # fmt: skip
    usual = journey.to_gguf(saved(built, tmp_path / "usual"), tmp_path / "usual.gguf")
    other = {renamed(name): tensor for name, tensor in state.items()}
    folder = saved(built, tmp_path / "other", other)
    made = journey.to_gguf(folder, tmp_path / "other.gguf")
    assert made.mapped.tensors.keys() == usual.mapped.tensors.keys()
    assert made.path.read_bytes() == usual.path.read_bytes()


def test_a_gemma3_for_images_is_read_as_its_text_part(tmp_path: Path) -> None:
    import transformers

    text = Network("", "gemma3_text", {"head_dim": 256, "sliding_window": 40})
    built = text.build()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=built.config.to_dict(), vision_config=sizes, mm_tokens_per_image=4
    )
    whole = transformers.Gemma3ForConditionalGeneration(config).eval()
    whole.model.language_model.load_state_dict(built.model.state_dict())
    whole.save_pretrained(tmp_path / "hf")
    document = json.loads((tmp_path / "hf" / "config.json").read_text())
    # As on the hub: what is usual is not said.
    for key in ("head_dim", "rope_parameters", "rms_norm_eps", "query_pre_attn_scalar",
                "layer_types", "tie_word_embeddings"):  # fmt: skip
        del document["text_config"][key]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(document))

    made = journey.to_gguf(tmp_path / "hf", tmp_path / "model.gguf")
    ids = text.ids()
    reference = journey.computed(built, ids)
    assert journey.divergence(reference, made.computed(ids)) < HALF_GELU
    reasons = set(made.mapped.dropped.values())
    assert {name.split(".")[0] for name in made.mapped.dropped} == {
        "vision_tower",
        "multi_modal_projector",
    }
    assert len(reasons) == 1
    assert "sees images" in reasons.pop()


def test_a_window_that_llama_cpp_does_not_have_is_said_and_comes_back(tmp_path: Path) -> None:
    network = Network("", "mistral", {"sliding_window": 40})
    built, ids = network.build(), network.ids()
    made = journey.to_gguf(saved(built, tmp_path / "hf"), tmp_path / "model.gguf")
    reference, there = journey.computed(built, ids), made.computed(ids)
    assert journey.divergence(reference[:40], there[:40]) < network.limit
    assert journey.divergence(reference[60:], there[60:]) > 0.1
    (note,) = made.family.notes(made.config)
    assert "sees the last 40" in note

    config = journey.back(made.path, tmp_path / "back")
    assert config["model_type"] == "mistral"
    assert (journey.computed(journey.loaded(tmp_path / "back"), ids) == reference).all()


def test_how_llama_cpp_chooses_longrope_factors_is_said() -> None:
    rope = {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}
    config = Config(
        {"model_type": "phi3", "original_max_position_embeddings": 2048, "rope_parameters": rope}
    )
    (note,) = family_of(config).notes(config)
    assert "more than 2048 tokens" in note


def test_heads_of_a_bert_are_left_out_with_the_reason(tmp_path: Path) -> None:
    built, ids = _BERT.build(), _BERT.ids()
    made = journey.to_gguf(saved(built, tmp_path / "hf"), tmp_path / "model.gguf")
    assert all(name.startswith("cls.predictions.") for name in made.mapped.dropped)
    assert set(made.mapped.dropped.values()) == {"it is a head for training, behind the embeddings"}
    reference, there = journey.computed(built, ids), made.computed(ids)
    cosine = torch.nn.functional.cosine_similarity(
        torch.from_numpy(reference), torch.from_numpy(there)
    )
    assert cosine.min() > 0.99999


@pytest.mark.parametrize(("mode", "number"), [("mean_tokens", 1), ("cls_token", 2)])
def test_pooling_of_sentence_transformers_goes_there_and_back(
    mode: str, number: int, tmp_path: Path
) -> None:
    built = Network("", "bert", cls="BertModel").build()
    folder = saved(built, tmp_path / "hf")
    kind = "sentence_transformers.models"
    modules = [
        {"idx": 0, "path": "", "type": f"{kind}.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": f"{kind}.Pooling"},
        {"idx": 2, "path": "2_Normalize", "type": f"{kind}.Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    made = journey.to_gguf(folder, tmp_path / "model.gguf")
    journey.back(made.path, tmp_path / "back")
    assert pooling.metadata_of(tmp_path / "back") == {"ARCH.pooling_type": number}

    from convkit.ggml.llama import LlamaModel

    ids = _BERT.ids()
    vectors = journey.computed(built, ids)
    expected = vectors.mean(0) if mode == "mean_tokens" else vectors[0]
    with LlamaModel(made.path, threads=1) as model:
        assert np.abs(model.pooled(ids.tolist()) - expected).max() < 5e-3


def test_embeddings_that_go_through_more_than_pooling_are_refused(tmp_path: Path) -> None:
    modules = [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedError, match="go through Dense"):
        pooling.metadata_of(tmp_path)


def test_pooling_that_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    modules = [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(UnsupportedError, match="cannot pool by max_tokens"):
        pooling.metadata_of(tmp_path)


def test_a_shape_comes_back_though_llama_cpp_leaves_out_leading_ones() -> None:
    of = Config({"model_type": "qwen2_moe", **_EXPERTS, "vocab_size": 10, "hidden_size": 8,
                 "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                 "shared_expert_intermediate_size": 8})  # fmt: skip
    family = family_of(of)
    found: dict[str, Rows] = {
        entry.gguf: Held(np.zeros(entry.shape)) for entry in family.entries(of)
    }
    found["blk.0.ffn_gate_inp_shexp.weight"] = Held(np.arange(8.0))
    gate = mapping.to_torch(family, of, found).tensors[
        "model.layers.0.mlp.shared_expert_gate.weight"
    ]
    assert gate.shape == (1, 8)
    assert (gate.array() == np.arange(8.0)).all()


def test_quantized_matrices_are_unpacked_before_they_are_turned_around(tmp_path: Path) -> None:
    config = Config({"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2})
    matrix = np.random.default_rng(0).normal(size=(96, 32)).astype(np.float32)
    name, source = "blk.0.attn_qkv.weight", "transformer.h.0.attn.c_attn.weight"
    path = tmp_path / "model.gguf"
    write(GgufModel({}, (Output(name, Held(matrix), TYPES["Q8_0"]),)), path)
    (entry,) = (one for one in family_of(config).entries(config) if one.gguf == name)
    with GgufFile(path) as file:
        (turned,) = entry.sources[0].change.to_torch(file.tensors[name])
        assert entry.sources[0].names == (source,)
        assert turned.shape == (32, 96)
        assert (turned.array() == file.tensors[name].array().T).all()


@pytest.mark.slow
def test_minilm_gives_the_same_embeddings(tmp_path: Path) -> None:
    import transformers

    from convkit.ggml.llama import LlamaModel

    folder = material.minilm_folder()
    made = journey.to_gguf(folder, tmp_path / "minilm.gguf")
    assert set(made.mapped.dropped) == {
        "embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"
    }  # fmt: skip
    network = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.randint(1000, 30_000, (256,), generator=torch.manual_seed(0))
    expected = torch.from_numpy(journey.computed(network, ids).mean(0)).double()
    with LlamaModel(made.path, threads=1) as model:
        found = torch.from_numpy(model.pooled(ids.tolist())).double()
    assert torch.nn.functional.cosine_similarity(expected, found, dim=0) > 0.99999


def test_the_configuration_of_smollm2_is_the_published_one() -> None:
    with GgufFile(material.smollm2_file()) as file:
        family = family_of_architecture(file.header.architecture)
        config = family.config(mapping.stored_of(file.header.get, file.tensors))
        mapped = mapping.to_torch(family, Config(config), file.tensors)
    assert (
        config.items()
        >= {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "max_position_embeddings": 8192,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": True,
            "vocab_size": 49152,
        }.items()
    )
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100_000.0}
    assert len(mapped.tensors) == 30 * 9 + 2
