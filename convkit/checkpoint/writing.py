"""Hugging Face folders written tensor by tensor, shards and all, by threads."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convkit.checkpoint.placing import (
    CHUNK_ELEMENTS,
    Piece,
    PlacedFile,
    Progress,
    write_pieces,
)
from convkit.checkpoint.rows import Array, Rows, widened
from convkit.safetensors_file import ITEM_BYTES, StoredTensor

SHARD_BYTES = 5 << 30
"""Weights beyond this go on in another file, as transformers 4 does."""

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PIECE_BYTES = 2 << 20


@dataclass(frozen=True)
class Part:
    """A tensor as the header of a file has it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def byte_count(self) -> int:
        """Bytes it fills."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


Place = Callable[[str], tuple[PlacedFile, int]]
"""Name of a part -> the file it goes into, and where it begins there."""


class Writable(Protocol):
    """Something that becomes one tensor of a file, or several that belong together."""

    def parts(self, name: str) -> Mapping[str, Part]:
        """The tensors it becomes, by the names they get where it is called `name`."""

    def pieces(self, name: str, place: Place) -> Iterator[Piece]:
        """What is to be written of them, in order."""


@dataclass(frozen=True)
class Target:
    """A tensor to be written: what it holds, and as what (`F32`, `F16`, `BF16`, as stored)."""

    rows: Rows
    dtype: str

    def parts(self, name: str) -> Mapping[str, Part]:
        """Itself."""
        shape = () if getattr(self.rows, "is_scalar", False) else self.rows.shape
        return {name: Part(self.dtype, shape)}

    def pieces(self, name: str, place: Place) -> Iterator[Piece]:
        """Some rows each."""
        file, at = place(name)
        row_bytes = self.rows.row_length * ITEM_BYTES[self.dtype]
        for begin, end in self.rows.spans(CHUNK_ELEMENTS):
            made = functools.partial(_content, self, begin, end)
            yield Piece(file, at + begin * row_bytes, made)


@dataclass(frozen=True)
class Kept:
    """A tensor to be written as it is stored: of integers, say."""

    tensor: StoredTensor

    def parts(self, name: str) -> Mapping[str, Part]:
        """Itself."""
        return {name: Part(self.tensor.dtype, self.tensor.shape)}

    def pieces(self, name: str, place: Place) -> Iterator[Piece]:
        """A few megabytes each."""
        file, at = place(name)
        for begin in range(0, self.tensor.byte_count, _PIECE_BYTES):
            end = min(begin + _PIECE_BYTES, self.tensor.byte_count)
            yield Piece(file, at + begin, functools.partial(self._read, begin, end))

    def _read(self, begin: int, end: int) -> Array:
        return np.frombuffer(self.tensor.read(begin, end), np.uint8)


@dataclass(frozen=True)
class FolderModel:
    """What a Hugging Face folder will hold.

    Attributes:
        tensors: name -> tensor.
        files: path in the folder -> text (configuration, tokenizer).
        notes: sentences for the report.
        shard_bytes: see `SHARD_BYTES`.
        finish: what is to be done with the written folder: (folder, what takes notes).
        aliases: a further name of a tensor -> its name in `tensors`.
    """

    tensors: Mapping[str, Writable]
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()
    shard_bytes: int = SHARD_BYTES
    finish: tuple[Callable[[Path, Callable[[str], None]], None], ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def shards(self) -> dict[str, _Shard]:
        """File name -> what goes into it."""
        groups = list(_grouped(self.tensors, self.shard_bytes))
        if len(groups) == 1:
            return {_FILE: _Shard(groups[0], self.aliases)}
        return {
            f"model-{number:05}-of-{len(groups):05}.safetensors": _Shard(group, self.aliases)
            for number, group in enumerate(groups, 1)
        }

    @property
    def byte_count(self) -> int:
        """Exact size of the folder."""
        texts = sum(len(text.encode()) for text in self.texts().values())
        return texts + sum(shard.byte_count for shard in self.shards.values())

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(shard.byte_count - len(shard.head) for shard in self.shards.values())

    def texts(self) -> dict[str, str]:
        """All files that are text, the index of shards among them."""
        if len(self.shards) == 1:
            return dict(self.files)
        index = {
            "metadata": {"total_size": self.tensor_bytes},
            "weight_map": {n: file for file, shard in self.shards.items() for n in shard.places},
        }
        return {**self.files, _INDEX: json.dumps(index, indent=2) + "\n"}


class _Shard:
    """The layout of a safetensors file. Source: README of huggingface/safetensors, "Format"."""

    def __init__(self, tensors: Mapping[str, Writable], aliases: Mapping[str, str]) -> None:
        self.tensors = tensors
        parts = {
            name: part for key, one in tensors.items() for name, part in one.parts(key).items()
        }
        # Falling item sizes keep every tensor aligned to its own.
        order = sorted(parts, key=lambda name: -ITEM_BYTES[parts[name].dtype])
        own = {alias: kept for alias, kept in aliases.items() if kept in parts}
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **own}}
        offset = 0
        relative = {}
        for name in order:
            part, end = parts[name], offset + parts[name].byte_count
            header[name] = {
                "dtype": part.dtype,
                "shape": list(part.shape),
                "data_offsets": [offset, end],
            }
            relative[name], offset = offset, end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        self.head = len(text).to_bytes(8, "little") + text
        self.places = {name: len(self.head) + at for name, at in relative.items()}
        self.byte_count = len(self.head) + offset


def write_folder(model: FolderModel, out: Path, progress: Progress | None = None) -> None:
    """Writes the folder `out`.

    Raises:
        OSError: it cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, text in model.texts().items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    with ExitStack() as opened:
        files = {
            name: opened.enter_context(PlacedFile(out / name, shard.byte_count))
            for name, shard in model.shards.items()
        }
        for name, shard in model.shards.items():
            files[name].write(shard.head, 0)
        write_pieces(_pieces(model, files), model.tensor_bytes, progress)


def _grouped(tensors: Mapping[str, Writable], limit: int) -> Iterator[dict[str, Writable]]:
    """Tensors in order, cut where a file would pass the limit."""
    group: dict[str, Writable] = {}
    size = 0
    for name, tensor in tensors.items():
        byte_count = sum(part.byte_count for part in tensor.parts(name).values())
        if group and size + byte_count > limit:
            yield group
            group, size = {}, 0
        group[name] = tensor
        size += byte_count
    yield group


def _pieces(model: FolderModel, files: Mapping[str, PlacedFile]) -> Iterator[Piece]:
    for file, shard in model.shards.items():
        for name, tensor in shard.tensors.items():
            yield from tensor.pieces(name, functools.partial(_place, files[file], shard))


def _place(file: PlacedFile, shard: _Shard, name: str) -> tuple[PlacedFile, int]:
    return file, shard.places[name]


def _content(target: Target, begin: int, end: int) -> Array:
    rows = target.rows
    if rows.dtype == target.dtype:
        return rows.stored(begin, end)
    return narrowed(rows.read(begin, end), target.dtype)


def narrowed(values: Array, dtype: str) -> Array:
    """Float32 rows in a narrower dtype, as bytes: to nearest, ties to even."""
    if dtype == "F32":
        return np.ascontiguousarray(values, np.float32).view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(np.float16).view(np.uint8)
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16).view(np.uint8)


def is_exact_in(rows: Rows, dtype: str) -> bool:
    """Whether every element survives in a narrower dtype; the tensor is read whole."""
    values = rows.read(0, rows.row_count)
    return np.array_equal(widened(narrowed(values, dtype), dtype), values)
