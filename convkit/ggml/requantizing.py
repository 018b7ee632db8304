"""Gives the tensors of a GGUF model the types of another scheme."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from convkit.artifact import Artifact
from convkit.errors import UsageError
from convkit.ggml.calibration import Measuring, calibrated
from convkit.ggml.file import GgufFile
from convkit.ggml.kinds import require_tensors
from convkit.ggml.mixture import choose_types, is_quantizable, quantizer_order
from convkit.ggml.mixture_overrides import parse_override
from convkit.ggml.mixture_rules import ModelFacts
from convkit.ggml.model import GgufModel, Output
from convkit.ggml.types import SCHEMES, TYPES, Scheme
from convkit.ggml.values import typed
from convkit.step import Work

_USUAL = Measuring()
_PLAIN = ("F32", "F16", "BF16", "F64")


@contextmanager
def opened(source: Artifact) -> Iterator[GgufModel]:
    """The model in a GGUF file, as it is."""
    with GgufFile(source.path) as file:
        require_tensors(file.header)
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
    measuring: Measuring = _USUAL,
) -> GgufModel:
    """The model with its tensors in the types of a scheme.

    Args:
        model: from a file, or on its way into one.
        work: calibration, and whether the user insists.
        scheme: `q4_k_m` ...
        is_pure: the scheme's own type for every tensor.
        tensor_types: `REGEX=TYPE`, which go before the scheme.
        measuring: how importance is measured, if it is.

    Raises:
        UsageError: the model is quantized already and nobody insisted; an override fits nothing.
        SamplesError: the importance data are of another model, or there is no such text.
    """
    chosen = SCHEMES[scheme]
    losses = _losses(model, chosen, work)
    model, names = calibrated(_titled(model, chosen), work, measuring)
    kinds = choose_types(
        model.tensors,
        chosen,
        ModelFacts.of(model.metadata),
        is_pure=is_pure,
        overrides=[parse_override(text) for text in tensor_types],
        importance=names,
    )
    outputs = (replace(tensor, kind=kinds[tensor.name]) for tensor in model.tensors)
    return replace(model, tensors=_sorted(outputs), notes=(*losses, *model.notes))


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


def _titled(model: GgufModel, scheme: Scheme) -> GgufModel:
    """The model with metadata that name the scheme; where llama-quantize puts them, at the end.

    Source: llama.cpp, `src/llama-quant.cpp` (`llama_model_quantize_impl`).
    """
    said = {"general.quantization_version": typed(2), "general.file_type": typed(scheme.file_type)}
    kept = {key: value for key, value in model.metadata.items() if key not in said}
    return replace(model, metadata={**kept, **said})


def _sorted(outputs: Iterable[Output]) -> tuple[Output, ...]:
    """As llama-quantize sorts them."""
    return tuple(sorted(outputs, key=lambda output: quantizer_order(output.name)))


def as_float(model: GgufModel, scheme: str) -> GgufModel:
    """The model with its weights in a floating type; quantized ones are unpacked.

    Norms and what else is small stay in float32, as llama.cpp wants them.
    """
    chosen = SCHEMES[scheme]
    outputs = (
        replace(tensor, kind=chosen.default if is_quantizable(tensor) else tensor.kind)
        for tensor in model.tensors
    )
    return replace(_titled(model, chosen), tensors=_sorted(_widest(outputs)))


def _widest(outputs: Iterator[Output]) -> Iterator[Output]:
    """Tensors that no scheme touches but that a file holds quantized become float32."""
    for output in outputs:
        is_odd = output.kind.is_quantized and not is_quantizable(output)
        yield replace(output, kind=TYPES["F32"]) if is_odd else output
