"""Quantizing with vectors: machine code, built when first needed, with the same results as ggml.

ggml quantizes block by block in scalar code. The kernels here take 16 blocks at once, one per lane
of a vector, so that each block's arithmetic keeps its order and its result. They are written in
Python that emits LLVM's instructions (see `body`), and llvmlite compiles them for the machine at
hand, in 0.05 to 0.4 s each. Nothing is cached on disk.

`find` is all that others need. Only it imports the other modules: they need llvmlite.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from convkit.checkpoint.rows import Array
from convkit.ggml.kernels.known import has_known_answer

if TYPE_CHECKING:
    from convkit.ggml.kernels.machine import Kernel
    from convkit.ggml.types import GgmlType

_MODULES = {
    "Q4_0": "short_blocks", "Q4_1": "short_blocks", "Q5_0": "short_blocks", "Q5_1": "short_blocks",
    "Q8_0": "short_blocks", "Q2_K": "with_minimum", "Q4_K": "with_minimum", "Q5_K": "with_minimum",
    "Q3_K": "signed", "Q6_K": "signed", "IQ4_NL": "nonlinear", "IQ4_XS": "nonlinear",
    "F16": "floating", "BF16": "floating",
}  # fmt: skip

FLOATING_BLOCK = 16
"""F16 and BF16 are converted by so many elements: their rows must be multiples of it here."""

_WEIGHED_BY_ROW = frozenset(("Q4_0", "Q4_1", "Q5_0", "Q5_1"))

_found: dict[tuple[str, bool], Quantizer | None] = {}
_finding = threading.Lock()


class Quantizer:
    """Quantizes rows to one type. Threads may call it at the same time.

    Args:
        kind: the type.
        is_important: with an importance of the elements.
    """

    def __init__(self, kind: GgmlType, is_important: bool) -> None:
        module = importlib.import_module(f"{__name__}.{_MODULES[kind.name]}")
        build = partial(getattr(module, kind.name.lower()), is_important=is_important)
        self._kind = kind
        self._kernel = _compiled(f"{kind.name}_{is_important}", build)
        self._mean_squares: Kernel | None = None
        if is_important and kind.name in _WEIGHED_BY_ROW:
            self._mean_squares = _compiled("mean_squares", module.mean_squares)

    def __call__(self, rows: Array, importance: Array | None = None) -> Array:
        """Quantizes rows: uint8 (rows, bytes of a row).

        Args:
            rows: float32 (rows, length), contiguous, not empty; the length is a multiple of the
                block's, and of FLOATING_BLOCK.
            importance: float32 (length,), contiguous, if this is for one.
        """
        count, length = rows.shape
        out = np.empty((count, self._kind.row_bytes(length)), np.uint8)
        variances = None
        if self._mean_squares:
            variances = np.empty(-(-count // 16) * 16, np.float32)
            self._mean_squares(rows, None, variances, None, count, length)
        block = max(self._kind.block_length, FLOATING_BLOCK)
        self._kernel(rows, importance, variances, out, rows.size // block, length // block)
        return out


def find(kind: GgmlType, *, is_important: bool) -> Quantizer | None:
    """What quantizes to a type; None where there is no kernel for it, or none for this machine.

    A kernel is used only after it has quantized a few numbers to the bytes that ggml makes of them.

    Args:
        kind: the type.
        is_important: with an importance of the elements.
    """
    key = kind.name, is_important
    with _finding:
        if key not in _found:
            _found[key] = _tested(kind, is_important) if kind.name in _MODULES else None
        return _found[key]


def _tested(kind: GgmlType, is_important: bool) -> Quantizer | None:
    # Where LLVM cannot serve, as the package is missing or older than 0.44, does not know the
    # processor, or the system forbids new code, ggml's own code does.
    try:
        quantizer = Quantizer(kind, is_important)
    except (ImportError, AttributeError, OSError, RuntimeError):
        return None
    return quantizer if has_known_answer(quantizer, kind.name, is_important) else None


def _compiled(name: str, build: Callable[..., None]) -> Kernel:
    from convkit.ggml.kernels.machine import Kernel

    return Kernel(name, build)
