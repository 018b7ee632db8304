"""Reads the tensors named in a TorchScript pickle; no class in it is looked up, no call is made.

The pickle machine of the standard library runs with inert stand-ins: every global becomes a
placeholder that only remembers its name, so REDUCE, NEWOBJ and BUILD build placeholders.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass
from typing import Any

from convkit.artifact import dtype_bits

_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "QInt8Storage": "int8", "QUInt8Storage": "uint8", "QInt32Storage": "int32",
    "QUInt4x2Storage": "uint4", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "Float8_e4m3fnStorage": "float8_e4m3fn",
    "Float8_e5m2Storage": "float8_e5m2",
}  # fmt: skip
"""Source: PyTorch, torch/csrc/jit/serialization/pickler.cpp, `pushStorageOfTensor`."""

_TENSOR_BUILDERS = ("_rebuild_tensor_v2", "_rebuild_qtensor", "_rebuild_tensor")


class UnreadablePickleError(Exception):
    """The bytes are no pickle that a TorchScript writer makes."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor by where it is stored: storage key, dtype, offset in elements, shape."""

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    storage_elements: int

    @property
    def element_count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def storage_bytes(self) -> int:
        """Bytes the whole storage takes."""
        return (self.storage_elements * dtype_bits(self.dtype) + 7) // 8


def read_tensors(data: bytes) -> tuple[str, list[StoredTensor]]:
    """The outermost object's class name, and every distinct tensor, in file order.

    Raises:
        UnreadablePickleError: truncated, corrupt, or not of the shape TorchScript writes.
    """
    reader = _InertUnpickler(io.BytesIO(data))
    try:
        root = reader.load()
    except Exception as cause:  # a corrupt pickle fails with nearly any exception
        raise UnreadablePickleError(f"{type(cause).__name__}: {cause}") from cause
    return getattr(type(root), "path", ""), list(dict.fromkeys(reader.tensors))


class _Placeholder:
    """Stands for an object of a class that is never looked up."""

    path = ""

    def __new__(cls, *_: Any) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Takes the items of dictionary classes and forgets them."""


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="utf-8")
        self.tensors: list[StoredTensor] = []

    def find_class(self, module: str, name: str) -> Any:
        if name in _TENSOR_BUILDERS and module == "torch._utils":
            return self._tensor
        if name.endswith("Storage") and module in ("torch", "torch.storage"):
            return _StorageType(name)
        return type(name, (_Placeholder,), {"path": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, element_count = pid
        dtype = _DTYPES.get(storage_type.name) if isinstance(storage_type, _StorageType) else None
        if kind != "storage" or dtype is None or not isinstance(key, str):
            raise ValueError(f"unknown storage {pid!r}")
        return _Storage(key, dtype, _whole(element_count))

    def _tensor(self, storage: Any, offset: Any, shape: Any, *_: Any) -> StoredTensor:
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor without storage")
        sizes = tuple(_whole(size) for size in shape)
        tensor = StoredTensor(storage.key, storage.dtype, _whole(offset), sizes, storage.elements)
        self.tensors.append(tensor)
        return tensor


@dataclass(frozen=True)
class _StorageType:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    elements: int


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value
