"""A GGUF model in the making: metadata, and tensors that are read, quantized and written by rows.

Nothing is held whole: each thread takes some rows of a tensor from where they lie, brings them to
the type they are to have, and writes them to their place.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.checkpoint.rows import Array, Rows
from convkit.errors import ModelError
from convkit.ggml.types import GgmlType
from convkit.ggml.values import Value
from convkit.ggml.writer import GgufWriter, Layout, Place

if TYPE_CHECKING:
    from convkit.ggml.importance import Importance

_CHUNK_ELEMENTS = 1 << 19
"""Rows are taken by about as many elements: 2 MiB of float32 stay in a core's cache."""
_JOBS_AHEAD = 2

Progress = Callable[[int, int], None]
"""Takes (bytes written, bytes in all)."""


@dataclass(frozen=True)
class Output:
    """A tensor to be written.

    Attributes:
        name: in GGUF.
        rows: what it holds.
        kind: the type it gets.
        importance: of each column, float32 (matrices, columns); None where all count alike.
    """

    name: str
    rows: Rows
    kind: GgmlType
    importance: Array | None = None

    @property
    def place(self) -> Place:
        """Name, shape and type."""
        return Place(self.name, self.rows.shape, self.kind)


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file will hold.

    Attributes:
        metadata: key -> value, in order.
        tensors: in order.
        notes: sentences for the report.
        importance: measures on a text how much each column of each tensor matters, where the model
            behind this one can be run; None where it cannot.
    """

    metadata: Mapping[str, Value]
    tensors: tuple[Output, ...]
    notes: tuple[str, ...] = ()
    importance: Callable[[Path], Importance] | None = field(default=None, compare=False)

    @cached_property
    def layout(self) -> Layout:
        """Where everything goes in the file."""
        return Layout(self.metadata, [tensor.place for tensor in self.tensors])

    @property
    def byte_count(self) -> int:
        """Exact size of the file."""
        return self.layout.byte_count


def write(model: GgufModel, out: Path, progress: Progress | None = None) -> None:
    """Writes a model with as many threads as there are processors.

    Raises:
        ModelError: a tensor holds what cannot be quantized.
        OSError: the file cannot be written.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    done, total = 0, sum(tensor.place.byte_count for tensor in model.tensors)
    with GgufWriter(out, model.layout) as writer, ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[int]] = deque()
        try:
            for tensor, begin, end in _chunks(model):
                ahead.append(pool.submit(_write_rows, writer, tensor, begin, end))
                if len(ahead) > _JOBS_AHEAD * (threads or 1):
                    done += ahead.popleft().result()
                    if progress:
                        progress(done, total)
            while ahead:
                done += ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
    if progress:
        progress(total, total)


def _chunks(model: GgufModel) -> Iterator[tuple[Output, int, int]]:
    for tensor in model.tensors:
        rows = tensor.rows
        step = max(1, _CHUNK_ELEMENTS // rows.row_length)
        for begin in range(0, rows.row_count, step):
            yield tensor, begin, min(begin + step, rows.row_count)


def _write_rows(writer: GgufWriter, tensor: Output, begin: int, end: int) -> int:
    """Brings some rows to their type and writes them; gives the bytes written."""
    rows = tensor.rows
    if rows.dtype == tensor.kind.name:
        content = rows.stored(begin, end)
    else:
        content = _quantized(tensor, begin, end)
    writer.write_rows(tensor.name, begin, content.reshape(-1).data)
    return int(content.nbytes)


def _quantized(tensor: Output, begin: int, end: int) -> Array:
    from convkit.ggml.quantize import quantize

    values = tensor.rows.read(begin, end)
    try:
        if tensor.importance is None:
            return quantize(values, tensor.kind)
        return _quantized_by_matrix(tensor, values, begin)
    except ValueError as cause:
        raise ModelError(
            f"Tensor '{tensor.name}' cannot be written as {tensor.kind}.",
            why=f"Rows {begin} to {end}: {cause}",
            hint="Are the weights damaged, or was training cut off after it diverged?",
        ) from cause


def _quantized_by_matrix(tensor: Output, values: Array, begin: int) -> Array:
    """Rows quantized with the importance of the matrix (the expert) that each belongs to."""
    import numpy as np

    from convkit.ggml.quantize import quantize

    importance = tensor.importance
    assert importance is not None
    height = tensor.rows.row_count // len(importance)
    pieces = []
    at = 0
    while at < len(values):
        matrix = (begin + at) // height
        stop = min(len(values), (matrix + 1) * height - begin)
        pieces.append(quantize(values[at:stop], tensor.kind, importance[matrix]))
        at = stop
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
