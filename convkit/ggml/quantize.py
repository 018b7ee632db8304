"""Rows of float32 to any type of ggml, with the same bits as ggml.

Our kernels serve where they can, else libggml does; see `implementation`. The floating-point types
need neither.
"""

from __future__ import annotations

import numpy as np

from convkit.checkpoint.rows import Array
from convkit.ggml import kernels, library
from convkit.ggml.types import GgmlType

_HALVES = ("F16", "BF16")


class NotFiniteError(ValueError):
    """Infinite or NaN numbers cannot be quantized."""


def quantize(rows: Array, kind: GgmlType, importance: Array | None = None) -> Array:
    """Quantizes rows: uint8 (rows, bytes of a row). Threads may call it at the same time.

    Args:
        rows: float32 (rows, length); the length is a multiple of the block's.
        kind: the type.
        importance: float32 (length,), not negative: how much the elements of a row matter.

    Raises:
        ValueError: the length is no multiple of the block's, the importance does not fit, or the
            type asks for one.
        NotFiniteError: a number is infinite or NaN, and the type is a quantized one.
        MissingRequirementError: the type needs libggml, and that is not there.
    """
    rows = np.ascontiguousarray(rows, np.float32)
    length = rows.shape[1]
    if length % kind.block_length:
        raise ValueError(
            f"Rows of {length} elements do not divide into blocks of {kind.block_length} ({kind})."
        )
    if not rows.size:
        return np.empty((rows.shape[0], kind.row_bytes(length)), np.uint8)
    if kind.name == "F32":
        return rows.view(np.uint8)
    if kind.name in _HALVES:
        return _halves(rows, kind)
    _require_finite(rows, kind)
    importance = _checked(importance, length)
    kernel = kernels.find(kind, is_important=importance is not None)
    if kernel is not None:
        return kernel(rows, importance)
    return library.library().quantize_chunk(rows, kind, importance)


def implementation(kind: GgmlType, *, is_important: bool) -> str:
    """What quantizes to a type here: `vectors` (our kernels), `libggml`, `numpy` or `nothing`."""
    if kernels.find(kind, is_important=is_important) is not None:
        return "vectors"
    if kind.name in ("F32", *_HALVES):
        return "numpy"
    found = library.find()
    return "libggml" if found is not None and found.can_quantize_to(kind) else "nothing"


def _halves(rows: Array, kind: GgmlType) -> Array:
    """Rows as F16 or BF16, rounded to nearest, ties to even; NaNs become quiet ones."""
    kernel = kernels.find(kind, is_important=False)
    if kernel is not None and rows.shape[1] % kernels.FLOATING_BLOCK == 0:
        return kernel(rows)
    is_nan = np.isnan(rows)
    if kind.name == "F16":
        with np.errstate(over="ignore"):
            stored = rows.astype(np.float16).view(np.uint16)
        stored[is_nan] = stored[is_nan] & 0x8000 | 0x7E00
    else:
        bits = rows.view(np.uint32)
        stored = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
        stored[is_nan] = bits[is_nan] >> 16 | 64
    return stored.view(np.uint8)


def _require_finite(rows: Array, kind: GgmlType) -> None:
    is_finite = np.isfinite(rows)
    if not is_finite.all():
        row, column = np.argwhere(~is_finite)[0]
        raise NotFiniteError(
            f"Element {column} of row {row} is {rows[row, column]}: {kind} stores finite numbers."
        )


def _checked(importance: Array | None, length: int) -> Array | None:
    """The importance, contiguous float32, or None."""
    if importance is None:
        return None
    importance = np.ascontiguousarray(importance, np.float32)
    if importance.shape != (length,):
        raise ValueError(f"An importance of {importance.shape} does not fit rows of {length}.")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError("An importance is finite and not negative.")
    return importance
