"""Reads a TensorFlow checkpoint's index without TensorFlow: what it holds, in which files.

A checkpoint `name` is `name.index`, a sorted table, and `name.data-00000-of-00002` ..., raw bytes.

Source: tensorflow/core/util/tensor_bundle (`tensor_bundle.proto`, `tensor_bundle.cc`: entries by
name, the header under the empty name, tables written without compression) and leveldb's
doc/table_format.md, which its index follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from convkit.errors import ModelError, UnsupportedError
from convkit.protobuf import BYTES, VARINT, WireError, fields, varint
from convkit.tensorflow_proto import Sizes, dtype_name, read_shape

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_BLOCK_TRAILER_BYTES = 5  # compression type and a checksum
_UNCOMPRESSED = 0


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: what it is and where its bytes lie."""

    dtype: str
    sizes: Sizes
    shard: int
    offset: int
    size_bytes: int


def is_index(path: Path) -> bool:
    """Whether a file is a checkpoint's index, by how it ends."""
    try:
        with path.open("rb") as stream:
            stream.seek(-8, 2)
            return path.suffix == ".index" and int.from_bytes(stream.read(), "little") == _MAGIC
    except OSError:
        return False


def read_index(prefix: Path) -> tuple[int, Mapping[str, Entry]]:
    """Number of data files, and the tensors by name, of the checkpoint with this prefix.

    Raises:
        ModelError: the index is missing or damaged.
        UnsupportedError: it is compressed.
    """
    path = prefix.with_name(f"{prefix.name}.index")
    if not path.is_file():
        raise ModelError(
            f"There is no file {path}, which says where the model's variables lie.",
            hint=f"Copy the whole model: it belongs beside {prefix.name}.data-00000-of-00001.",
        )
    data = path.read_bytes()
    shards, entries = 0, {}
    try:
        for key, value in _table(data):
            if key == b"":
                shards = _numbers(value).get(1, 0)
            else:
                entries[key.decode(errors="replace")] = _entry(value)
    except (WireError, IndexError, ValueError) as cause:
        raise ModelError(
            f"{path} is damaged or truncated.",
            why=str(cause) or f"It has {len(data)} bytes.",
            hint="Save or download the model again.",
        ) from cause
    return shards, entries


def shard_paths(prefix: Path, count: int) -> list[Path]:
    """The data files of a checkpoint of so many shards."""
    return [prefix.with_name(f"{prefix.name}.data-{i:05}-of-{count:05}") for i in range(count)]


def check_shards(prefix: Path) -> Mapping[str, Entry]:
    """The tensors of a checkpoint, all of whose bytes are there.

    Raises:
        ModelError: the index or a data file is missing, damaged or too short.
    """
    count, entries = read_index(prefix)
    needed = dict.fromkeys(range(count), 0)
    for entry in entries.values():
        end = entry.offset + entry.size_bytes
        needed[entry.shard] = max(needed.get(entry.shard, 0), end)
    for path, size in zip(shard_paths(prefix, count), needed.values(), strict=False):
        if not path.is_file():
            raise ModelError(
                f"There is no file {path}, which holds the model's variables.",
                hint="Copy the whole model, the folder 'variables' too."
                if prefix.name == "variables"
                else f"Copy it beside {prefix.name}.meta.",
            )
        if path.stat().st_size < size:
            raise ModelError(
                f"{path} is truncated.",
                why=f"It has {path.stat().st_size} bytes; the index speaks of {size}.",
                hint="Save or download the model again.",
            )
    return entries


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in order."""
    if len(data) < _FOOTER_BYTES or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise ValueError("it does not end as a table does")
    at = len(data) - _FOOTER_BYTES
    for _ in range(2):  # where the meta index lies, which nothing here needs
        _, at = varint(data, at, len(data))
    for _, handle in _block(data, *_handle(data, at)):
        yield from _block(data, *_handle(handle, 0))


def _handle(data: bytes, at: int) -> tuple[int, int]:
    offset, at = varint(data, at, len(data))
    size, _ = varint(data, at, len(data))
    return offset, size


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Entries of a block; each key is given by what differs from the one before."""
    if offset + size + _BLOCK_TRAILER_BYTES > len(data) or size < 4:
        raise ValueError(f"a block of {size} bytes at {offset} lies outside the file")
    if data[offset + size] != _UNCOMPRESSED:
        raise UnsupportedError("The checkpoint's index is compressed.")
    restarts = int.from_bytes(data[offset + size - 4 : offset + size], "little")
    at, end = offset, offset + size - 4 * (restarts + 1)
    key = b""
    while at < end:
        shared, at = varint(data, at, end)
        own, at = varint(data, at, end)
        length, at = varint(data, at, end)
        if shared > len(key) or at + own + length > end:
            raise ValueError(f"an entry at {at} lies outside its block")
        key = key[:shared] + data[at : at + own]
        at += own + length
        yield key, data[at - length : at]


def _numbers(data: bytes) -> dict[int, int]:
    return {n: value for n, kind, _, value in fields(data, 0, len(data)) if kind == VARINT}


def _entry(data: bytes) -> Entry:
    numbers = _numbers(data)
    sizes: Sizes = ()
    for number, kind, begin, stop in fields(data, 0, len(data)):
        if number == 2 and kind == BYTES:
            sizes = read_shape(data, (begin, stop)) or ()
    return Entry(
        dtype_name(numbers.get(1, 0)),
        sizes,
        numbers.get(3, 0),
        numbers.get(4, 0),
        numbers.get(5, 0),
    )
