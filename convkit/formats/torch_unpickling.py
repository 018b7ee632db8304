"""Reads a PyTorch pickle without running any of it: tensors become headers, objects stand-ins.

The pickle machine of the standard library runs, but each global it asks for comes from this module:
REDUCE, NEWOBJ and BUILD build stand-ins that only remember what they were given.

Source: Python's `pickletools` for the opcodes; `torch._weights_only_unpickler` for the globals that
tensors need; torch/csrc/jit/serialization/pickler.cpp, `pushStorageOfTensor`, for storage types.
"""

from __future__ import annotations

import collections
import math
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from convkit.artifact import dtype_bits
from convkit.errors import ConvkitError

_STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "int8", "QUInt8Storage": "uint8",
    "QInt32Storage": "int32", "QUInt4x2Storage": "uint4", "Float8_e4m3fnStorage": "float8_e4m3fn",
    "Float8_e5m2Storage": "float8_e5m2", "UntypedStorage": "uint8",
}  # fmt: skip
_HARMLESS = re.compile(
    r"torch\.\w*Storage|torch\.storage\.\w*Storage|torch\.(cuda\.)?\w*Tensor|torch\._utils\._rebuild_\w+"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.nn\.parameter\.Parameter|torch\.Size"
    r"|torch\.device|torch\.serialization\._get_layout"
    r"|torch\.(b?float|u?int|q?u?int|complex|float8_)\w+|torch\.(half|double|long|short|bool)"
    r"|torch\.per_\w+_(affine|symmetric)\w*|torch\.cuda\.\w*Storage"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode"
    r"|(builtins|__builtin__)\.(bytearray|set|complex)"
)
"""Globals that `torch.load(weights_only=True)` admits."""


class UnreadablePickleError(Exception):
    """The bytes are no pickle, or no pickle that PyTorch writes."""


class _Sealed:
    """What a pickle gets hold of but may not change, by BUILD, which would pass by `frozen`."""

    def __setstate__(self, state: Any) -> None:
        raise TypeError("a state for what has none")


@dataclass(frozen=True)
class TensorHeader(_Sealed):
    """What a tensor is, without its numbers; `dtype` in numpy's spelling."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Storage(_Sealed):
    """The memory that tensors lie in: its key in the file, dtype, number of elements."""

    key: str
    dtype: str
    count: int

    @property
    def size_bytes(self) -> int:
        """Bytes it takes in the file."""
        return (self.count * dtype_bits(self.dtype) + 7) // 8


@dataclass(frozen=True)
class StoredTensor(TensorHeader):
    """A tensor with the key of its storage and where in it, in elements, it begins."""

    storage: str
    offset: int


@dataclass(frozen=True)
class Unpickled:
    """What a pickle holds.

    Attributes:
        tree: nested mappings and sequences with a `StoredTensor` for each tensor.
        tensors: every distinct tensor, in file order.
        storages: by key; of differing claims about one, the largest.
        foreign: globals beyond those that tensors need, as `module.name`; code, if it were run.
    """

    tree: Any
    tensors: tuple[StoredTensor, ...]
    storages: Mapping[str, Storage]
    foreign: tuple[str, ...]

    @property
    def root_class(self) -> str:
        """Full name of the outermost object's class; empty for a plain value."""
        return self.tree.path if isinstance(self.tree, Inert) else ""


def unpickle(stream: BinaryIO, on_foreign: Callable[[str], None] | None = None) -> Unpickled:
    """Reads one pickle and leaves `stream` behind it; nothing in it is looked up or called.

    Args:
        stream: at the start of a pickle.
        on_foreign: told of each foreign global as it is met; may raise a ConvkitError to stop.

    Raises:
        UnreadablePickleError: truncated, corrupt, or tensors of no form that PyTorch writes.
    """
    reader = _InertUnpickler(stream, on_foreign)
    try:
        tree = reader.load()
    except ConvkitError:
        raise
    except Exception as cause:  # a corrupt pickle fails with nearly any exception
        raise UnreadablePickleError(f"{type(cause).__name__}: {cause}") from cause
    tensors = tuple(dict.fromkeys(reader.tensors))
    return Unpickled(tree, tensors, reader.storages, tuple(dict.fromkeys(reader.foreign)))


class Inert:
    """Stands for an object that a pickle would build; takes everything, does nothing."""

    path = ""

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        """Keeps the arguments."""
        made = super().__new__(cls)
        made.__dict__["arguments"] = args
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes everything."""

    def __call__(self, *args: Any, **_: Any) -> Inert:
        """A further stand-in."""
        return Inert(*args)

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", []).append(value)

    def append(self, value: Any) -> None:
        """Keeps a list item."""
        self.__dict__.setdefault("items", []).append(value)

    def extend(self, values: Sequence[Any]) -> None:
        """Keeps list items."""
        self.__dict__.setdefault("items", []).extend(values)


@dataclass(frozen=True)
class _StorageType(_Sealed):
    name: str


@dataclass(frozen=True)
class _Builder(_Sealed):
    build: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.build(*arguments)


class _InertUnpickler(pickle.Unpickler):
    """Hands out stand-ins; what it hands out, a pickle cannot write to."""

    def __init__(self, stream: BinaryIO, on_foreign: Callable[[str], None] | None) -> None:
        # latin-1 reads every string of Python 2
        super().__init__(stream, encoding="latin-1")
        self.tensors: list[StoredTensor] = []
        self.storages: dict[str, Storage] = {}
        self.foreign: list[str] = []
        self._on_foreign = on_foreign
        self._builders: Mapping[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_with_dtype,
            "torch._utils._rebuild_qtensor": self._tensor,
            "torch._utils._rebuild_parameter": self._first,
            "torch._utils._rebuild_parameter_with_state": self._first,
            "torch._tensor._rebuild_from_type_v2": self._through,
            "torch.Size": self._tuple,
        }

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if not _HARMLESS.fullmatch(full):
            if self._on_foreign is not None:
                self._on_foreign(full)
            self.foreign.append(full)
        elif full in self._builders:
            return _Builder(self._builders[full])
        elif name.endswith("Storage"):
            return _StorageType(name)
        elif module == "torch" and dtype_bits(name):
            return name
        elif module == "collections":
            return collections.OrderedDict
        return type(name, (Inert,), {"path": full})

    def persistent_load(self, saved: Any) -> Any:
        if not isinstance(saved, tuple) or not saved:
            raise ValueError(f"an unknown reference {saved!r:.60}")
        kind = saved[0].decode() if isinstance(saved[0], bytes) else saved[0]
        if kind == "module":  # legacy files: the class of a module, with its source text
            return saved[1]
        made, key, _, count = saved[1:5]
        dtype = _STORAGE_DTYPES.get(made.name) if isinstance(made, _StorageType) else None
        if kind != "storage" or dtype is None or not isinstance(key, str):
            raise ValueError(f"an unknown storage {saved!r:.200}")
        storage = Storage(key, dtype, _whole(count))
        known = self.storages.get(key, storage)
        self.storages[key] = max(known, storage, key=lambda each: each.size_bytes)
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, *_: Any) -> StoredTensor:
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without storage")
        return self._kept(storage.dtype, storage, offset, size)

    def _tensor_with_dtype(self, storage: Any, offset: Any, size: Any, *more: Any) -> StoredTensor:
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without storage")
        dtype = more[3] if len(more) > 3 and isinstance(more[3], str) else storage.dtype
        return self._kept(dtype, storage, offset, size)

    def _kept(self, dtype: str, storage: Storage, offset: Any, size: Any) -> StoredTensor:
        shape = tuple(_whole(each) for each in size)
        self.tensors.append(StoredTensor(dtype, shape, storage.key, _whole(offset)))
        return self.tensors[-1]

    def _first(self, value: Any, *_: Any) -> Any:
        return value

    def _through(self, build: Any, _type: Any, arguments: Sequence[Any], *_: Any) -> Any:
        return build(*arguments)

    def _tuple(self, items: Sequence[Any] = ()) -> tuple[Any, ...]:
        return tuple(items)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r:.60} is no size")
    return value
