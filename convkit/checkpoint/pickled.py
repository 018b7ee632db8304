"""The tensors of a `.bin` file that `torch.save` wrote, read by position like those of safetensors.

Such a file is a zip archive of uncompressed records: a pickle that says where each tensor lies, and
the bytes of each storage. The pickle is read here without PyTorch, and only if every global it asks
for is one that state dicts need; each stands for a record of its arguments. Any other file goes
through PyTorch's own weights-only loading.

Source: `torch.serialization` (`_save`, `_load`) and `torch._utils._rebuild_tensor_v2`; the zip
layout is PKWARE's APPNOTE 4.3.7 (local file header).
"""

from __future__ import annotations

import collections
import io
import itertools
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from convkit.checkpoint.ranges import RangeReader
from convkit.errors import ConvkitError, ModelError, UnsafeError, UnsupportedError
from convkit.safetensors_file import ITEM_BYTES, StoredTensor

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "Float8_e4m3fnStorage": "F8_E4M3", "Float8_e5m2Storage": "F8_E5M2", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}  # fmt: skip
_TORCH_DTYPES = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16",
    "torch.bfloat16": "BF16", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8",
    "torch.uint8": "U8", "torch.bool": "BOOL", "torch.complex64": "C64",
}  # fmt: skip
_LARGEST_PICKLE_BYTES = 256 << 20

Pickled = tuple[tuple[StoredTensor, ...], dict[str, str]]
"""Every tensor once, in file order, and further names of shared ones -> the name it is kept under.
"""


class _OtherwiseError(Exception):
    """The file is not of the plain kind that is read here."""


def open_pickled(path: Path, opened: ExitStack, *, trust: bool = False) -> Pickled:
    """The tensors of a `.bin` file; names that share one tensor are told.

    Args:
        path: the file.
        opened: takes what has to be closed.
        trust: the user vouches for code in the file.

    Raises:
        ModelError: the file cannot be read.
        UnsafeError: it holds more than weights, without trust; nothing of it was executed.
        UnsupportedError: a tensor is of a kind that safetensors has no word for.
    """
    try:
        return _once(_read_by_position(path, opened))
    except ConvkitError:
        raise
    except Exception:  # damage to an archive or a pickle shows as nearly any exception
        return _once(_load_by_torch(path, trust=trust))


def _once(named: Iterable[tuple[str, Any, StoredTensor]]) -> Pickled:
    """Names that share storage, offset, shape and strides are one tensor; the first name is kept.

    Modules list the parameter itself before those tied to it.
    """
    tensors: list[StoredTensor] = []
    kept: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for name, place, tensor in named:
        if tensor.byte_count and place in kept:
            aliases[name] = kept[place]
        else:
            kept[place] = name
            tensors.append(tensor)
    return tuple(tensors), aliases


class _Sealed:
    """What a pickle gets hold of but may not change."""

    def __setstate__(self, state: Any) -> NoReturn:
        raise _OtherwiseError


@dataclass(frozen=True)
class _Storage(_Sealed):
    key: str
    dtype: str


@dataclass(frozen=True)
class _View(_Sealed):
    """A tensor as the pickle tells it: elements of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie in row-major order without gaps."""
        following = itertools.accumulate(self.shape[:0:-1], int.__mul__, initial=1)
        pairs = zip(self.shape[::-1], self.strides[::-1], following, strict=False)
        return all(size == 1 or stride == wanted for size, stride, wanted in pairs)

    @property
    def reach(self) -> int:
        """Elements of the storage from the first to the last of its own."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True)
class _Builder(_Sealed):
    build: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.build(*arguments)


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise _OtherwiseError
    if any(type(number) is not int or number < 0 for number in numbers):
        raise _OtherwiseError
    return _View(storage, offset, tuple(shape), tuple(strides))


def _first(value: Any, *_: Any) -> Any:
    return value


_GLOBALS: Mapping[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Builder(_view),
    ("torch._utils", "_rebuild_parameter"): _Builder(_first),
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


class _StateUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise _OtherwiseError from None

    def persistent_load(self, saved: Any) -> _Storage:
        kind, dtype, key = saved[:3]
        if kind != "storage" or dtype not in ITEM_BYTES or not isinstance(key, str):
            raise _OtherwiseError
        return _Storage(key, dtype)


@dataclass(frozen=True)
class _PlacedTensor:
    """A tensor in a file, by position; one with gaps or turned around is read whole."""

    name: str
    dtype: str
    view: _View
    begin: int
    file: RangeReader

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape

    @property
    def byte_count(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def read(self, begin: int, end: int) -> memoryview:
        if self.view.is_contiguous:
            return memoryview(self.file.read(self.begin + begin, end - begin))
        import numpy as np

        item = ITEM_BYTES[self.dtype]
        content = self.file.read(self.begin, self.view.reach * item)
        elements = np.frombuffer(content, np.dtype((np.void, item)))
        strides = tuple(stride * item for stride in self.view.strides)
        spread = np.lib.stride_tricks.as_strided(elements, self.shape, strides)
        return memoryview(np.ascontiguousarray(spread).tobytes())[begin:end]


def _read_by_position(path: Path, opened: ExitStack) -> Iterable[tuple[str, Any, StoredTensor]]:
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
        state, root = _state_of(archive, records)
    file = opened.enter_context(RangeReader(path))
    placed: list[tuple[str, Any, StoredTensor]] = []
    for name, view in state.items():
        if not isinstance(view, _View):
            continue
        record = records.get(f"{root}data/{view.storage.key}")
        item = ITEM_BYTES[view.storage.dtype]
        if record is None or record.compress_type != zipfile.ZIP_STORED:
            raise _OtherwiseError
        if (view.offset + view.reach) * item > record.file_size:
            raise ModelError(
                f"{path} is damaged: the bytes of tensor '{name}' are missing.",
                hint="Copy or download it again.",
            )
        begin = _data_begin(file, record) + view.offset * item
        placed.append(
            (str(name), view, _PlacedTensor(str(name), view.storage.dtype, view, begin, file))
        )
    return placed


def _state_of(
    archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo]
) -> tuple[Mapping[Any, Any], str]:
    """What the pickle holds, and the folder inside the archive where everything lies."""
    entry = next((name for name in records if name.endswith("/data.pkl")), "")
    root = entry.removesuffix("data.pkl")
    if not entry or records[entry].file_size > _LARGEST_PICKLE_BYTES:
        raise _OtherwiseError
    if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
        raise _OtherwiseError
    state = _StateUnpickler(io.BytesIO(archive.read(entry))).load()
    if not isinstance(state, Mapping):
        raise _OtherwiseError
    return state, root


def _data_begin(file: RangeReader, record: zipfile.ZipInfo) -> int:
    """Where a record's data begin: behind its header of 30 bytes, its name and its extra field."""
    name_length, extra_length = struct.unpack("<HH", file.read(record.header_offset + 26, 4))
    return int(record.header_offset + 30 + name_length + extra_length)


@dataclass(frozen=True)
class _LoadedTensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    byte_count: int
    data: Callable[[], memoryview]

    def read(self, begin: int, end: int) -> memoryview:
        return self.data()[begin:end]


def _load_by_torch(path: Path, *, trust: bool) -> Iterable[tuple[str, Any, StoredTensor]]:
    for name, value in _load_weights(path, trust=trust).items():
        storage = value.untyped_storage().data_ptr()
        place = (storage, value.storage_offset(), value.shape, value.stride())
        yield name, place, _loaded(path, name, value)


def _loaded(path: Path, name: str, value: Any) -> StoredTensor:
    dtype = _TORCH_DTYPES.get(str(value.dtype))
    if dtype is None or str(value.layout) != "torch.strided":
        raise UnsupportedError(
            f"{path}: safetensors cannot hold tensor '{name}' ({value.layout}, {value.dtype})."
        )

    def data() -> memoryview:
        import torch

        flat = value.detach().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy()).cast("B")

    size = value.numel() * value.element_size()
    return _LoadedTensor(name, dtype, tuple(value.shape), size, data)


def _load_weights(path: Path, *, trust: bool) -> dict[str, Any]:
    import torch

    def load(mmap: bool) -> Any:
        return torch.load(path, map_location="cpu", weights_only=not trust, mmap=mmap)

    try:
        try:
            state = load(mmap=True)
        except RuntimeError as cause:
            if "mmap can only be used" not in str(cause):
                raise
            state = load(mmap=False)  # the older, non-zip file layout
    except pickle.UnpicklingError as cause:
        if "Weights only load failed" in str(cause):
            raise UnsafeError(
                f"{path} holds more than weights; loading it could run code, so it was refused.",
                hint="Have its author save it as safetensors.",
            ) from cause
        raise ModelError(f"{path} is not a PyTorch weights file.", why=str(cause)) from cause
    except Exception as cause:
        reason = str(cause).splitlines()
        raise ModelError(
            f"{path} cannot be read as PyTorch weights ({path.stat().st_size} bytes).",
            why=reason[0] if reason else type(cause).__name__,
        ) from cause
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds a {type(state).__name__}, not weights by name.")
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
