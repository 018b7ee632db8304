"""bitsandbytes' own dequantization, on the CPU, is the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.checkpoint.folder import open_folder
from convkit.errors import ModelError, UnsupportedError
from tests.checkpoint.tiny_language_models import folder_of, gpt2, in_torch, llama, transformers

torch = pytest.importorskip("torch", reason="PyTorch makes the files")
bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes quantizes")

FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
EIGHT_BITS = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def four_bit_parts(name: str, weight: Any, **how: Any) -> tuple[dict[str, Any], Any]:
    """The tensors of a 4-bit weight as checkpoints have them, and what they stand for."""
    packed, state = bnb.functional.quantize_4bit(weight, **how)
    parts = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    # As one row: the CPU kernel of 0.50.2 is wrong where a row ends in the middle of a block.
    state.shape = torch.Size((1, weight.numel()))
    want = bnb.functional.dequantize_4bit(packed, state).reshape(weight.shape)
    return {name: packed, **parts}, want


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("is_nested", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "block", "storage"),
    [((40, 96), 64, torch.uint8), ((8, 33), 64, torch.uint8), ((300, 130), 128, torch.bfloat16)],
    ids=["even", "odd", "in words"],
)
def test_4_bits_are_what_bitsandbytes_makes_of_them_bit_for_bit(
    tmp_path: Path, kind: str, is_nested: bool, dtype: Any, shape: Any, block: int, storage: Any
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    parts, want = four_bit_parts(
        "a.weight",
        weight,
        quant_type=kind,
        compress_statistics=is_nested,
        blocksize=block,
        quant_storage=storage,
    )
    path = folder_of(tmp_path, parts, {"quantization_config": FOUR_BITS})
    with open_folder(path) as checkpoint:
        assert list(checkpoint.tensors) == ["a.weight"]
        rows = checkpoint.tensors["a.weight"]
        assert (rows.shape, want.dtype) == (shape, dtype)
        assert torch.equal(in_torch(rows), want)
        np.testing.assert_array_equal(rows.read(3, 6), want[3:6].float().numpy())


def test_8_bits_are_what_bitsandbytes_makes_of_them_bit_for_bit(tmp_path: Path) -> None:
    weight = torch.randn(50, 96, dtype=torch.float16)
    integers, scales, _ = bnb.functional.int8_vectorwise_quant(weight)
    want = bnb.functional.int8_vectorwise_dequant(integers, scales)
    parts = {
        "a.weight": integers,
        "a.SCB": scales,
        "a.weight_format": torch.tensor(0, dtype=torch.uint8),
        "a.bias": torch.ones(50),
    }
    path = folder_of(tmp_path, parts, {"quantization_config": EIGHT_BITS})
    with open_folder(path) as checkpoint:
        assert set(checkpoint.tensors) == {"a.weight", "a.bias"}
        rows = checkpoint.tensors["a.weight"]
        assert torch.equal(in_torch(rows), want)
        np.testing.assert_array_equal(rows.read(7, 9), want[7:9].numpy())
        assert checkpoint.quantization == ("LLM.int8 by bitsandbytes; dequantized while it is read")


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_that_transformers_quantized_and_saved_has_its_own_names_and_shapes(
    tmp_path: Path, make: Any, bits: int
) -> None:
    network = make()
    network.save_pretrained(tmp_path / "base")
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    quantized = type(network).from_pretrained(
        tmp_path / "base", quantization_config=how, device_map="cpu", dtype=torch.float32
    )
    quantized.save_pretrained(tmp_path / "m")
    with open_folder(tmp_path / "m") as checkpoint:
        state = network.state_dict()
        tied = set(state) - set(checkpoint.tensors)
        assert tied <= {"lm_head.weight"}
        assert not checkpoint.other
        for name, rows in checkpoint.tensors.items():
            assert rows.shape == tuple(state[name].shape), name
            # A weight of 0.15 is quantized with a step of at most 0.15 (of 16 codes for +-0.6).
            assert (in_torch(rows) - state[name]).abs().max() < 0.1, name


def without(name: str) -> Any:
    return lambda parts: parts.pop(name)


def shorter(name: str) -> Any:
    return lambda parts: parts.update({name: parts[name][:-1]})


def other_kind(parts: dict[str, Any]) -> None:
    key = "a.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(parts[key].tolist()))
    text = json.dumps({**state, "quant_type": "nf5"}).encode()
    parts[key] = torch.tensor(list(text), dtype=torch.uint8)


def no_json(parts: dict[str, Any]) -> None:
    parts["a.weight.quant_state.bitsandbytes__nf4"] = torch.zeros(3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (without("a.weight.absmax"), ModelError, r"'a.weight.absmax' is missing"),
        (shorter("a.weight.absmax"), ModelError, "do not fit each other"),
        (shorter("a.weight"), ModelError, "do not fit each other"),
        (other_kind, UnsupportedError, "unknown way: nf5"),
        (no_json, ModelError, "settings of the quantized tensor 'a.weight' are damaged"),
    ],
)
def test_damaged_4_bit_weights_are_refused(
    tmp_path: Path, damage: Any, error: type[ModelError], words: str
) -> None:
    parts, _ = four_bit_parts("a.weight", torch.randn(8, 64), quant_type="nf4")
    damage(parts)
    with pytest.raises(error, match=words):
        open_folder(folder_of(tmp_path, parts, {"quantization_config": FOUR_BITS}))


def test_quantized_weights_without_a_word_in_the_configuration_are_refused(tmp_path: Path) -> None:
    parts, _ = four_bit_parts("a.weight", torch.randn(8, 64), quant_type="nf4")
    with pytest.raises(ModelError, match="has no quantization_config"):
        open_folder(folder_of(tmp_path, parts))
