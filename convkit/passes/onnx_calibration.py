"""What an ONNX model is calibrated with: arrays, or a text where it is a language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convkit import samples
from convkit.artifact import Artifact, TensorSpec
from convkit.errors import UsageError
from convkit.onnx_folder import graph_file, text_folder
from convkit.onnx_language_graph import LanguageGraph, language_graph
from convkit.step import Work

if TYPE_CHECKING:
    import onnx_ir as ir

    from convkit.quantization.calibration_data import CalibrationData


def calibration_samples(source: Artifact, model: ir.Model, work: Work) -> CalibrationData | None:
    """The user's samples as the graph takes them; None where nothing was given.

    Args:
        source: the model.
        model: its graph.
        work: calibration, and where notes go.

    Raises:
        UsageError: they are a text, and this is no language model.
        SamplesError: they cannot be read or do not fit the inputs.
        ModelError: there is no tokenizer for a text.
    """
    from convkit.quantization.calibration_data import calibration_of

    path = work.calibration
    if path is None:
        return None
    graph = language_graph(
        _specs(model.graph.inputs), _specs(model.graph.outputs), text_folder(source.path)
    )
    if samples.is_text(path):
        return _text(path, source, graph)
    if graph is None:
        return calibration_of(work, source.inputs)
    return calibration_of(work, source.inputs, complete=graph.completed)


def look_at(data: CalibrationData, source: Artifact, model: ir.Model, work: Work) -> None:
    """Notes what is suspicious about samples of a model that is no language model."""
    from convkit.quantization.calibration_lint import lint

    if source.path.is_dir() or data.is_random:
        return
    for finding in lint(data, model, graph_file(source.path).parent):
        work.note(str(finding))


def _text(path: Path, source: Artifact, graph: LanguageGraph | None) -> CalibrationData:
    from convkit.quantization.calibration_text import TextPieces
    from convkit.vocabulary.codec import Codec

    if graph is None:
        raise UsageError(
            f"{path} is a text, and {source.path.name} is no language model.",
            hint="Give arrays named as its inputs:  --calibration inputs.npz",
        )
    return TextPieces(path, graph, Codec(text_folder(source.path)))


def _specs(values: Sequence[ir.Value]) -> list[TensorSpec]:
    """Names, types and shapes of a graph's ends; sizes that vary have names."""
    found = []
    for value in values:
        sizes = [] if value.shape is None else list(value.shape)
        shape = [
            size if isinstance(size, int) else str(getattr(size, "value", size)) for size in sizes
        ]
        dtype = "float32" if value.dtype is None else str(value.dtype.numpy())
        found.append(TensorSpec(value.name or "", dtype, tuple(shape)))
    return found
