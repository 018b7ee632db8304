"""GGUF files read without trusting them: metadata, tensors, the parts of a split model.

A file is `GGUF`, a version, two counts, the metadata (key, kind, value), the tensors (name, sizes,
type, offset), then, from a multiple of the alignment on, the tensors' bytes. Every count, length
and offset is held against the bytes that are there before it is used.

Source: ggml, `docs/gguf.md`; of split models, llama.cpp, `tools/gguf-split/README.md`.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convkit.errors import ModelError, UnsupportedError
from convkit.ggml.magic import MAGIC
from convkit.ggml.types import BY_NUMBER, GgmlType
from convkit.ggml.values import ARRAY, SCALARS, STRING, Strings, Value

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

_LEAST_VALUE_BYTES = 8 + 1 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8
_GREATEST_NESTING = 4
_GREATEST_ALIGNMENT = 1 << 20
_GREATEST_RANK = 4
"""Source: `GGML_MAX_DIMS` in ggml.h."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class TensorHeader:
    """A tensor in a file.

    Attributes:
        name: its name.
        shape: row-major, as in PyTorch; files hold the sizes in reverse.
        kind: its type.
        path: the file it lies in; parts of a split model are files of their own.
        begin: where its bytes begin in that file.
    """

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    path: Path
    begin: int

    @property
    def element_count(self) -> int:
        """Elements it holds."""
        return math.prod(self.shape)

    @property
    def byte_count(self) -> int:
        """Bytes it fills."""
        return self.kind.row_bytes(self.element_count)


@dataclass(frozen=True)
class Header:
    """What a model's headers say.

    Attributes:
        path: the file, the first part of a split model.
        version: of the format.
        alignment: tensors begin at multiples of it.
        metadata: key -> value.
        tensors: in the order of the file, of all parts.
        parts: the files, `path` first.
    """

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorHeader, ...]
    parts: tuple[Path, ...]

    def get(self, key: str, default: Any = None) -> Any:
        """A value as Python has it; `ARCH` in the key stands for the architecture."""
        value = self.metadata.get(key.replace("ARCH", self.architecture))
        return default if value is None else value.plain()

    def whole(self, key: str, default: int = 0) -> int:
        """A whole number; `default` where the value is another, or missing."""
        value = self.get(key, default)
        return value if isinstance(value, int) else default

    @property
    def architecture(self) -> str:
        """`llama`, `gemma2` ...; "" where the file does not say."""
        value = self.metadata.get("general.architecture")
        return str(value.content) if value else ""


def read_header(path: Path) -> Header:
    """The headers of a model, of all its parts where it is split.

    Raises:
        ModelError: missing, truncated, damaged, or a part is missing.
        UnsupportedError: a version or tensor type that is not known.
    """
    first = _read_file(path)
    count = first.whole("split.count")
    number = first.whole("split.no")
    if count < 2:
        return first
    found = _PART.search(path.name)
    if not found or number != 0:
        raise _part_alone(path, number, count)
    stem = path.name[: found.start()]
    parts = [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} of its {count} parts: {missing[0]} is missing.",
            why=[f"also missing: {name}" for name in missing[1:4]],
            hint="Copy all parts into one folder.",
        )
    tensors = [*first.tensors, *(t for part in parts[1:] for t in _read_file(part).tensors)]
    announced = first.whole("split.tensors.count", len(tensors))
    if announced != len(tensors):
        raise ModelError(f"{path}: its parts hold {len(tensors)} tensors, not {announced}.")
    _check_names(path, tensors)
    return Header(
        path, first.version, first.alignment, first.metadata, tuple(tensors), tuple(parts)
    )


def _part_alone(path: Path, number: int, count: int) -> ModelError:
    """A part that is not the first, or whose name does not tell where the others are."""
    found = _PART.search(path.name)
    stem = path.name[: found.start()] if found else path.stem
    first, own = (path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in (1, number + 1))
    what = f"{path} is part {number + 1} of a model in {count} parts."
    if found:
        return ModelError(what, hint=f"Name the first part:  {first}")
    return ModelError(
        what,
        why="Its name does not say so, and the other parts are found by their names.",
        hint=f"Call all parts as llama.cpp does:  mv {path} {own}",
    )


def _read_file(path: Path) -> Header:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if size == 0:
                raise ModelError(f"{path} is empty (0 bytes).")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Parser(path, content, size).header()
    except OSError as cause:
        raise ModelError(f"{path} cannot be read.", why=cause.strerror or str(cause)) from cause


class _Parser:
    """Walks a file front to back; `_at` never passes the end."""

    def __init__(self, path: Path, content: mmap.mmap, size: int) -> None:
        self._path = path
        self._content = content
        self._size = size
        self._at = 0

    def header(self) -> Header:
        if self._take(4, "its magic") != MAGIC:
            raise ModelError(f"{self._path} is not a GGUF file: it does not begin with 'GGUF'.")
        version = self._version()
        tensor_count = self._count("tensors", _LEAST_TENSOR_BYTES)
        value_count = self._count("metadata values", _LEAST_VALUE_BYTES)
        metadata: dict[str, Value] = {}
        for _ in range(value_count):
            key = self._string("a metadata key")
            if key in metadata:
                raise self._damaged(f"it has the key '{key}' twice")
            metadata[key] = self._value(self._number("<I", "a kind"), key, 0)
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = self._alignment(metadata)
        data_begin = -(-self._at // alignment) * alignment
        tensors = tuple(self._placed(info, data_begin, alignment) for info in infos)
        _check_names(self._path, tensors)
        return Header(self._path, version, alignment, metadata, tensors, (self._path,))

    def _version(self) -> int:
        version = int(self._number("<I", "its version"))
        if version in VERSIONS:
            return version
        if version and not version & 0xFFFF:
            raise UnsupportedError(
                f"{self._path} is a big-endian GGUF file, which is not read.",
                hint=f"Turn a copy around, in place:  gguf-convert-endian {self._path} little   "
                "(pip install gguf)",
            )
        known = " and ".join(map(str, VERSIONS))
        raise UnsupportedError(
            f"{self._path} is GGUF version {version}; versions {known} are read.",
            hint="Convert it again with a current llama.cpp.",
        )

    def _count(self, what: str, least_bytes: int) -> int:
        count = int(self._number("<Q", f"the number of {what}"))
        if count > (self._size - self._at) // least_bytes:
            raise self._damaged(
                f"it announces {count} {what}, which {self._size} bytes cannot hold"
            )
        return count

    def _value(self, kind: int, key: str, depth: int) -> Value:
        if kind == STRING:
            return Value(STRING, self._string(f"the value of '{key}'"))
        if kind == ARRAY:
            return self._array(key, depth + 1)
        if kind not in SCALARS:
            raise self._damaged(f"'{key}' is of kind {kind}, which does not exist")
        dtype = SCALARS[kind]
        raw = self._take(dtype.itemsize, f"the value of '{key}'")
        return Value(kind, np.frombuffer(raw, dtype)[0].item())

    def _array(self, key: str, depth: int) -> Value:
        if depth > _GREATEST_NESTING:
            raise self._damaged(f"'{key}' nests arrays more than {_GREATEST_NESTING} deep")
        element = int(self._number("<I", f"the kind of '{key}'"))
        item_bytes = SCALARS[element].itemsize if element in SCALARS else 8
        count = self._count(f"elements of '{key}'", item_bytes)
        if element == STRING:
            return Value(ARRAY, self._strings(count, key), STRING)
        if element == ARRAY:
            arrays = tuple(self._array(key, depth + 1) for _ in range(count))
            return Value(ARRAY, arrays, ARRAY)
        if element not in SCALARS:
            raise self._damaged(f"'{key}' holds kind {element}, which does not exist")
        raw = self._take(count * item_bytes, f"the value of '{key}'")
        return Value(ARRAY, np.frombuffer(raw, SCALARS[element]), element)

    def _strings(self, count: int, key: str) -> Strings:
        begin = at = self._at
        content, last = self._content, self._size - 8
        read = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at > last:
                raise self._damaged(f"it ends inside '{key}'")
            at += 8 + read(content, at)[0]
        if at > self._size:
            raise self._damaged(f"it ends inside '{key}'")
        self._at = at
        return Strings(content[begin:at], count)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], GgmlType, int]:
        name = self._string("a tensor's name")
        rank = int(self._number("<I", f"the rank of '{name}'"))
        if not 1 <= rank <= _GREATEST_RANK:
            raise self._damaged(f"tensor '{name}' has {rank} dimensions")
        sizes = [int(self._number("<Q", f"the sizes of '{name}'")) for _ in range(rank)]
        number = int(self._number("<I", f"the type of '{name}'"))
        offset = int(self._number("<Q", f"the offset of '{name}'"))
        if number not in BY_NUMBER:
            raise UnsupportedError(
                f"{self._path}: tensor '{name}' is of ggml type {number}, which is not known.",
                hint="pip install --upgrade convkit-ml",
            )
        kind = BY_NUMBER[number]
        if not all(sizes) or sizes[0] % kind.block_length:
            raise self._damaged(f"tensor '{name}' has sizes {sizes}, no blocks of {kind}")
        return name, tuple(reversed(sizes)), kind, offset

    def _placed(
        self, info: tuple[str, tuple[int, ...], GgmlType, int], data_begin: int, alignment: int
    ) -> TensorHeader:
        name, shape, kind, offset = info
        placed = TensorHeader(name, shape, kind, self._path, data_begin + offset)
        if offset % alignment:
            raise self._damaged(f"tensor '{name}' begins at {offset}, no multiple of {alignment}")
        if placed.begin + placed.byte_count > self._size:
            raise ModelError(
                f"{self._path} is truncated or damaged.",
                why=f"Tensor '{name}' would end at byte {placed.begin + placed.byte_count}; "
                f"the file has {self._size}.",
                hint="Download or convert it again.",
            )
        return placed

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        value = metadata.get("general.alignment")
        alignment = value.content if value else DEFAULT_ALIGNMENT
        is_whole = isinstance(alignment, int) and 8 <= alignment <= _GREATEST_ALIGNMENT
        if not is_whole or alignment & (alignment - 1):
            raise self._damaged(f"its alignment is {alignment}")
        return int(alignment)

    def _string(self, what: str) -> str:
        length = int(self._number("<Q", what))
        return self._take(length, what).decode("utf-8", "surrogateescape")

    def _number(self, layout: str, what: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout), what))[0]

    def _take(self, byte_count: int, what: str) -> bytes:
        if byte_count > self._size - self._at:
            raise self._damaged(f"it ends inside {what}")
        begin, self._at = self._at, self._at + byte_count
        return self._content[begin : self._at]

    def _damaged(self, why: str) -> ModelError:
        return ModelError(
            f"{self._path} is truncated or damaged ({self._size} bytes): {why}.",
            hint="Download or convert it again.",
        )


def _check_names(path: Path, tensors: Iterable[TensorHeader]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ModelError(f"{path} holds the tensor '{tensor.name}' twice.")
        seen.add(tensor.name)
