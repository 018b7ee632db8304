"""Importance data for a model on its way: read from a matrix, or measured when it is written."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convkit.errors import MissingRequirementError, SamplesError, UsageError
from convkit.ggml.importance import Importance
from convkit.ggml.importance_file import (
    read_importance,
    write_importance,
    write_legacy_importance,
)
from convkit.ggml.magic import is_gguf
from convkit.ggml.model import GgufModel
from convkit.ggml.values import Value, typed
from convkit.step import Package, Work

_LEGACY = ".dat"
_MATRIX_SUFFIXES = (_LEGACY, ".imatrix")
_SOME = 1
"""Pieces of a text, before it is known how many; every number takes the same room."""


@dataclass(frozen=True)
class Measuring:
    """What users may say of measuring.

    Attributes:
        most_pieces: how much of the text is read, in pieces of 512 tokens; None: all of it.
        kept_as: where the matrix goes, for other runs and for llama.cpp; None: nowhere.
    """

    most_pieces: int | None = None
    kept_as: Path | None = None


def calibrated(
    model: GgufModel, work: Work, measuring: Measuring
) -> tuple[GgufModel, frozenset[str] | None]:
    """The model with the importance data that the user asks for, and the tensors they are of.

    Measuring waits until the model is written; its size is known without.

    Args:
        model: from a file, or on its way into one.
        work: calibration, and whether the user insists.
        measuring: how to.

    Returns:
        None for the tensors where nothing is asked for.

    Raises:
        UsageError: the model cannot be run, or what is said of measuring has no effect.
        SamplesError: there is no such text, or the matrix is of another model.
        ModelError: the matrix is damaged.
        MissingRequirementError: what runs the model is not installed.
    """
    path = work.calibration
    is_matrix = path is not None and (is_gguf(path) or path.suffix in _MATRIX_SUFFIXES)
    if (path is None or is_matrix) and measuring != Measuring():
        raise UsageError(
            "What is said of measuring importance has no effect: "
            + (f"{path.name} was measured already." if path else "there is no text."),
            hint="Give a text:  --calibration TEXT",
        )
    if path is None:
        return model, None
    if is_matrix:
        found = read_importance(path)
        told = f"importance of {len(found.entries)} tensors read from {path.name}"
        model = replace(model, notes=(*model.notes, told))
        return _weighted(model, found, path.name), frozenset(found.entries)
    if model.importance is None:
        raise UsageError(
            f"{path} is a text, and this model cannot be run with a look at its inside.",
            why="Importance is measured while PyTorch runs the Hugging Face folder.",
            hint="Start from the folder, or give an importance matrix:  --calibration imatrix.gguf",
        )
    _require(model.importance.needs)
    _check(path, measuring, work)
    names = model.importance.names
    expected = _said(_name_of(measuring), (path.name,), len(names), _SOME)
    model = replace(
        model,
        metadata={**model.metadata, **expected},
        settle=(*model.settle, functools.partial(_measure, path, measuring)),
    )
    return model, names


def _require(packages: Sequence[Package]) -> None:
    missing = [need for need in packages if not need.is_available]
    if missing:
        raise MissingRequirementError(
            f"Measuring importance needs {missing[0].module}, which is not installed.",
            hint=f"{missing[0].install}   or give an importance matrix:  --calibration FILE",
            missing=[need.module for need in missing],
        )


def _check(text: Path, measuring: Measuring, work: Work) -> None:
    """Sees to it that hours of measuring are not in vain."""
    if not text.is_file():
        raise SamplesError(f"There is no text {text}.")
    if measuring.most_pieces is not None and measuring.most_pieces < 1:
        raise UsageError(f"{measuring.most_pieces} pieces of a text are none.")
    kept = measuring.kept_as
    if kept is None:
        return
    if kept.resolve() == text.resolve():
        raise UsageError(f"The importance matrix cannot take the place of {text}.")
    if kept.exists() and not work.is_forced:
        raise UsageError(f"{kept} exists.", hint="Choose another name, or replace it:  --force")
    if not kept.absolute().parent.is_dir():
        raise UsageError(f"There is no folder {kept.absolute().parent} for {kept.name}.")


def _measure(text: Path, measuring: Measuring, model: GgufModel, work: Work) -> GgufModel:
    """Measures now; gives the model with the data."""
    assert model.importance is not None
    found = model.importance.take(text, measuring.most_pieces, work)
    told = (
        f"importance of {len(found.entries)} tensors measured on {text.name}: "
        f"{found.chunk_count} pieces of {found.chunk_size} tokens"
    )
    if measuring.kept_as:
        _keep(found, measuring.kept_as)
        told += f"; kept as {measuring.kept_as}"
    work.note(told)
    return _weighted(model, found, _name_of(measuring))


def _keep(importance: Importance, path: Path) -> None:
    """Writes a matrix, in llama.cpp's older kind of file if the name asks for it."""
    write = write_legacy_importance if path.suffix == _LEGACY else write_importance
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        write(importance, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _weighted(model: GgufModel, importance: Importance, file: str) -> GgufModel:
    """The model with data for its columns, and metadata that say so."""
    outputs = (
        replace(tensor, importance=importance.weights_of(tensor.name, tensor.shape))
        for tensor in model.tensors
    )
    said = _said(file, importance.datasets, len(importance.entries), importance.chunk_count)
    return replace(model, metadata={**model.metadata, **said}, tensors=tuple(outputs))


def _name_of(measuring: Measuring) -> str:
    return measuring.kept_as.name if measuring.kept_as else ""


def _said(
    file: str, datasets: Sequence[str], entry_count: int, chunk_count: int
) -> Mapping[str, Value]:
    """What a quantized file says of its importance data.

    Source: llama.cpp, `tools/quantize/quantize.cpp` (`quantize.imatrix.*`).
    """
    said = {
        **({"quantize.imatrix.file": file} if file else {}),
        **({"quantize.imatrix.dataset": ", ".join(datasets)} if datasets else {}),
        "quantize.imatrix.entries_count": entry_count,
        **({"quantize.imatrix.chunks_count": chunk_count} if chunk_count else {}),
    }
    return {key: typed(value) for key, value in said.items()}
