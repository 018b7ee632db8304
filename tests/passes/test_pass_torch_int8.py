"""What torch-int8 makes of Hugging Face folders; transformers and bitsandbytes judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bitsandbytes_judge import SIZES, assert_same, in_memory, loaded, quantize, saved

import convkit
from convkit.checkpoint.folder import open_folder
from convkit.errors import ModelError
from convkit.passes.torch_int8 import torch_int8
from tests.language_folders import llama_folder

torch = pytest.importorskip("torch", reason="PyTorch runs the networks")

TOKENS = {"input_ids": torch.arange(3, 15)[None]}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_folder_loads_as_the_network_that_bitsandbytes_quantizes_in_memory(
    tmp_path: Path, dtype: str
) -> None:
    folder = saved(tmp_path / "m", "LlamaForCausalLM", dtype, **SIZES)
    notes = quantize(torch_int8, folder, tmp_path / "q")
    assert_same(loaded(tmp_path / "q"), in_memory(folder, load_in_8bit=True), TOKENS)
    assert notes == ["14 linear layers quantized to LLM.int8; left as they are: lm_head"]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("GPT2LMHeadModel", {"n_layer": 2, "n_embd": 128, "n_head": 4, "vocab_size": 100}),
        ("BertForSequenceClassification", SIZES),
    ],
)
def test_turned_weights_and_encoders_are_quantized_as_in_memory(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    folder = saved(tmp_path / "m", kind, **changes)
    quantize(torch_int8, folder, tmp_path / "q", threshold=0.0)
    theirs = in_memory(folder, load_in_8bit=True, llm_int8_threshold=0.0)
    assert_same(loaded(tmp_path / "q"), theirs, TOKENS)


def test_what_was_written_is_read_again_as_what_the_integers_stand_for(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "LlamaForCausalLM", **SIZES)
    quantize(torch_int8, folder, tmp_path / "q")
    from bitsandbytes.functional import int8_vectorwise_dequant

    name = "model.layers.0.self_attn.k_proj"
    weight = in_memory(folder, load_in_8bit=True).get_submodule(name).weight
    want = int8_vectorwise_dequant(weight.data, weight.SCB)
    with open_folder(tmp_path / "q") as checkpoint:
        got = checkpoint.tensors[f"{name}.weight"].read(0, len(want))
    assert torch.equal(torch.from_numpy(got), want)


def test_weights_beyond_half_precision_are_told_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "LlamaForCausalLM", **SIZES)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][7, 3] = 1e5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight") as found:
        quantize(torch_int8, folder, tmp_path / "q")
    assert "65504" in found.value.why[0]
    quantize(torch_int8, folder, tmp_path / "r", skip="model.layers.1.mlp.up_proj")
    with torch.inference_mode():
        assert loaded(tmp_path / "r")(**TOKENS).logits.isfinite().all()


def test_a_language_model_is_quantized_and_judged_by_what_it_predicts(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "m")
    report = convkit.convert(folder, to="torch", precision="int8", out=tmp_path / "q")
    assert report.passed
    assert "kl" in {check.metric for check in report.checks}
    again = convkit.convert(tmp_path / "q", to="gguf", out=tmp_path / "q.gguf", verify=False)
    assert again.steps[0].name.startswith("torch-to-gguf")
