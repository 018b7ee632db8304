"""Weights as the tensors that bitsandbytes keeps them in, made piece by piece while written.

Source: bitsandbytes, `QuantState.as_dict` and `Linear8bitLt._save_to_state_dict`; what reads them
is `convkit.checkpoint.bitsandbytes_weights`.
"""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from convkit.checkpoint.placing import CHUNK_ELEMENTS, Piece
from convkit.checkpoint.quantization import BITSANDBYTES
from convkit.checkpoint.rows import Array, Computed, Rows, widened
from convkit.checkpoint.writing import Part, Place, Target, narrowed
from convkit.errors import ModelError
from convkit.quantization import bitsandbytes_blocks as blocks

_STATE_DTYPES = {"float32", "float16", "bfloat16"}
_DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16"}
_LONGEST_FLOAT = -1.2345678901234567e-308


class Rounded(Computed):
    """The numbers that a tensor holds once it is written.

    Args:
        target: the tensor.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.shape = target.rows.shape

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        rows, dtype = self._target.rows, self._target.dtype
        values = rows.read(begin, end)
        if dtype in (rows.dtype, "F32", "F64"):
            return values
        return widened(narrowed(values, dtype), dtype)


class _Collected:
    """What the pieces of one weight have in common: their scales, and how many are still due."""

    def __init__(self, count: int, piece_count: int) -> None:
        self.scales = np.empty(count, np.float32)
        self._due = piece_count
        self._lock = threading.Lock()

    def is_complete(self) -> bool:
        """Whether the piece that asks is the last one; each asks once."""
        with self._lock:
            self._due -= 1
            return self._due == 0


@dataclass(frozen=True)
class FourBits:
    """A weight in 4-bit codes.

    Attributes:
        rows: what it holds, (outputs, inputs).
        kind: `nf4` or `fp4`.
        dtype: what it is computed in, `float32`.
        block_size: weights that share a scale.
        is_nested: whether scales are quantized too.
    """

    rows: Rows
    kind: str
    dtype: str
    block_size: int = 64
    is_nested: bool = False

    @property
    def splits_blocks(self) -> bool:
        """Whether a block holds weights of several rows."""
        return self.rows.row_length % self.block_size != 0

    @property
    def _block_count(self) -> int:
        return -(-self.rows.element_count // self.block_size)

    def parts(self, name: str) -> Mapping[str, Part]:
        """Codes, scales, what codes stand for, settings."""
        names = BITSANDBYTES[self.kind].names_of(name)
        found = {
            "weight": Part("U8", (-(-self.rows.element_count // 2), 1)),
            "absmax": Part("U8" if self.is_nested else "F32", (self._block_count,)),
            "quant_map": Part("F32", (16,)),
            "quant_state": Part("U8", (len(self._state(_LONGEST_FLOAT)),)),
        }
        if self.is_nested:
            count = -(-self._block_count // blocks.NESTED_BLOCK)
            found["nested_absmax"] = Part("F32", (count,))
            found["nested_quant_map"] = Part("F32", (256,))
        return {names[role]: part for role, part in found.items()}

    def pieces(self, name: str, place: Place) -> Iterator[Piece]:
        """Whole blocks each; with the last that is made come scales and settings."""
        spans = list(self._spans())
        collected = _Collected(self._block_count, len(spans))
        file, at = place(BITSANDBYTES[self.kind].names_of(name)["weight"])
        more = functools.partial(self._statistics, name, place, collected)
        for begin, end in spans:
            made = functools.partial(self._codes, name, collected, begin, end)
            yield Piece(file, at + begin * self.rows.row_length // 2, made, more)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Rows that begin with a block, about so many that they stay in a core's cache."""
        unit = self.block_size // math.gcd(self.block_size, self.rows.row_length)
        step = unit * max(1, CHUNK_ELEMENTS // (unit * self.rows.row_length))
        for begin in range(0, self.rows.row_count, step):
            yield begin, min(begin + step, self.rows.row_count)

    def _codes(self, name: str, collected: _Collected, begin: int, end: int) -> Array:
        values = self.rows.read(begin, end).reshape(-1)
        codes, scales = blocks.four_bits(values, self.kind, self.block_size)
        _require_finite("torch-q4", name, scales, "Codes are shares of the largest in a block.")
        first = begin * self.rows.row_length // self.block_size
        collected.scales[first : first + scales.size] = scales
        return codes

    def _statistics(
        self, name: str, place: Place, collected: _Collected
    ) -> Iterable[tuple[int, Array]]:
        if not collected.is_complete():
            return
        content: dict[str, Array] = {"absmax": collected.scales}
        offset = None
        if self.is_nested:
            codes, largest, offset = blocks.nested(collected.scales)
            content = {
                "absmax": codes,
                "nested_absmax": largest,
                "nested_quant_map": blocks.dynamic_map(),
            }
        content["quant_map"] = blocks.CODES[self.kind]
        state = self._state(offset).ljust(len(self._state(_LONGEST_FLOAT)))
        content["quant_state"] = np.frombuffer(state, np.uint8)
        yield from _placed(BITSANDBYTES[self.kind].names_of(name), place, content)

    def _state(self, offset: float | None) -> bytes:
        """Settings as JSON, which may end in spaces."""
        state: dict[str, object] = {
            "quant_type": self.kind,
            "blocksize": self.block_size,
            "dtype": self.dtype,
            "shape": list(self.rows.shape),
        }
        if self.is_nested:
            state["nested_blocksize"] = blocks.NESTED_BLOCK
            state["nested_dtype"] = "float32"
            state["nested_offset"] = offset
        return json.dumps(state).encode()


@dataclass(frozen=True)
class EightBits:
    """A weight in 8-bit integers with a scale per row.

    Attributes:
        rows: what it holds, (outputs, inputs).
    """

    rows: Rows

    def parts(self, name: str) -> Mapping[str, Part]:
        """Integers, scales, and how integers are arranged."""
        names = BITSANDBYTES["llm_int8"].names_of(name)
        return {
            names["weight"]: Part("I8", self.rows.shape),
            names["SCB"]: Part("F32", (self.rows.row_count,)),
            names["format"]: Part("U8", ()),
        }

    def pieces(self, name: str, place: Place) -> Iterator[Piece]:
        """Some rows each; with the last that is made come the scales."""
        spans = list(self.rows.spans(CHUNK_ELEMENTS))
        collected = _Collected(self.rows.row_count, len(spans))
        file, at = place(name)
        more = functools.partial(self._statistics, name, place, collected)
        for begin, end in spans:
            made = functools.partial(self._integers, name, collected, begin, end)
            yield Piece(file, at + begin * self.rows.row_length, made, more)

    def _integers(self, name: str, collected: _Collected, begin: int, end: int) -> Array:
        integers, scales = blocks.eight_bits(self.rows.read(begin, end))
        why = "LLM.int8 rounds weights to half precision first, which ends at 65504."
        _require_finite("torch-int8", name, scales, why)
        collected.scales[begin:end] = scales
        return integers.view(np.uint8)

    def _statistics(
        self, name: str, place: Place, collected: _Collected
    ) -> Iterable[tuple[int, Array]]:
        if not collected.is_complete():
            return
        row_major = np.zeros(1, np.uint8)
        content: dict[str, Array] = {"SCB": collected.scales, "format": row_major}
        yield from _placed(BITSANDBYTES["llm_int8"].names_of(name), place, content)


def state_dtype(config_dtype: object, target: Target) -> str:
    """The dtype that a weight is computed in once it is loaded: the configuration's, or its own."""
    if config_dtype in _STATE_DTYPES:
        return str(config_dtype)
    return _DTYPE_NAMES.get(target.dtype, "float32")


def _placed(
    names: Mapping[str, str], place: Place, content: Mapping[str, Array]
) -> Iterator[tuple[int, Array]]:
    for role, array in content.items():
        yield place(names[role])[1], np.ascontiguousarray(array).view(np.uint8)


def _require_finite(step: str, name: str, scales: Array, why: str) -> None:
    if not np.isfinite(scales).all():
        layer = name.removesuffix(".weight")
        raise ModelError(
            f"The weight '{name}' has values that cannot be quantized: NaN, infinite or too large.",
            why=why,
            hint=f"Leave the layer as it is:  --set {step}.skip={layer}",
            tensor=name,
        )
