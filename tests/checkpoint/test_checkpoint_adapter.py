"""peft is the reference: its own merge, or its unmerged network where the merge ties too much."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.checkpoint.folder import open_folder
from convkit.errors import ConvkitError, ModelError, UnsupportedError
from tests.checkpoint.tiny_language_models import folder_of, gpt2, in_torch, llama, logits

torch = pytest.importorskip("torch", reason="PyTorch makes the files")
peft = pytest.importorskip("peft", reason="peft makes the adapters")

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
NEAR = {"rtol": 0.0, "atol": 2e-6}
"""Sums of at most 128 products of float32 numbers around 1, in another order."""


def adapted(network: Any, **settings: Any) -> Any:
    """A network with an adapter, none of whose tensors is as it was."""
    settings = {"r": 4, "lora_alpha": 12, "task_type": "CAUSAL_LM", **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        made = peft.get_peft_model(copy.deepcopy(network), peft.LoraConfig(**settings)).eval()
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
            elif parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return made


def save(tmp_path: Path, network: Any, made: Any) -> tuple[Path, Path]:
    network.save_pretrained(tmp_path / "base")
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "attention": (llama, {"target_modules": ATTENTION}),
    "all linear": (llama, {"target_modules": "all-linear", "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": [*ATTENTION, "down_proj"],
            "rank_pattern": {"down_proj": 7, "layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {r"layers\.0\..*": 30},
        },
    ),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "whole tensors": (
        llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "turned around": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "biases": (gpt2, {"target_modules": ["c_attn"], "bias": "all"}),
    "own biases": (gpt2, {"target_modules": ["c_attn"], "bias": "lora_only"}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_merged_as_peft_does_it(tmp_path: Path, case: str) -> None:
    make, settings = CASES[case]
    network = make()
    made = adapted(network, **settings)
    base, adapter = save(tmp_path, network, made)
    want = made.merge_and_unload().state_dict()
    before = network.state_dict()
    with open_folder(base, adapter=adapter) as checkpoint:
        assert set(want) - set(checkpoint.tensors) <= {"lm_head.weight"}
        changed = 0
        for name, rows in checkpoint.tensors.items():
            torch.testing.assert_close(in_torch(rows), want[name], **NEAR)
            changed += not torch.equal(want[name], before[name])
            if rows.row_count > 5:
                whole = rows.array().reshape(rows.row_count, -1)
                np.testing.assert_allclose(rows.read(3, 5), whole[3:5], **NEAR)
        assert changed >= 2
        assert checkpoint.notes[0].startswith("adapter adapter merged: ")


def test_an_adapter_as_a_pickle_and_of_half_precision_is_merged_in_float32(tmp_path: Path) -> None:
    network = llama()
    made = adapted(network, target_modules=ATTENTION)
    base, adapter = save(tmp_path, network.bfloat16(), made.bfloat16())
    from safetensors.torch import load_file

    state = load_file(adapter / "adapter_model.safetensors")
    torch.save(state, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    module = "model.layers.1.self_attn.k_proj"
    a, b = (state[f"base_model.model.{module}.lora_{side}.weight"].float() for side in "AB")
    want = network.state_dict()[f"{module}.weight"].float() + 3 * (b @ a)
    with open_folder(base, adapter=adapter) as checkpoint:
        rows = checkpoint.tensors[f"{module}.weight"]
        assert rows.dtype == "F32"
        torch.testing.assert_close(in_torch(rows), want, **NEAR)
        assert checkpoint.tensors["model.norm.weight"].dtype == "BF16"


def test_an_adapter_is_merged_into_quantized_weights(tmp_path: Path) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes quantizes")
    network = llama()
    _, adapter = save(tmp_path, network, made := adapted(network, target_modules=ATTENTION))
    state = network.state_dict()
    for name in [name for name in state if "_proj.weight" in name]:
        packed, how = bnb.functional.quantize_4bit(state[name], quant_type="nf4")
        network.get_parameter(name).data = bnb.functional.dequantize_4bit(packed, how)
        parts = {f"{name}.{key}": value for key, value in how.as_dict(packed=True).items()}
        state |= {name: packed, **parts}
    config = network.config.to_dict()
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    base = folder_of(tmp_path / "nf4", state, config)
    reloaded = peft.PeftModel.from_pretrained(network, adapter).merge_and_unload().state_dict()
    assert made is not network
    with open_folder(base, adapter=adapter) as checkpoint:
        for name, rows in checkpoint.tensors.items():
            torch.testing.assert_close(in_torch(rows), reloaded[name], **NEAR)


@pytest.mark.parametrize("make", [gpt2, lambda: llama(tie_word_embeddings=True)])
@pytest.mark.parametrize("target", ["lm_head", "input", "both"])
def test_tied_embeddings_are_untied_where_the_adapter_makes_them_differ(
    tmp_path: Path, make: Any, target: str
) -> None:
    network = make()
    own = "wte" if hasattr(network, "transformer") else "embed_tokens"
    names = {"lm_head": ["lm_head"], "input": [own], "both": [own, "lm_head"]}[target]
    made = adapted(network, target_modules=names)
    want = logits(made)  # peft's merge would add to both, since they share their numbers
    base, adapter = save(tmp_path, network, made)
    with open_folder(base, adapter=adapter) as checkpoint:
        assert checkpoint.config["tie_word_embeddings"] is False
        assert not checkpoint.aliases
        assert any("were tied" in note for note in checkpoint.notes)
        state = {name: in_torch(rows) for name, rows in checkpoint.tensors.items()}
    plain = type(network)(type(network.config).from_dict(checkpoint.config)).eval()
    plain.load_state_dict(state)
    torch.testing.assert_close(logits(plain), want, rtol=0, atol=2e-5)
    assert (logits(network) - want).abs().max() > 0.1


def test_embeddings_that_grew_and_are_tied_stay_tied(tmp_path: Path) -> None:
    network = llama(tie_word_embeddings=True)
    network.save_pretrained(tmp_path / "base")
    network.resize_token_embeddings(104)
    made = adapted(network, target_modules=["q_proj"])
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with open_folder(tmp_path / "base", adapter=tmp_path / "adapter") as checkpoint:
        assert checkpoint.config["vocab_size"] == 104
        assert checkpoint.config["tie_word_embeddings"] is True
        assert "lm_head.weight" not in checkpoint.tensors
        found = in_torch(checkpoint.tensors["model.embed_tokens.weight"])
        assert torch.equal(found, made.base_model.model.model.embed_tokens.weight)


def test_a_checkpoint_without_the_prefix_of_its_class_takes_the_adapter_too(tmp_path: Path) -> None:
    network = gpt2()  # gpt2 on the hub has `h.0.attn...`, adapters have `transformer.h.0.attn...`
    patterns = {"transformer.h.1.attn.c_attn": 40}
    made = adapted(network, target_modules=["c_attn"], alpha_pattern=patterns)
    base, adapter = save(tmp_path, network, made)
    bare = {name.removeprefix("transformer."): t for name, t in network.state_dict().items()}
    del bare["lm_head.weight"]
    folder = folder_of(tmp_path / "bare", bare, network.config.to_dict())
    with (
        open_folder(base, adapter=adapter) as one,
        open_folder(folder, adapter=adapter) as other,
    ):
        for name, rows in other.tensors.items():
            assert torch.equal(in_torch(rows), in_torch(one.tensors[f"transformer.{name}"]))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    network = llama()
    return save(tmp_path, network, adapted(network, target_modules=["q_proj"]))


def rewrite(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rename(adapter: Path, old: str, new: str | None) -> None:
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    state = load_file(file)
    names = {name: name.replace(old, new) if new else name for name in state}
    kept = {names[name]: t for name, t in state.items() if new or old not in name}
    save_file(kept, file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora): DoRA scales rows"),
        ({"peft_type": "IA3"}, "adapter of type IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed base weights"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(
    pair: tuple[Path, Path], changes: dict[str, Any], words: str
) -> None:
    rewrite(pair[1], **changes)
    with pytest.raises(UnsupportedError) as raised:
        open_folder(pair[0], adapter=pair[1])
    assert words in str(raised.value)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("layers.1.self_attn", "layers.9.self_attn", ModelError, "Nearest is 'model.layers."),
        ("q_proj", "k_proj", ModelError, "does not fit 'model.layers.0.self_attn.k_proj.weight'"),
        ("layers.0.self_attn.q_proj.lora_B", None, ModelError, "lacks one of the two factors"),
        ("lora_B", "lora_magnitude_vector", UnsupportedError, "no factor of a LoRA adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_name(
    pair: tuple[Path, Path], old: str, new: str | None, error: type[ConvkitError], words: str
) -> None:
    rename(pair[1], old, new)
    with pytest.raises(error) as raised:
        open_folder(pair[0], adapter=pair[1])
    assert words in str(raised.value)


def test_an_adapter_whose_rank_contradicts_its_settings_is_refused(pair: tuple[Path, Path]) -> None:
    rewrite(pair[1], r=8)
    with pytest.raises(ModelError, match="have rank 4"):
        open_folder(pair[0], adapter=pair[1])


@pytest.mark.parametrize(
    ("base", "is_doubtful"),
    [("someone/else", True), ("/elsewhere/Base", False), (None, False)],
)
def test_an_adapter_trained_on_something_else_is_told(
    pair: tuple[Path, Path], base: str | None, is_doubtful: bool
) -> None:
    rewrite(pair[1], base_model_name_or_path=base)
    with open_folder(pair[0], adapter=pair[1]) as checkpoint:
        assert any("was trained on" in note for note in checkpoint.notes) == is_doubtful


def test_a_folder_that_is_no_adapter_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no PEFT adapter"):
        open_folder(pair[0], adapter=pair[0])
    with pytest.raises(ModelError, match="There is no such folder"):
        open_folder(pair[0], adapter=tmp_path / "nowhere")
