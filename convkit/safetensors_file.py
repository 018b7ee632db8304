"""The safetensors byte layout: headers read and checked, files written front to back.

A file is an 8-byte little-endian length N, N bytes of JSON, then the tensors' bytes without a gap.
The JSON maps a tensor's name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted
from the end of the JSON; `__metadata__` maps strings to strings. The JSON may end in spaces.

Source: README of huggingface/safetensors, section "Format"; the 100 MB limit on N is the reference
reader's (`MAX_HEADER_SIZE` in safetensors/src/tensor.rs).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from convkit.checkpoint.ranges import RangeReader
from convkit.errors import ModelError

_LENGTH_BYTES = 8
_HEADER_LIMIT_BYTES = 100_000_000
_LONGEST_DTYPE = "F8_E5M2FNUZ"

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per element of each dtype; sub-byte dtypes are absent."""


class StoredTensor(Protocol):
    """A tensor at rest whose bytes are read in pieces."""

    @property
    def name(self) -> str:
        """Its name in the checkpoint."""

    @property
    def dtype(self) -> str:
        """Its dtype in the spelling of safetensors (`F32`)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; `()` for a scalar."""

    @property
    def byte_count(self) -> int:
        """Bytes it holds."""

    def read(self, begin: int, end: int) -> memoryview:
        """Its bytes from `begin` to `end`, row-major, little-endian. Threads may call it."""


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a safetensors file; `begin` and `end` count from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    read_at: Callable[[int, int], bytearray]

    @property
    def byte_count(self) -> int:
        """Bytes it holds."""
        return self.end - self.begin

    def read(self, begin: int, end: int) -> memoryview:
        """Its bytes from `begin` to `end`. Raises ModelError where the file has become shorter."""
        return memoryview(self.read_at(self.begin + begin, end - begin))


class SafetensorsReader:
    """An open safetensors file. A context manager.

    Attributes:
        tensors: in the order of their bytes.
        metadata: the strings under `__metadata__`.

    Raises:
        ModelError: the file is missing, truncated, or its header does not describe its bytes.
    """

    def __init__(self, path: Path) -> None:
        with ExitStack() as opening:
            file = opening.enter_context(RangeReader(path))
            size = path.stat().st_size
            header, data_begin = _read_header(path, file, size)
            self.metadata = _metadata_of(header)
            self.tensors = _tensors_of(path, header, data_begin, file.read)
            _check_spans(path, self.tensors, data_begin, size)
            self._open = opening.pop_all()

    def __enter__(self) -> SafetensorsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _read_header(path: Path, file: RangeReader, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(0, min(size, _LENGTH_BYTES)), "little")
    if not size:
        raise ModelError(f"{path} is empty (0 bytes).")
    if size < _LENGTH_BYTES + 2 or length > min(size - _LENGTH_BYTES, _HEADER_LIMIT_BYTES):
        raise ModelError(
            f"{path} is not a safetensors file, or it is truncated ({size} bytes).",
            why=f"Its first 8 bytes announce a header of {length} bytes.",
            hint="Download or save it again.",
        )
    try:
        header = json.loads(file.read(_LENGTH_BYTES, length))
    except (ValueError, RecursionError) as cause:
        raise ModelError(
            f"{path} is not a safetensors file.", why=f"Its header is not JSON: {cause}"
        ) from cause
    if not isinstance(header, dict):
        raise ModelError(f"{path} is not a safetensors file.", why="Its header is no JSON object.")
    return header, _LENGTH_BYTES + length


def _metadata_of(header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", None) or {}
    return {str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}


def _tensors_of(
    path: Path,
    header: Mapping[str, Any],
    data_begin: int,
    read_at: Callable[[int, int], bytearray],
) -> tuple[FileTensor, ...]:
    tensors = []
    for name, entry in header.items():
        try:
            begin, end = map(int, entry["data_offsets"])
            shape = tuple(map(int, entry["shape"]))
            dtype = str(entry["dtype"])
        except (TypeError, KeyError, ValueError) as cause:
            raise ModelError(f"{path}: the header entry of tensor '{name}' is damaged.") from cause
        if dtype in ITEM_BYTES and math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
            raise ModelError(
                f"{path}: tensor '{name}' does not have the size its header announces.",
                why=f"{dtype}{list(shape)} does not fill bytes {begin} to {end}.",
            )
        tensors.append(
            FileTensor(name, dtype, shape, data_begin + begin, data_begin + end, read_at)
        )
    return tuple(sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)))


def _check_spans(path: Path, tensors: Sequence[FileTensor], data_begin: int, size: int) -> None:
    expected = data_begin
    for tensor in tensors:
        if tensor.begin != expected or tensor.end < tensor.begin:
            raise ModelError(f"{path}: the bytes of tensor '{tensor.name}' overlap or leave a gap.")
        expected = tensor.end
    if expected != size:
        raise ModelError(
            f"{path} is truncated or damaged: it has {size} bytes, its header tells of {expected}.",
            hint="Download or save it again.",
        )


class SafetensorsWriter:
    """Writes a safetensors file front to back, dtypes decided while writing. A context manager.

    Room for the header is reserved before its content is known; the spaces the format allows at
    its end fill what is left over. So no tensor is held in memory and none is read twice.

    Args:
        path: the file to write.
        shapes: every tensor that will be written, by name.
        byte_limit: upper bound on the bytes of all tensors.
        metadata: strings for `__metadata__`.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Sequence[int]],
        *,
        byte_limit: int,
        metadata: Mapping[str, str],
    ) -> None:
        self._metadata = dict(metadata)
        self._entries: dict[str, dict[str, Any]] = {}
        longest = {
            name: _entry(_LONGEST_DTYPE, shape, byte_limit, byte_limit)
            for name, shape in shapes.items()
        }
        # Data begin at a multiple of 8, so that a mapped file can be viewed as any dtype.
        self._header_bytes = -(-len(self._header_of(longest)) // 8) * 8
        self._stream = path.open("wb")
        self._data_begin = _LENGTH_BYTES + self._header_bytes
        self._stream.seek(self._data_begin)

    @property
    def byte_count(self) -> int:
        """Bytes of tensors written so far."""
        return self._stream.tell() - self._data_begin

    def write(
        self, name: str, dtype: str, shape: Sequence[int], pieces: Iterable[memoryview]
    ) -> None:
        """Writes one tensor. Where `pieces` raises, nothing of it is kept."""
        begin = self.byte_count
        try:
            for piece in pieces:
                self._stream.write(piece)
        except BaseException:
            self._stream.seek(self._data_begin + begin)
            self._stream.truncate()
            raise
        self._entries[name] = _entry(dtype, shape, begin, self.byte_count)

    def _header_of(self, entries: Mapping[str, Any]) -> bytes:
        document = {"__metadata__": self._metadata, **entries} if self._metadata else entries
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stream:
            if error is None:
                header = self._header_of(self._entries).ljust(self._header_bytes)
                self._stream.seek(0)
                self._stream.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)


def _entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
