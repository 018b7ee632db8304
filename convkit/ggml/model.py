"""A GGUF model in the making: metadata, and tensors that are read, quantized and written by rows.

Nothing is held whole: each thread takes some rows of a tensor from where they lie, brings them to
the type they are to have, and writes them to their place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.checkpoint.placing import (
    CHUNK_ELEMENTS,
    Piece,
    PlacedFile,
    Progress,
    write_pieces,
)
from convkit.checkpoint.rows import Array, Rows
from convkit.errors import ModelError
from convkit.ggml.modelfile import write_modelfile
from convkit.ggml.types import GgmlType
from convkit.ggml.values import Value
from convkit.ggml.writer import Layout, Place

if TYPE_CHECKING:
    from convkit.ggml.importance import Importance
    from convkit.step import Package, Work


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
    def shape(self) -> tuple[int, ...]:
        """Row-major, as in PyTorch."""
        return self.rows.shape

    @property
    def place(self) -> Place:
        """Name, shape and type."""
        return Place(self.name, self.shape, self.kind)


@dataclass(frozen=True)
class Measurement:
    """How much each column of a tensor matters, to be measured on a text.

    Attributes:
        names: of the tensors that there will be data of.
        take: measures: (text, at most so many pieces of it, work) -> the data.
        needs: packages that it takes.
    """

    names: frozenset[str]
    take: Callable[[Path, int | None, Work], Importance]
    needs: tuple[Package, ...] = ()


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file will hold.

    Attributes:
        metadata: key -> value, in order.
        tensors: in order.
        notes: sentences for the report.
        importance: how to measure it, where the model behind this one can be run.
        settle: what is to be settled before anything is written, as it takes long; it changes no
            size: (model, work) -> model.
        finish: what is to be done with the written file: (file, what takes notes for the report).
    """

    metadata: Mapping[str, Value]
    tensors: tuple[Output, ...]
    notes: tuple[str, ...] = ()
    importance: Measurement | None = field(default=None, compare=False)
    settle: tuple[Callable[[GgufModel, Work], GgufModel], ...] = ()
    finish: tuple[Callable[[Path, Callable[[str], None]], None], ...] = ()

    @cached_property
    def layout(self) -> Layout:
        """Where everything goes in the file."""
        return Layout(self.metadata, [tensor.place for tensor in self.tensors])

    @property
    def byte_count(self) -> int:
        """Exact size of the file."""
        return self.layout.byte_count


def sink(model: GgufModel, out: Path, work: Work) -> None:
    """Writes a model, what Ollama wants beside it, and does what is to be done before and after."""
    for settle in model.settle:
        model = settle(model, work)
    write(model, out, lambda done, total: work.progress("writing tensors", done, total, "B"))
    if "tokenizer.chat_template" in model.metadata:
        write_modelfile(out, model.metadata)
    for finish in model.finish:
        finish(out, work.note)


def write(model: GgufModel, out: Path, progress: Progress | None = None) -> None:
    """Writes a model with as many threads as there are processors.

    Raises:
        ModelError: a tensor holds what cannot be quantized.
        OSError: the file cannot be written.
    """
    layout = model.layout
    with PlacedFile(out, layout.byte_count) as file:
        file.write(layout.head, 0)
        write_pieces(_pieces(model, file), layout.byte_count - len(layout.head), progress)


def _pieces(model: GgufModel, file: PlacedFile) -> Iterator[Piece]:
    for tensor in model.tensors:
        rows, begin_of_tensor = tensor.rows, model.layout.offsets[tensor.name]
        for begin, end in rows.spans(CHUNK_ELEMENTS):
            at = begin_of_tensor + begin * tensor.place.row_bytes
            yield Piece(file, at, functools.partial(_content, tensor, begin, end))


def _content(tensor: Output, begin: int, end: int) -> Array:
    """Some rows as they are written."""
    if tensor.rows.dtype == tensor.kind.name:
        return tensor.rows.stored(begin, end)
    return _quantized(tensor, begin, end)


def _quantized(tensor: Output, begin: int, end: int) -> Array:
    from convkit.ggml.quantize import quantize

    values = tensor.rows.read(begin, end)
    try:
        _require_range(tensor, values)
        if tensor.importance is None:
            return quantize(values, tensor.kind)
        return _quantized_by_matrix(tensor, values, begin)
    except ValueError as cause:
        raise ModelError(
            f"Tensor '{tensor.name}' cannot be written as {tensor.kind}.",
            why=f"Rows {begin} to {end}: {cause}",
            hint="Are the weights damaged, or was training cut off after it diverged?",
        ) from cause


_INFINITE_FROM = {"F16": 65520.0, "BF16": float.fromhex("0x1.ffp127")}
"""The least number that becomes infinite: halfway to what would be the next of the type."""


def _require_range(tensor: Output, values: Array) -> None:
    """Sees to it that no number becomes infinite as F16 or BF16; `quantize` does for other types.

    Raises:
        ModelError: a number is too large.
        ValueError: one is infinite or NaN already.
    """
    end = _INFINITE_FROM.get(tensor.kind.name)
    if end is None or not values.size:
        return
    largest = float(abs(values).max())
    if not math.isfinite(largest):
        raise ValueError(f"They hold {largest}.")
    if largest >= end:
        raise ModelError(
            f"Tensor '{tensor.name}' holds {largest:.6g}, which is infinite as {tensor.kind}.",
            why="The largest number of F16 is 65504, of BF16 3.39e38.",
            hint="Take a type that reaches further:  --bf16\n"
            f"or, under a scheme:  --tensor-type '{tensor.name}=bf16'",
        )


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
