"""Rewrites the weights of a Hugging Face folder at 16 bits, a few megabytes in memory at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convkit.artifact import Artifact
from convkit.checkpoint.folder_files import WeightFiles, find_weight_files
from convkit.checkpoint.shard import Shard, open_shard
from convkit.errors import ModelError, ResourceError, UnsupportedError
from convkit.naming import listed
from convkit.safetensors_file import ITEM_BYTES, SafetensorsWriter, StoredTensor
from convkit.step import Progress, Work

_PIECE_BYTES = 4 << 20
_PIECES_AHEAD = 4
_WIDE_FLOATS = ("F32", "F64")
_NAMED_TENSORS = 8

# Weights that this pass does not rewrite; beside the lowered ones they would be stale.
_OTHER_WEIGHTS = frozenset(
    (".onnx", ".onnx_data", ".h5", ".msgpack", ".ot", ".gguf", ".pth", ".pt", ".ckpt", ".tflite")
)
_TOP_LEVEL_WEIGHTS = frozenset((".safetensors", ".bin"))

Lower = Callable[[memoryview, str], memoryview]
"""Maps row-major little-endian bytes of dtype F32 or F64 to the bytes of the narrower dtype."""


class OverflowsError(Exception):
    """A finite value has no finite counterpart in the narrower dtype."""


@dataclass(frozen=True)
class Target:
    """What the weights become.

    Attributes:
        dtype: in the spelling of safetensors (`F16`).
        config_name: in the spelling of config.json (`float16`).
        lower: maps a piece of a tensor; raises OverflowsError.
    """

    dtype: str
    config_name: str
    lower: Lower


@dataclass
class _Progress:
    report: Progress
    what: str
    total: int
    done: int = 0
    kept_wide: list[str] = field(default_factory=list)

    def advance(self, byte_count: int) -> None:
        self.done += byte_count
        self.report(self.what, self.done, self.total, "B")


def lower_folder(source: Artifact, out: Path, work: Work, target: Target) -> None:
    """Writes the folder `out`: the same model with its wide floating weights in the target dtype.

    Sharding and names stay. Integer, boolean and already narrow tensors stay as they are; a tensor
    that would overflow stays wide and is named in the report. Tied tensors are kept once.

    Raises:
        UnsupportedError: the source is no Hugging Face folder, or has an adapter.
        ModelError, UnsafeError: its weights cannot be read.
        ResourceError: the destination cannot be written.
    """
    if source.opening.adapter is not None:
        raise UnsupportedError(
            f"The adapter {source.opening.adapter} cannot be merged into a folder.",
            hint=f"Merge it on the way to GGUF:  convkit convert {source.words} --to gguf",
        )
    checkpoint = hugging_face_weights(source.path)
    progress = _Progress(work.progress, f"{target.config_name} weights", checkpoint.byte_count())
    try:
        out.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            written = {
                shard: _lower_shard(shard, out, target, progress, pool)
                for shard in checkpoint.shards
            }
        if checkpoint.index:
            _write_index(out, written)
        copy_companions(checkpoint, out, work.note)
        _write_config(checkpoint.folder, out, target, wide=bool(progress.kept_wide))
    except OSError as cause:
        raise ResourceError(
            f"{out} cannot be written: {cause.strerror or cause}.",
            hint="Free some space or choose another place with -o.",
        ) from cause
    progress.advance(progress.total - progress.done)
    if progress.kept_wide:
        work.note(_kept_wide_note(progress.kept_wide, target))


def hugging_face_weights(folder: Path) -> WeightFiles:
    """The weights of a Hugging Face folder: safetensors where there are any, else `.bin`.

    Raises:
        UnsupportedError: it is no Hugging Face folder, or its weights lie in folders below it.
        ModelError: the index is damaged or names a file that is missing; or there are no weights.
        UnsafeError: the index names a file outside the folder.
    """
    if not (folder / "config.json").is_file():
        raise UnsupportedError(
            f"{folder} is not a Hugging Face folder (no config.json in it).",
            why="PyTorch weights are lowered in folders that hold config.json and weights.",
            hint="Lower it on the exported graph instead:  convkit convert MODEL --to onnx --fp16",
        )
    found = find_weight_files(folder)
    below = next((shard for shard in found.shards if shard.parent != folder), None)
    if below is not None:
        raise UnsupportedError(
            f"{found.index} names a file in a folder of its own: {below}.",
            hint="Move the weights beside config.json, and take the folder out of the index.",
        )
    return found


def _kept_wide_note(names: list[str], target: Target) -> str:
    return (
        f"beyond the range of {target.config_name}, so left as they are: "
        f"{listed(names, _NAMED_TENSORS)}; config.json says float32, so that loading does not "
        "overflow them"
    )


@dataclass(frozen=True)
class _WrittenShard:
    name: str
    byte_count: int
    tensor_names: tuple[str, ...]


def _lower_shard(
    path: Path, out: Path, target: Target, progress: _Progress, pool: ThreadPoolExecutor
) -> _WrittenShard:
    name = path.with_suffix(".safetensors").name.replace("pytorch_model", "model", 1)
    with open_shard(path) as shard, ExitStack() as stack:
        writer = stack.enter_context(
            SafetensorsWriter(
                out / name,
                {tensor.name: tensor.shape for tensor in shard.tensors},
                byte_limit=sum(tensor.byte_count for tensor in shard.tensors),
                metadata={"format": "pt", **shard.aliases},
            )
        )
        for tensor in _aligned_order(shard, target, pool):
            _write_tensor(tensor, writer, target, progress, pool)
        return _WrittenShard(name, writer.byte_count, tuple(t.name for t in shard.tensors))


def _aligned_order(shard: Shard, target: Target, pool: ThreadPoolExecutor) -> list[StoredTensor]:
    """Tensors by falling alignment: readers view each as its dtype, so it begins at a multiple.

    A lowered tensor with an even number of elements fills a multiple of 4 bytes, so whether it can
    be lowered may be found out while writing. The few odd ones are looked at beforehand.
    """

    def rank(tensor: StoredTensor) -> int:
        if tensor.dtype not in _WIDE_FLOATS:
            return ITEM_BYTES.get(tensor.dtype, 1)
        item = ITEM_BYTES[tensor.dtype]
        odd = tensor.byte_count // item % 2 == 1
        if (odd or item > 4) and _overflows(tensor, target, pool):
            return item
        return 2 if odd else 3  # between the tensors of 4 bytes and those of 2

    return sorted(shard.tensors, key=rank, reverse=True)


def _overflows(tensor: StoredTensor, target: Target, pool: ThreadPoolExecutor) -> bool:
    try:
        for _ in _lowered_pieces(tensor, target, pool):
            pass
    except OverflowsError:
        return True
    return False


def _write_tensor(
    tensor: StoredTensor,
    writer: SafetensorsWriter,
    target: Target,
    progress: _Progress,
    pool: ThreadPoolExecutor,
) -> None:
    if tensor.dtype in _WIDE_FLOATS:
        try:
            pieces = _lowered_pieces(tensor, target, pool)
            writer.write(tensor.name, target.dtype, tensor.shape, pieces)
            progress.advance(tensor.byte_count)
            return
        except OverflowsError:
            progress.kept_wide.append(tensor.name)
    pieces = (tensor.read(begin, end) for begin, end in _spans(tensor.byte_count))
    writer.write(tensor.name, tensor.dtype, tensor.shape, pieces)
    progress.advance(tensor.byte_count)


def _lowered_pieces(
    tensor: StoredTensor, target: Target, pool: ThreadPoolExecutor
) -> Iterator[memoryview]:
    """The lowered bytes in order; a few pieces are read and converted ahead by the pool."""

    def lower(span: tuple[int, int]) -> memoryview:
        return target.lower(tensor.read(*span), tensor.dtype)

    ahead: deque[Future[memoryview]] = deque()
    try:
        for span in _spans(tensor.byte_count):
            ahead.append(pool.submit(lower, span))
            if len(ahead) > _PIECES_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


def _spans(byte_count: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, byte_count, _PIECE_BYTES):
        yield begin, min(begin + _PIECE_BYTES, byte_count)


def _write_index(out: Path, written: Mapping[Path, _WrittenShard]) -> None:
    document = {
        "metadata": {"total_size": sum(shard.byte_count for shard in written.values())},
        "weight_map": {
            name: shard.name for shard in written.values() for name in shard.tensor_names
        },
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (out / "model.safetensors.index.json").write_text(text, "utf-8")


def copy_companions(
    checkpoint: WeightFiles,
    out: Path,
    note: Callable[[str], None],
    *,
    but: Collection[str] = (),
) -> None:
    """Copies tokenizer, generation settings and the like; hidden files and other weights stay.

    Args:
        checkpoint: the folder to copy from.
        out: the folder to copy into.
        note: takes what is to be said.
        but: files that are not copied.
    """
    left_out = []
    for path in sorted(checkpoint.folder.rglob("*")):
        relative = path.relative_to(checkpoint.folder)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if not path.is_file() or is_hidden or relative.as_posix() in but:
            continue
        if _is_weights(relative):
            if path not in checkpoint.shards and not path.name.endswith(".json"):
                left_out.append(str(relative))
            continue
        destination = out / relative
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, destination)
    if left_out:
        note(f"other weights in the folder were not copied: {', '.join(left_out)}")


def _is_weights(relative: Path) -> bool:
    if relative.suffix in _OTHER_WEIGHTS or relative.name.endswith(".index.json"):
        return True
    return len(relative.parts) == 1 and relative.suffix in _TOP_LEVEL_WEIGHTS


def _write_config(folder: Path, out: Path, target: Target, *, wide: bool) -> None:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as cause:
        raise ModelError(f"{path} is not JSON.", why=str(cause)) from cause
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model configuration.")
    _set_dtype(config, "float32" if wide else target.config_name)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (out / "config.json").write_text(text, "utf-8")


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Sets `dtype` (transformers 5) or `torch_dtype` (4), also in nested configurations."""
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    config.update(dict.fromkeys(keys, dtype))
    for nested in config.values():
        if isinstance(nested, dict) and ("dtype" in nested or "torch_dtype" in nested):
            _set_dtype(nested, dtype)
