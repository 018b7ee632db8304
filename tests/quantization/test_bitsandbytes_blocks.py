"""bitsandbytes' own kernels, on the CPU, are the reference: bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convkit.quantization import bitsandbytes_blocks as blocks

torch = pytest.importorskip("torch", reason="PyTorch holds the weights")
functional: Any = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes quantizes")


def weights(shape: tuple[int, ...], dtype: Any) -> Any:
    """Rows of all magnitudes, one block of zeros, ties between integers."""
    generator = torch.Generator().manual_seed(7)
    made = torch.randn(shape, generator=generator)
    made *= torch.rand(shape[0], 1, generator=generator) ** 6
    made.view(-1)[:64] = 0
    made[-1] = torch.arange(shape[1]) / 256 - 0.25
    return made.to(dtype)


def plain(tensor: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.float().numpy()
    return array


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(40, 96), (9, 33), (300, 130)], ids=str)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("size", [32, 64, 4096])
def test_four_bit_codes_and_scales_are_those_of_bitsandbytes(
    dtype: Any, shape: tuple[int, int], kind: str, size: int
) -> None:
    weight = weights(shape, dtype)
    packed, state = functional.quantize_4bit(weight, quant_type=kind, blocksize=size)
    codes, scales = blocks.four_bits(plain(weight).reshape(-1), kind, size)
    np.testing.assert_array_equal(codes, packed.numpy().reshape(-1))
    np.testing.assert_array_equal(scales, state.absmax.numpy())


@pytest.mark.parametrize("shape", [(9, 33), (300, 130), (2000, 1100)], ids=str)
def test_scales_quantized_in_their_turn_are_those_of_bitsandbytes(shape: tuple[int, int]) -> None:
    weight = weights(shape, torch.float32)
    _, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    codes, largest, offset = blocks.nested(
        blocks.four_bits(plain(weight).reshape(-1), "nf4", 64)[1]
    )
    np.testing.assert_array_equal(codes, state.absmax.numpy())
    np.testing.assert_array_equal(largest, state.state2.absmax.numpy())
    np.testing.assert_array_equal(blocks.dynamic_map(), state.state2.code.numpy())
    assert offset == state.offset.item()


def test_equal_scales_are_quantized_to_zeros_as_in_bitsandbytes() -> None:
    weight = torch.ones(8, 512)
    _, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    codes, largest, offset = blocks.nested(np.ones(64, np.float32))
    np.testing.assert_array_equal(codes, state.absmax.numpy())
    assert (largest.tolist(), offset) == (state.state2.absmax.tolist(), 1.0)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_stand_for_what_they_do_in_bitsandbytes(kind: str) -> None:
    want = functional.get_4bit_type(kind, device="cpu").numpy()
    np.testing.assert_array_equal(blocks.CODES[kind], want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(40, 96), (3000, 333)], ids=str)
def test_eight_bit_integers_and_scales_are_those_of_bitsandbytes(
    dtype: Any, shape: tuple[int, int]
) -> None:
    weight = weights(shape, dtype)
    want, want_scales, _ = functional.int8_vectorwise_quant(weight.half())
    integers, scales = blocks.eight_bits(plain(weight))
    np.testing.assert_array_equal(integers, want.numpy())
    np.testing.assert_array_equal(scales, want_scales.numpy())


def test_rows_of_zeros_and_values_below_half_precision_stay_what_they_are() -> None:
    tiny = np.full((2, 64), 1e-9, np.float32)
    integers, scales = blocks.eight_bits(tiny)
    assert not integers.any()
    assert not scales.any()
    codes, scales = blocks.four_bits(np.zeros(64, np.float32), "nf4", 64)
    assert not blocks.CODES["nf4"][codes >> 4].any()
    assert not scales.any()
