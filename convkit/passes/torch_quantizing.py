"""Models on their way to quantized weights: opened tensor by tensor, written tensor by tensor."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact
from convkit.step import Work

if TYPE_CHECKING:
    from convkit.checkpoint.folder_files import WeightFiles

_CONFIG = "config.json"
_SPELLINGS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@contextmanager
def opened(source: Artifact, work: Work) -> Iterator[Any]:
    """The Hugging Face folder as it will be written again, an adapter merged into it.

    Of any other network, where to find it: it becomes an exported program.

    Raises:
        UnsupportedError: the weights are quantized already.
        ModelError, UnsafeError: its weights cannot be read.
    """
    from convkit.checkpoint.folder import open_folder
    from convkit.checkpoint.folder_files import read_config
    from convkit.checkpoint.writing import FolderModel, Kept, Target
    from convkit.passes.torch_streaming import hugging_face_weights
    from convkit.quantization.bitsandbytes_folder import refuse_quantized
    from convkit.quantization.torch_program_quantizing import Program

    if source.opening.factory or not (source.path / _CONFIG).is_file():
        yield Program(source)
        return
    files = hugging_face_weights(source.path)
    refuse_quantized(read_config(source.path), source.path)
    opening = source.opening
    with open_folder(source.path, adapter=opening.adapter, trust=opening.trust) as checkpoint:
        config = checkpoint.config
        dtype = _SPELLINGS.get(str(config.get("dtype") or config.get("torch_dtype")), "F32")
        tensors = {
            name: Target(rows, dtype if opening.adapter else rows.dtype)
            for name, rows in checkpoint.tensors.items()
        }
        yield FolderModel(
            {**tensors, **{name: Kept(one) for name, one in checkpoint.other.items()}},
            {_CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n"},
            checkpoint.notes,
            finish=(functools.partial(_copy_companions, files),),
            aliases=checkpoint.aliases,
        )


def sink(model: Any, out: Path, work: Work) -> None:
    """Writes a folder, or a program."""
    from convkit.checkpoint.writing import write_folder
    from convkit.quantization.torch_program_quantizing import Program, write_program

    if isinstance(model, Program):
        write_program(model, out, work)
        return

    def progress(done: int, total: int) -> None:
        work.progress("writing tensors", done, total, "B")

    write_folder(model, out, progress)
    for finish in model.finish:
        finish(out, work.note)


def skipped(given: str | Sequence[str]) -> tuple[str, ...]:
    """Names of layers, given one by one or with commas between."""
    names = given.split(",") if isinstance(given, str) else given
    return tuple(name.strip() for name in names if name.strip())


def _copy_companions(files: WeightFiles, out: Path, note: Callable[[str], None]) -> None:
    from convkit.passes.torch_streaming import copy_companions

    copy_companions(files, out, note, but=(_CONFIG,))
