"""Dequantizing gives ggml's bits, with libggml and without, and so do integers with scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convkit.errors import MissingRequirementError
from convkit.ggml import library
from convkit.ggml.dequantize import dequantize, unpacked
from convkit.ggml.quantize import quantize
from convkit.ggml.types import TYPES
from convkit.ggml.unpacking import BLOCKS
from tests.ggml.quantized_rows import float32, rows

Array = np.ndarray[Any, Any]

pytest.importorskip("libggml", reason="libggml-python is not installed: nothing to compare with")

# Which NaN an infinite or NaN scale gives depends on the order of the operands.
AnyNaN = np.float32(np.nan)


def stored_rows(name: str) -> Array:
    """Rows quantized from all kinds of numbers, then rows of any bytes."""
    kind = TYPES[name]
    length = 2 * max(kind.block_length, 32)
    given = np.concatenate([float32(values, length) for _, values in rows(length, 2, 5)])
    with np.errstate(all="ignore"):
        made = quantize(given, kind)
    noise = np.random.default_rng(6).integers(0, 256, (200, made.shape[1]), dtype=np.uint8)
    return np.concatenate((made, noise))


def assert_same_bits(ours: Array, theirs: Array) -> None:
    is_nan = np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), is_nan)
    assert np.array_equal(ours.view(np.uint32)[~is_nan], theirs.view(np.uint32)[~is_nan])


@pytest.mark.parametrize("name", [*BLOCKS, "F16", "BF16"])
def test_rows_dequantize_as_in_libggml(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = stored_rows(name)
    theirs = library.library().to_float(stored, TYPES[name])
    assert_same_bits(dequantize(stored, TYPES[name]), theirs)
    monkeypatch.setattr(library, "_search", lambda: (None, ()))
    with np.errstate(all="ignore"):
        assert_same_bits(dequantize(stored, TYPES[name]), theirs)


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_dequantize_as_in_the_package_gguf(name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    from gguf.quants import dequantize as reference

    given = np.random.default_rng(7).standard_normal((5, 768)).astype(np.float32)
    stored = quantize(given, TYPES[name])
    expected = reference(stored, gguf.GGMLQuantizationType[name])
    assert np.array_equal(dequantize(stored, TYPES[name]), expected)
    assert np.array_equal(unpacked(stored, TYPES[name]).values(), expected)


def test_what_is_no_whole_number_of_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole number of blocks of 144"):
        dequantize(np.zeros((2, 100), np.uint8), TYPES["Q4_K"])
    with pytest.raises(ValueError, match="IQ2_XXS has no scales to unpack"):
        unpacked(np.zeros((2, 66), np.uint8), TYPES["IQ2_XXS"])


def test_types_that_numpy_does_not_unpack_need_libggml(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.zeros((2, 66), np.uint8)
    assert dequantize(stored, TYPES["IQ2_XXS"]).shape == (2, 256)
    monkeypatch.setattr(library, "_search", lambda: (None, ()))
    with pytest.raises(MissingRequirementError, match="libggml is not installed"):
        dequantize(stored, TYPES["IQ2_XXS"])
