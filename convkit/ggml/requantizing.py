"""Gives the tensors of a GGUF model the types of another scheme."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from convkit.artifact import Artifact
from convkit.errors import UsageError
from convkit.ggml.file import GgufFile
from convkit.ggml.header import is_gguf
from convkit.ggml.importance import Importance
from convkit.ggml.importance_file import read_importance
from convkit.ggml.mixture import choose_types, is_quantizable
from convkit.ggml.mixture_overrides import parse_override
from convkit.ggml.mixture_rules import ModelFacts
from convkit.ggml.model import GgufModel, Output
from convkit.ggml.types import SCHEMES, TYPES, Scheme
from convkit.ggml.values import Value, typed
from convkit.step import Work

_MATRIX_SUFFIXES = (".dat", ".imatrix")
_PLAIN = ("F32", "F16", "BF16", "F64")


@contextmanager
def opened(source: Artifact, work: Work) -> Iterator[GgufModel]:
    """The model in a GGUF file, as it is."""
    with GgufFile(source.path) as file:
        outputs = (Output(t.header.name, t, t.header.kind) for t in file.tensors.values())
        metadata = {k: v for k, v in file.header.metadata.items() if not k.startswith("split.")}
        yield GgufModel(metadata, tuple(outputs))


def requantized(
    model: GgufModel,
    work: Work,
    scheme: str,
    *,
    is_pure: bool = False,
    tensor_types: Sequence[str] = (),
) -> GgufModel:
    """The model with its tensors in the types of a scheme.

    Args:
        model: from a file, or on its way into one.
        work: calibration, and whether the user insists.
        scheme: `q4_k_m` ...
        is_pure: the scheme's own type for every tensor.
        tensor_types: `REGEX=TYPE`, which go before the scheme.

    Raises:
        UsageError: the model is quantized already and nobody insisted; an override fits nothing.
        SamplesError: the importance data are of another model.
    """
    chosen = SCHEMES[scheme]
    notes = [*model.notes, *_losses(model, chosen, work)]
    importance, told = _importance(model, work)
    kinds = choose_types(
        model.tensors,
        chosen,
        ModelFacts.of(model.metadata),
        is_pure=is_pure,
        overrides=[parse_override(text) for text in tensor_types],
        importance=importance,
    )
    outputs = (
        replace(
            tensor,
            kind=kinds[tensor.name],
            importance=importance.weights_of(tensor.name, tensor.shape) if importance else None,
        )
        for tensor in model.tensors
    )
    metadata = {**model.metadata, **_said(chosen, importance, work.calibration)}
    return replace(model, metadata=metadata, tensors=tuple(outputs), notes=(*notes, *told))


def _losses(model: GgufModel, scheme: Scheme, work: Work) -> list[str]:
    """What is lost a second time, if the user insists."""
    lossy = sorted(
        {
            tensor.rows.dtype
            for tensor in model.tensors
            if tensor.rows.dtype not in _PLAIN and is_quantizable(tensor)
        }
    )
    if not lossy or not scheme.default.is_quantized:
        return []
    if not work.is_forced:
        raise UsageError(
            f"The model is quantized already ({', '.join(lossy)}); to quantize it again as "
            f"{scheme.name} loses more than {scheme.name} of the original does.",
            hint="Start from the original, or insist:  --force",
        )
    return [f"quantized a second time, from {', '.join(lossy)}: worse than from the original"]


def _importance(model: GgufModel, work: Work) -> tuple[Importance | None, list[str]]:
    """Importance data: read from a matrix, or measured on a text."""
    path = work.calibration
    if path is None:
        return None, []
    if is_gguf(path) or path.suffix in _MATRIX_SUFFIXES:
        found = read_importance(path)
        return found, [f"importance of {len(found.entries)} tensors read from {path.name}"]
    if model.importance is None:
        raise UsageError(
            f"{path} is a text, and this model cannot be run with a look at its inside.",
            why="Importance is measured while PyTorch runs the Hugging Face folder.",
            hint="Start from the folder, or give an importance matrix:  --calibration imatrix.gguf",
        )
    found = model.importance(path)
    return found, [f"importance of {len(found.entries)} tensors measured on {path.name}"]


def _said(scheme: Scheme, importance: Importance | None, path: Path | None) -> dict[str, Value]:
    """What a quantized file says of how it was made.

    Source: llama.cpp, `tools/quantize/quantize.cpp` (`quantize.imatrix.*`).
    """
    said: dict[str, Any] = {
        "general.file_type": scheme.file_type,
        "general.quantization_version": 2,
    }
    if importance is not None and path is not None:
        said |= {
            "quantize.imatrix.file": path.name,
            "quantize.imatrix.dataset": ", ".join(importance.datasets),
            "quantize.imatrix.entries_count": len(importance.entries),
            "quantize.imatrix.chunks_count": importance.chunk_count,
        }
    return {key: typed(value) for key, value in said.items()}


def as_float(model: GgufModel, work: Work, scheme: str) -> GgufModel:
    """The model with its weights in a floating type; quantized ones are unpacked.

    Norms and what else is small stay in float32, as llama.cpp wants them.
    """
    chosen = SCHEMES[scheme]
    outputs = (
        replace(tensor, kind=chosen.default if is_quantizable(tensor) else tensor.kind)
        for tensor in model.tensors
    )
    kept: Mapping[str, Value] = model.metadata
    return replace(
        model, metadata={**kept, **_said(chosen, None, None)}, tensors=tuple(_widest(outputs))
    )


def _widest(outputs: Iterator[Output]) -> Iterator[Output]:
    """Tensors that no scheme touches but that a file holds quantized become float32."""
    for output in outputs:
        is_odd = output.kind.is_quantized and not is_quantizable(output)
        yield replace(output, kind=TYPES["F32"]) if is_odd else output
