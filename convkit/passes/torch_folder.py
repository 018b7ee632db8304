"""The weights of a Hugging Face folder, file by file, each tensor read in pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convkit.errors import ModelError, UnsafeError, UnsupportedError
from convkit.safetensors_file import SafetensorsReader, StoredTensor

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_PREFERRED = (_SINGLE_FILES[0], _INDEXES[0], _SINGLE_FILES[1], _INDEXES[1])

_TORCH_DTYPES = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16",
    "torch.bfloat16": "BF16", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8",
    "torch.uint8": "U8", "torch.bool": "BOOL", "torch.complex64": "C64",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """Which files of a folder hold its weights.

    Attributes:
        folder: the folder.
        shards: the weights files, in the order of the index.
        index: the index beside them; None for a single file.
    """

    folder: Path
    shards: tuple[Path, ...]
    index: Path | None

    def byte_count(self) -> int:
        """Bytes of all shards."""
        return sum(shard.stat().st_size for shard in self.shards)


@dataclass(frozen=True)
class Shard:
    """The opened tensors of one weights file.

    Attributes:
        tensors: every tensor once, in file order.
        aliases: a further name of a tensor that several names share -> the name it is kept under.
    """

    tensors: tuple[StoredTensor, ...]
    aliases: dict[str, str]


def find_checkpoint(folder: Path) -> Checkpoint:
    """The weights of a Hugging Face folder: safetensors where there are any, else `.bin`.

    Raises:
        UnsupportedError: it is no Hugging Face folder with PyTorch weights.
        ModelError: the index is damaged or names a file that is missing.
        UnsafeError: the index names a file outside the folder.
    """
    if not (folder / "config.json").is_file():
        raise UnsupportedError(
            f"{folder} is not a Hugging Face folder (no config.json in it).",
            why="PyTorch weights are lowered in folders that hold config.json and weights.",
            hint="Lower it on the exported graph instead:  convkit convert MODEL --to onnx --fp16",
        )
    for name in _PREFERRED:
        if (folder / name).is_file():
            if name in _INDEXES:
                return _from_index(folder, folder / name)
            return Checkpoint(folder, (folder / name,), None)
    raise ModelError(
        f"{folder} holds no PyTorch weights.", why=f"None of {', '.join(_PREFERRED)} is there."
    )


def _from_index(folder: Path, index: Path) -> Checkpoint:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        names = list(dict.fromkeys(map(str, weight_map.values())))
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ModelError(f"{index} is not an index of weights.", why=str(cause)) from cause
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise UnsafeError(f"{index} names a file outside its folder: '{name}'.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ModelError(
            f"{index} names {len(names)} files, {len(missing)} of which are missing.",
            why=missing[:5],
            hint="Download the missing files into the folder.",
        )
    return Checkpoint(folder, tuple(folder / name for name in names), index)


@contextmanager
def open_shard(path: Path) -> Iterator[Shard]:
    """The tensors of one weights file, safetensors or weights-only pickle, open while in the block.

    Raises:
        ModelError: the file cannot be read.
        UnsafeError: it is a pickle that holds more than weights; nothing of it was executed.
    """
    if path.suffix == ".safetensors":
        with SafetensorsReader(path) as reader:
            yield Shard(reader.tensors, {})
    else:
        yield _pickled_shard(path)


@dataclass(frozen=True)
class _MemoryTensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], memoryview]
    byte_count: int

    def read(self, begin: int, end: int) -> memoryview:
        return self.data()[begin:end]


def _pickled_shard(path: Path) -> Shard:
    tensors: list[StoredTensor] = []
    kept: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for name, value in _load_weights(path).items():
        # Names that share storage, offset, shape and strides are one tensor; the first is kept:
        # modules list the parameter itself before those tied to it.
        key = (
            value.untyped_storage().data_ptr(),
            value.storage_offset(),
            value.shape,
            value.stride(),
        )
        if value.numel() and key in kept:
            aliases[name] = kept[key]
            continue
        kept[key] = name
        tensors.append(_stored(path, name, value))
    return Shard(tuple(tensors), aliases)


def _stored(path: Path, name: str, value: Any) -> StoredTensor:
    dtype = _TORCH_DTYPES.get(str(value.dtype))
    if dtype is None or str(value.layout) != "torch.strided":
        raise UnsupportedError(
            f"{path}: safetensors cannot hold tensor '{name}' ({value.layout}, {value.dtype})."
        )

    def data() -> memoryview:
        import torch

        flat = value.detach().contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy()).cast("B")

    return _MemoryTensor(
        name, dtype, tuple(value.shape), data, value.numel() * value.element_size()
    )


def _load_weights(path: Path) -> dict[str, Any]:
    import pickle

    import torch

    def load(mmap: bool) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

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
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as cause:
        reason = str(cause).splitlines()
        raise ModelError(
            f"{path} cannot be read as PyTorch weights ({path.stat().st_size} bytes).",
            why=reason[0] if reason else type(cause).__name__,
        ) from cause
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds a {type(state).__name__}, not weights by name.")
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
