"""What torch-q4 makes of Hugging Face folders; transformers and bitsandbytes judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bitsandbytes_judge import (
    SIZES,
    assert_same,
    assert_same_tensors,
    in_memory,
    loaded,
    quantize,
    saved,
)

import convkit
from convkit.checkpoint.folder import open_folder
from convkit.errors import ConvkitError, ModelError, NoRouteError, UnsupportedError, UsageError
from convkit.passes.torch_q4 import torch_q4
from tests.language_folders import llama_file, llama_folder

torch = pytest.importorskip("torch", reason="PyTorch runs the networks")

TOKENS = {"input_ids": torch.arange(3, 15)[None]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("is_nested", [False, True], ids=["once", "twice"])
def test_a_folder_loads_as_the_network_that_bitsandbytes_quantizes_in_memory(
    tmp_path: Path, dtype: str, scheme: str, is_nested: bool
) -> None:
    folder = saved(tmp_path / "m", "LlamaForCausalLM", dtype, **SIZES)
    notes = quantize(torch_q4, folder, tmp_path / "q", scheme=scheme, double_quant=is_nested)
    theirs = in_memory(
        folder,
        load_in_4bit=True,
        bnb_4bit_quant_type=scheme,
        bnb_4bit_use_double_quant=is_nested,
    )
    assert_same(loaded(tmp_path / "q"), theirs, TOKENS)
    assert notes == [f"14 linear layers quantized to {scheme.upper()}; left as they are: lm_head"]
    assert (tmp_path / "q/notes.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("GPT2LMHeadModel", {"n_layer": 2, "n_embd": 128, "n_head": 4, "vocab_size": 100}),
        ("LlamaForCausalLM", {**SIZES, "tie_word_embeddings": True}),
    ],
)
def test_turned_weights_and_tied_ones_are_quantized_as_in_memory(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    folder = saved(tmp_path / "m", kind, **changes)
    quantize(torch_q4, folder, tmp_path / "q")
    theirs = in_memory(folder, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    assert_same(loaded(tmp_path / "q"), theirs, TOKENS)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("LlamaForCausalLM", {**SIZES, "hidden_size": 96, "intermediate_size": 200}),
        ("BertForSequenceClassification", SIZES),
    ],
)
def test_tensors_are_those_of_bitsandbytes_where_its_kernels_for_cpus_fail(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    folder = saved(tmp_path / "m", kind, **changes)
    notes = quantize(torch_q4, folder, tmp_path / "q", double_quant=True)
    theirs = in_memory(
        folder, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    assert_same_tensors(loaded(tmp_path / "q").state_dict(), theirs.state_dict())
    assert any("no whole blocks of 64" in note for note in notes) == (kind == "LlamaForCausalLM")


def test_layers_to_skip_stay_as_they_are_and_are_loaded_so(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "LlamaForCausalLM", **SIZES)
    notes = quantize(torch_q4, folder, tmp_path / "q", skip="model.layers.1, down_proj")
    names = ["lm_head", "model.layers.1", "down_proj"]
    theirs = in_memory(
        folder, load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=names
    )
    assert_same(loaded(tmp_path / "q"), theirs, TOKENS)
    assert notes[0].startswith("6 linear layers quantized")
    with pytest.raises(UsageError, match="No linear layer is called 'q_prj'"):
        quantize(torch_q4, folder, tmp_path / "r", skip="q_prj")


def test_other_block_sizes_are_in_every_tensor_and_loaded_from_there(tmp_path: Path) -> None:
    folder = saved(
        tmp_path / "m",
        "LlamaForCausalLM",
        **{**SIZES, "hidden_size": 256, "intermediate_size": 512},
    )
    quantize(torch_q4, folder, tmp_path / "q", block_size=256)
    network = loaded(tmp_path / "q")
    weight = network.model.layers[0].self_attn.q_proj.weight
    assert weight.quant_state.blocksize == 256
    with torch.inference_mode():
        assert network(**TOKENS).logits.isfinite().all()
    with pytest.raises(UsageError, match="block of 100"):
        quantize(torch_q4, folder, tmp_path / "r", block_size=100)


def test_pickled_shards_become_a_folder_that_loads_the_same(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "LlamaForCausalLM", **SIZES)
    theirs = in_memory(folder, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for number, some in enumerate((names[:9], names[9:]), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in some}, folder / file)
        places |= dict.fromkeys(some, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    quantize(torch_q4, folder, tmp_path / "q")
    assert_same(loaded(tmp_path / "q"), theirs, TOKENS)


def test_large_folders_are_written_in_shards_with_the_parts_of_a_weight_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "m", "LlamaForCausalLM", **SIZES)
    from convkit.checkpoint.writing import FolderModel

    monkeypatch.setattr(FolderModel.__init__, "__defaults__", _with(FolderModel, 50_000))
    quantize(torch_q4, folder, tmp_path / "q", double_quant=True)
    places = json.loads((tmp_path / "q/model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(places.values())) > 2
    weight = "model.layers.0.self_attn.q_proj.weight"
    assert len({place for name, place in places.items() if name.startswith(weight)}) == 1
    theirs = in_memory(
        folder,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    assert_same(loaded(tmp_path / "q"), theirs, TOKENS)


def _with(kind: Any, shard_bytes: int) -> tuple[Any, ...]:
    """The defaults of a record's constructor, with smaller shards."""
    from convkit.checkpoint.writing import SHARD_BYTES

    defaults = kind.__init__.__defaults__
    return tuple(shard_bytes if one == SHARD_BYTES else one for one in defaults)


def test_what_was_written_is_read_again_as_what_the_codes_stand_for(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "LlamaForCausalLM", **SIZES)
    quantize(torch_q4, folder, tmp_path / "q", double_quant=True)
    theirs = in_memory(
        folder, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    from bitsandbytes.functional import dequantize_4bit

    name = "model.layers.1.mlp.down_proj"
    weight = theirs.get_submodule(name).weight
    want = dequantize_4bit(weight.data, weight.quant_state)
    with open_folder(tmp_path / "q") as checkpoint:
        got = checkpoint.tensors[f"{name}.weight"].read(0, 128)
    assert torch.equal(torch.from_numpy(got), want)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_no_code_stands_for_are_told_by_name(tmp_path: Path, bad: float) -> None:
    folder = saved(tmp_path / "m", "LlamaForCausalLM", **SIZES)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][7, 3] = bad
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight") as found:
        quantize(torch_q4, folder, tmp_path / "q")
    assert found.value.hint.endswith("--set torch-q4.skip=model.layers.1.mlp.up_proj")


def test_a_language_model_is_quantized_and_judged_by_what_it_predicts(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "m")
    report = convkit.convert(folder, to="torch", precision="q4", out=tmp_path / "q")
    assert report.passed
    assert {"kl", "top1_agreement"} <= {check.metric for check in report.checks}
    with pytest.raises(NoRouteError):
        convkit.convert(tmp_path / "q", to="torch", precision="int8", out=tmp_path / "r")
    shutil.copy(tmp_path / "q/config.json", folder / "config.json")
    with pytest.raises(ConvkitError):
        convkit.convert(folder, to="torch", precision="q4", out=tmp_path / "r", verify=False)


def test_gguf_files_become_quantized_folders_in_one_pass(tmp_path: Path) -> None:
    file = llama_file(tmp_path / "m.gguf")
    report = convkit.convert(file, to="torch", precision="q4", out=tmp_path / "q", verify=False)
    assert [step.name for step in report.steps] == ["gguf-to-torch + torch-q4"]
    convkit.convert(file, to="torch", out=tmp_path / "m", verify=False)
    quantize(torch_q4, tmp_path / "m", tmp_path / "two steps")
    one, two = (tmp_path / name / "model.safetensors" for name in ("q", "two steps"))
    assert one.read_bytes() == two.read_bytes()


def test_networks_that_transformers_does_not_have_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "LlamaForCausalLM", **SIZES)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["NobodysModel"], "model_type": "nobody"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="no network for NobodysModel"):
        quantize(torch_q4, folder, tmp_path / "q")
