"""The passes of GGUF run on files without a pipeline, and what is in the files they write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convkit import graph
from convkit.artifact import Artifact, Precision
from convkit.ggml.file import GgufFile
from convkit.ggml.types import SCHEMES
from convkit.passes.gguf_bf16 import gguf_bf16
from convkit.passes.gguf_fp16 import gguf_fp16
from convkit.passes.gguf_fp32 import gguf_fp32
from convkit.passes.gguf_int8 import gguf_int8
from convkit.passes.gguf_q4 import gguf_q4
from convkit.step import Pass, Work

PASSES: Mapping[Precision, Pass] = {
    one.precision: one for one in (gguf_fp32, gguf_fp16, gguf_bf16, gguf_int8, gguf_q4)
}

_IMPORTANCE = "quantize.imatrix."


def requantize(
    source: Path,
    out: Path,
    scheme: str,
    *,
    calibration: Path | None = None,
    is_forced: bool = False,
    **options: Any,
) -> list[str]:
    """Writes a file in a scheme; gives what is noted."""
    notes: list[str] = []
    step = PASSES[SCHEMES[scheme].precision]
    work = Work((), _nothing, notes.append, _unseen, calibration=calibration, is_forced=is_forced)
    named = {"scheme": scheme} if "scheme" in step.options else {}
    step.rungs[0].run(graph.detect(str(source)), out, work, **named, **options)
    return notes


def content(path: Path) -> dict[str, Any]:
    """Metadata and tensors in their order; of shapes the sizes that ggml counts.

    What llama-quantize adds of importance data is left out, as the function behind it does not.
    """
    with GgufFile(path) as file:
        metadata = file.header.metadata.items()
        tensors = file.tensors.items()
        return {
            "metadata": [(k, v.encoded()) for k, v in metadata if not k.startswith(_IMPORTANCE)],
            "tensors": [
                (name, one.dtype, _counted(one.shape), one.stored(0, one.row_count).tobytes())
                for name, one in tensors
            ],
        }


def _counted(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _nothing(artifact: Artifact) -> Any:
    raise AssertionError("a pass must not load the network")


def _unseen(what: str, done: int, total: int | None, unit: str = "") -> None:
    """Nobody looks at progress."""
