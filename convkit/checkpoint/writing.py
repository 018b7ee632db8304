"""Hugging Face folders written tensor by tensor, shards and all, by threads."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from convkit.checkpoint.placing import (
    CHUNK_ELEMENTS,
    Piece,
    PlacedFile,
    Progress,
    write_pieces,
)
from convkit.checkpoint.rows import Array, Rows, widened

SHARD_BYTES = 5 << 30
"""Weights beyond this go on in another file, as transformers 4 does."""

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Target:
    """A tensor to be written: what it holds, and as what (`F32`, `F16`, `BF16`)."""

    rows: Rows
    dtype: str

    @property
    def byte_count(self) -> int:
        """Bytes it fills."""
        return self.rows.element_count * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class FolderModel:
    """What a Hugging Face folder will hold.

    Attributes:
        tensors: name -> tensor.
        files: path in the folder -> text (configuration, tokenizer).
        notes: sentences for the report.
        shard_bytes: see `SHARD_BYTES`.
        finish: what is to be done with the written folder: (folder, what takes notes).
    """

    tensors: Mapping[str, Target]
    files: Mapping[str, str]
    notes: tuple[str, ...] = ()
    shard_bytes: int = SHARD_BYTES
    finish: tuple[Callable[[Path, Callable[[str], None]], None], ...] = ()

    @cached_property
    def shards(self) -> dict[str, _Shard]:
        """File name -> what goes into it."""
        groups = list(_grouped(self.tensors, self.shard_bytes))
        if len(groups) == 1:
            return {_FILE: _Shard(groups[0])}
        return {
            f"model-{number:05}-of-{len(groups):05}.safetensors": _Shard(group)
            for number, group in enumerate(groups, 1)
        }

    @property
    def byte_count(self) -> int:
        """Exact size of the folder."""
        texts = sum(len(text.encode()) for text in self.texts().values())
        return texts + sum(shard.byte_count for shard in self.shards.values())

    def texts(self) -> dict[str, str]:
        """All files that are text, the index of shards among them."""
        if len(self.shards) == 1:
            return dict(self.files)
        index = {
            "metadata": {"total_size": sum(t.byte_count for t in self.tensors.values())},
            "weight_map": {n: file for file, shard in self.shards.items() for n in shard.tensors},
        }
        return {**self.files, _INDEX: json.dumps(index, indent=2) + "\n"}


class _Shard:
    """The layout of a safetensors file. Source: README of huggingface/safetensors, "Format"."""

    def __init__(self, tensors: Mapping[str, Target]) -> None:
        # Falling item sizes keep every tensor aligned to its own.
        order = sorted(tensors, key=lambda name: -_ITEM_BYTES[tensors[name].dtype])
        self.tensors = {name: tensors[name] for name in order}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        relative = {}
        for name, target in self.tensors.items():
            end = offset + target.byte_count
            header[name] = {
                "dtype": target.dtype,
                "shape": list(target.rows.shape),
                "data_offsets": [offset, end],
            }
            relative[name], offset = offset, end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        self.head = len(text).to_bytes(8, "little") + text
        self.offsets = {name: len(self.head) + at for name, at in relative.items()}
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
    total = sum(target.byte_count for target in model.tensors.values())
    with ExitStack() as opened:
        files = {
            name: opened.enter_context(PlacedFile(out / name, shard.byte_count))
            for name, shard in model.shards.items()
        }
        for name, shard in model.shards.items():
            files[name].write(shard.head, 0)
        write_pieces(_pieces(model, files), total, progress)


def _grouped(tensors: Mapping[str, Target], limit: int) -> Iterator[dict[str, Target]]:
    """Tensors in order, cut where a file would pass the limit."""
    group: dict[str, Target] = {}
    size = 0
    for name, target in tensors.items():
        if group and size + target.byte_count > limit:
            yield group
            group, size = {}, 0
        group[name] = target
        size += target.byte_count
    yield group


def _pieces(model: FolderModel, files: Mapping[str, PlacedFile]) -> Iterator[Piece]:
    for name, shard in model.shards.items():
        for tensor, target in shard.tensors.items():
            rows = target.rows
            row_bytes = rows.row_length * _ITEM_BYTES[target.dtype]
            for begin, end in rows.spans(CHUNK_ELEMENTS):
                at = shard.offsets[tensor] + begin * row_bytes
                yield Piece(files[name], at, functools.partial(_content, target, begin, end))


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
