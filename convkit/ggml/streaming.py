"""GGUF models as streams of tensors: opened from a file, written to one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from convkit.artifact import Artifact
from convkit.step import Work


def opened(source: Artifact, work: Work) -> AbstractContextManager[Any]:
    """The model in a GGUF file, a `GgufModel`.

    Raises:
        ModelError, UnsupportedError: see `header.read_header`.
    """
    from convkit.ggml.requantizing import opened as from_file

    return from_file(source)


def sink(model: Any, out: Path, work: Work) -> None:
    """Writes a `GgufModel`."""
    from convkit.ggml.model import sink as write

    write(model, out, work)
