"""GGUF: language models as llama.cpp runs them, one file or several parts."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Artifact, Description, Opening
from convkit.ggml.magic import is_gguf
from convkit.ggml.types import SCHEMES
from convkit.step import Format, Package, Runner


def _matches(path: Path, opening: Opening) -> bool:
    return path.is_file() and is_gguf(path)


def _describe(path: Path, opening: Opening) -> Description:
    """Everything from the header; weights are not touched.

    Raises:
        ModelError: truncated or damaged, or a part is missing.
        UnsupportedError: a version or tensor type that is not known.
    """
    from convkit.formats.gguf_description import describe

    return describe(path)


def _open(artifact: Artifact) -> Runner:
    """A runner on llama.cpp.

    Raises:
        ModelError: llama.cpp refuses the file, with its reason.
        MissingRequirementError: llama.cpp is missing, or of a kind that cannot be called.
    """
    from convkit.formats.gguf_runner import open_gguf

    return open_gguf(artifact)


gguf = Format(
    name="gguf",
    suffixes=(".gguf",),
    needs=(Package("xllamacpp", "gguf"),),
    matches=_matches,
    describe=_describe,
    open=_open,
    schemes={name: scheme.precision for name, scheme in SCHEMES.items()},
)
