"""Reads what a PyTorch pickle holds (tensor headers) without running any of it.

Source: Python's `pickletools` for the opcodes; `torch.serialization` for the two containers
(a zip archive with `data.pkl`, and the legacy run of five pickles followed by raw storages) and
`torch._weights_only_unpickler` for the globals that tensors need.
"""

from __future__ import annotations

import collections
import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from convkit.artifact import dtype_bits
from convkit.errors import ModelError, UnsafeError

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a legacy file: the number 0x1950A86A20F9469CFC6C.

Source: `torch.serialization.MAGIC_NUMBER`.
"""

_STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "int8", "QUInt8Storage": "uint8",
    "QInt32Storage": "int32", "UntypedStorage": "uint8",
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

_DAMAGE = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError,
    MemoryError, OverflowError, RecursionError, UnicodeDecodeError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """What a tensor is, without its numbers; `dtype` in numpy's spelling."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Pickled:
    """What a file's pickle holds.

    Attributes:
        tree: nested mappings and sequences with a `TensorHeader` for each tensor.
        foreign: globals beyond those that tensors need, as `module.name`; code, if it were run.
    """

    tree: Any
    foreign: tuple[str, ...]


def is_zip_pickle(path: Path) -> bool:
    """Whether a file is the zip archive that `torch.save` writes (and not TorchScript)."""
    names = _zip_names(path)
    return any(name.endswith("/data.pkl") for name in names) and not any(
        name.endswith("/constants.pkl") for name in names
    )


def is_pickle(path: Path) -> bool:
    """Whether a file starts like a pickle of protocol 2 to 5; legacy `torch.save` files do too."""
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError:
        return False
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with `code/` and `constants.pkl`."""
    return any(name.endswith("/constants.pkl") for name in _zip_names(path))


def read_pickled(path: Path, *, trust: bool) -> Pickled:
    """Tensor headers in a zip or legacy `torch.save` file; nothing in it is run.

    Args:
        path: the file.
        trust: whether foreign globals are tolerated; they are still not run, only listed.

    Raises:
        UnsafeError: the pickle refers to code and `trust` is false; names the first global.
        ModelError: the file is damaged.
    """
    with path.open("rb") as stream:
        return read_pickled_stream(stream, path, trust=trust)


def read_pickled_stream(stream: BinaryIO, path: Path, *, trust: bool = False) -> Pickled:
    """The same for an open stream, as of a file inside an archive; `path` is for messages.

    Raises:
        UnsafeError, ModelError: see `read_pickled`.
    """
    try:
        if zipfile.is_zipfile(stream):
            stream.seek(0)
            return _read_zip(path, stream, trust)
        stream.seek(0)
        if stream.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
            return _read_legacy(path, stream, trust)
        stream.seek(0)
        return _unpickle(stream, path, trust)[0]
    except zipfile.BadZipFile as cause:
        raise ModelError(
            f"{path} is damaged: its zip archive cannot be read.", why=str(cause)
        ) from cause
    except _DAMAGE as cause:
        size = path.stat().st_size
        raise ModelError(
            f"{path} is damaged: its pickle cannot be read.",
            why=f"The file has {size} bytes; reading stopped with {type(cause).__name__}: {cause}",
            hint="Copy or download it again, and compare the sizes.",
            size_bytes=size,
        ) from cause


def nested_states(tree: Any, prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """Dotted path -> mapping for each mapping in `tree` that holds tensors directly."""
    found: dict[str, Mapping[str, Any]] = {}
    if not isinstance(tree, Mapping):
        return found
    if any(isinstance(value, TensorHeader) for value in tree.values()):
        found[prefix] = tree
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found.update(nested_states(value, f"{prefix}.{key}" if prefix else str(key)))
    return found


def tensors_in(tree: Any) -> list[TensorHeader]:
    """Every tensor header in a tree, inert objects included."""
    found: list[TensorHeader] = []
    pending = [tree]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, TensorHeader):
            found.append(node)
        elif isinstance(node, Mapping):
            pending.extend(node.values())
        elif isinstance(node, list | tuple | set):
            pending.extend(node)
        elif isinstance(node, _Inert):
            pending.append(vars(node))
    return found


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    count: int


class _Inert:
    """Stands for an object that a pickle would build; takes everything, does nothing."""

    def __new__(cls, *args: Any, **_: Any) -> _Inert:
        made = super().__new__(cls)
        made.__dict__["arguments"] = args
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes everything."""

    def __call__(self, *args: Any, **_: Any) -> _Inert:
        return _Inert(*args)

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


class _HeaderUnpickler(pickle.Unpickler):
    """Builds headers; each global it hands out is of this module, never the real one."""

    def __init__(self, stream: BinaryIO, path: Path, trust: bool) -> None:
        super().__init__(stream, encoding="latin-1")
        self.path = path
        self.trust = trust
        self.foreign: list[str] = []
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if not _HARMLESS.fullmatch(full):
            if not self.trust:
                _refuse(self.path, full)
            self.foreign.append(full)
            return _Inert
        return _REBUILDERS.get(full) or _stand_in(module, name)

    def persistent_load(self, saved: Any) -> Any:
        if not isinstance(saved, tuple) or not saved:
            raise ValueError(f"an unknown reference {saved!r:.60}")
        kind = saved[0].decode() if isinstance(saved[0], bytes) else saved[0]
        if kind == "module":
            return saved[1]
        dtype, key, _, count = saved[1:5]
        storage = _Storage(str(key), dtype if isinstance(dtype, str) else "uint8", int(count))
        return self.storages.setdefault(storage.key, storage)


def _unpickle(stream: BinaryIO, path: Path, trust: bool) -> tuple[Pickled, dict[str, _Storage]]:
    reader = _HeaderUnpickler(stream, path, trust)
    tree = reader.load()
    return Pickled(tree, tuple(dict.fromkeys(reader.foreign))), reader.storages


def _refuse(path: Path, name: str) -> NoReturn:
    raise UnsafeError(
        f"{path} is a pickle with code: it refers to {name}.",
        why="Loading it would run code from the file. Nothing of it was run.",
        hint=(
            "Save only the weights (torch.save(model.state_dict(), ...)) and name the network:  "
            "convkit convert package.module:factory --weights FILE\n"
            "or, if you trust where the file comes from:  --trust"
        ),
        found=name,
    )


def _stand_in(module: str, name: str) -> Any:
    if name.endswith("Storage"):
        return _STORAGE_DTYPES.get(name, "uint8")
    if module == "torch" and name.replace("_", "").isalnum() and dtype_bits(name):
        return name
    if module == "collections":
        return collections.OrderedDict
    return _Inert


def _header(storage: Any, _offset: int, size: Sequence[int], *_: Any) -> TensorHeader:
    return TensorHeader(storage.dtype, tuple(int(n) for n in size))


def _header_with_dtype(storage: Any, _offset: int, size: Sequence[int], *more: Any) -> TensorHeader:
    dtype = more[3] if len(more) > 3 and isinstance(more[3], str) else storage.dtype
    return TensorHeader(dtype, tuple(int(n) for n in size))


def _first(value: Any, *_: Any) -> Any:
    return value


def _through(build: Callable[..., Any], _type: Any, arguments: Sequence[Any], *_: Any) -> Any:
    return build(*arguments)


def _tuple(items: Sequence[Any] = ()) -> tuple[Any, ...]:
    return tuple(items)


_REBUILDERS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _header,
    "torch._utils._rebuild_tensor_v2": _header,
    "torch._utils._rebuild_tensor_v3": _header_with_dtype,
    "torch._utils._rebuild_qtensor": _header,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _through,
    "torch.Size": _tuple,
}


def _read_zip(path: Path, stream: BinaryIO, trust: bool) -> Pickled:
    with zipfile.ZipFile(stream) as archive:
        entry = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if entry is None:
            raise ModelError(
                f"{path} is a zip archive without a PyTorch pickle.",
                why=f"It holds {', '.join(archive.namelist()[:5]) or 'nothing'}.",
            )
        pickled, storages = _unpickle(io.BytesIO(archive.read(entry)), path, trust)
        root = entry.removesuffix("data.pkl")
        sizes = {item.filename: item.file_size for item in archive.infolist()}
    for storage in storages.values():
        wanted = storage.count * dtype_bits(storage.dtype) // 8
        there = sizes.get(f"{root}data/{storage.key}", -1)
        if there < wanted:
            raise ModelError(
                f"{path} is incomplete: the data of storage {storage.key} are missing or short.",
                why=f"It needs {wanted} bytes, the archive has {max(there, 0)}.",
            )
    return pickled


def _read_legacy(path: Path, stream: BinaryIO, trust: bool) -> Pickled:
    for _ in range(2):  # the protocol version and a word on the machine
        _unpickle(stream, path, trust)
    pickled, storages = _unpickle(stream, path, trust)
    keys = [str(key) for key in _unpickle(stream, path, trust)[0].tree]
    # Each storage is its element count in 8 bytes, then its data.
    wanted = stream.tell() + sum(
        8 + storages[key].count * dtype_bits(storages[key].dtype) // 8
        for key in keys
        if key in storages
    )
    size = stream.seek(0, io.SEEK_END)
    if size < wanted:
        raise ModelError(
            f"{path} is truncated: it has {size} bytes, its header promises {wanted}.",
            hint="Copy or download it again.",
            size_bytes=size,
            expected_bytes=wanted,
        )
    return pickled


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return []
