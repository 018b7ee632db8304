"""Weights that bitsandbytes quantized: 4-bit codes in blocks, or 8-bit integers per row.

4 bits: the codes of the tensor in one run, the first of a pair in the upper half of a byte;
`quant_map` float32 (16) is what codes stand for, `absmax` what each block of 64 (or another power
of two) is multiplied with. Doubly quantized, `absmax` is uint8 too: `nested_quant_map` (256) times
`nested_absmax` per block of 256, plus an offset. Settings are JSON in a tensor of bytes.

8 bits (LLM.int8): `weight` int8 (outputs, inputs), `SCB` float32 (outputs) the largest of each row.

Source: bitsandbytes, `functional.py` (`QuantState`, `dequantize_4bit`, `int8_vectorwise_dequant`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from convkit.checkpoint.rows import FLOATS, Array, Computed, Rows
from convkit.checkpoint.stored import misfit, whole
from convkit.errors import ModelError, UnsupportedError
from convkit.safetensors_file import StoredTensor

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ONE_127TH = np.float32(7.874015718698502e-3)
"""As bitsandbytes writes 1 / 127."""


class FourBitRows(Rows):
    """A tensor of 4-bit codes, in the dtype it had before: values are rounded to that, as there.

    Args:
        name: of the original tensor.
        parts: `weight`, `absmax`, `quant_map`, `quant_state`; doubly quantized also
            `nested_absmax`, `nested_quant_map`.

    Raises:
        ModelError: the parts do not fit each other.
        UnsupportedError: codes of an unknown kind.
    """

    def __init__(self, name: str, parts: Mapping[str, StoredTensor]) -> None:
        self._parts = parts
        state = _state(name, parts["quant_state"])
        self._block_length = int(state["blocksize"])
        self._nested_block_length = int(state.get("nested_blocksize") or 0)
        self._offset = np.float32(state.get("nested_offset") or 0.0)
        self.shape = tuple(map(int, state["shape"]))
        self.dtype = _DTYPES[state["dtype"]]
        count = math.prod(self.shape)
        block_count = -(-count // self._block_length)
        fitting: dict[str, tuple[str | None, int]] = {
            "weight": (None, -(-count // 2)),
            "absmax": ("F32", 4 * block_count),
            "quant_map": ("F32", 4 * 16),
        }
        if self._nested_block_length:
            nested_count = -(-block_count // self._nested_block_length)
            fitting["absmax"] = ("U8", block_count)
            fitting["nested_absmax"] = ("F32", 4 * nested_count)
            fitting["nested_quant_map"] = ("F32", 4 * 256)
        for role, (dtype, size) in fitting.items():
            part = parts.get(role)
            if part is None or part.byte_count != size or part.dtype != (dtype or part.dtype):
                found = f"{part.byte_count} bytes of {part.dtype}" if part else "missing"
                raise misfit(
                    name,
                    f"{role} is {found}; for {list(self.shape)} in blocks of "
                    f"{self._block_length} it takes {size} bytes.",
                )

    def stored(self, begin: int, end: int) -> Array:
        """Rows as stored."""
        values = self._values(begin * self.row_length, end * self.row_length)
        rows = values.reshape(end - begin, self.row_length)
        kind: Any = FLOATS.get(self.dtype)
        if kind is None:
            from ml_dtypes import bfloat16 as kind
        return rows.astype(kind, copy=False).view(np.uint8)

    def _values(self, begin: int, end: int) -> Array:
        """Elements `begin` to `end`: float32."""
        octets = np.frombuffer(self._parts["weight"].read(begin // 2, -(-end // 2)), np.uint8)
        values = self._pairs[octets].view(np.float32)[begin % 2 :][: end - begin]
        length = self._block_length
        first = begin // length
        scales = self._scales(first, -(-end // length))
        repeated: Array = np.repeat(scales, length)[begin - first * length :][: end - begin]
        return np.multiply(values, repeated, out=repeated)

    def _scales(self, begin: int, end: int) -> Array:
        """Scales of the blocks `begin` to `end`: float32."""
        absmax = self._parts["absmax"]
        if not self._nested_block_length:
            return np.frombuffer(absmax.read(4 * begin, 4 * end), np.float32)
        content = absmax.read(begin, end)
        blocks = np.arange(begin, end) // self._nested_block_length
        scales: Array = self._nested_map[np.frombuffer(content, np.uint8)]
        scales *= self._nested_scales[blocks]
        scales += self._offset
        return scales

    @cached_property
    def _pairs(self) -> Array:
        """What each byte stands for: two float32 as one element of 8 bytes, quicker to look up."""
        codes = np.arange(256)
        values = whole(self._parts["quant_map"])[np.stack((codes >> 4, codes & 15), axis=1)]
        return values.view(np.uint64)[:, 0]

    @cached_property
    def _nested_map(self) -> Array:
        return whole(self._parts["nested_quant_map"])

    @cached_property
    def _nested_scales(self) -> Array:
        return whole(self._parts["nested_absmax"])


class EightBitRows(Computed):
    """A matrix of 8-bit integers with a scale per row.

    Args:
        name: of the original tensor.
        parts: `weight`, `SCB`.

    Raises:
        ModelError: the parts do not fit each other.
    """

    def __init__(self, name: str, parts: Mapping[str, StoredTensor]) -> None:
        self._parts = parts
        self.shape = parts["weight"].shape
        if len(self.shape) != 2 or parts["weight"].dtype != "I8":
            raise ModelError(f"The quantized tensor '{name}' is no matrix of 8-bit integers.")
        if math.prod(parts["SCB"].shape) != self.shape[0] or parts["SCB"].dtype != "F32":
            why = f"It has {self.shape[0]} rows, SCB is {list(parts['SCB'].shape)}."
            raise misfit(name, why)

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        width = self.row_length
        integers = np.frombuffer(self._parts["weight"].read(begin * width, end * width), np.int8)
        scales = np.frombuffer(self._parts["SCB"].read(4 * begin, 4 * end), np.float32)
        rows = integers.reshape(end - begin, width).astype(np.float32)
        rows *= scales[:, None]
        rows *= _ONE_127TH
        return rows


def _state(name: str, tensor: StoredTensor) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(bytes(tensor.read(0, tensor.byte_count)))
        kind, dtype = state["quant_type"], state["dtype"]
        is_whole = int(state["blocksize"]) > 0 and all(int(size) >= 0 for size in state["shape"])
    except (ValueError, KeyError, TypeError) as cause:
        raise ModelError(
            f"The settings of the quantized tensor '{name}' are damaged.", why=str(cause)
        ) from cause
    if kind not in ("nf4", "fp4") or dtype not in _DTYPES or not is_whole:
        raise UnsupportedError(
            f"The tensor '{name}' is quantized in an unknown way: {kind}, {dtype}.",
            why="Of bitsandbytes' 4-bit kinds nf4 and fp4 are known, made of floats up to 32 bits.",
        )
    return state
