"""What static int8 knows before it begins: the graph made ready, and what data show of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.quantization.equalization import equalize
from convkit.quantization.layers import layers_of
from convkit.quantization.moments import Moments, moments_of
from convkit.quantization.observing import Batches
from convkit.quantization.preparation import prepare
from convkit.quantization.ranges import DEFAULT_METHOD, calibrate
from convkit.quantization.smoothing import smooth
from convkit.quantization.targets import Target
from convkit.quantization.value_range import Range
from convkit.step import Progress

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class StaticBasis:
    """What `quantize_static` takes beside the model.

    Attributes:
        ranges: name of a float value -> what it holds.
        moments: name of a layer -> what its weights multiply.
    """

    ranges: Mapping[str, Range]
    moments: Mapping[str, Moments]


def static_basis(
    model: ir.Model,
    folder: Path,
    data: Batches,
    target: Target,
    *,
    method: str = DEFAULT_METHOD,
    equalizes: bool = True,
    smoothing: float | None = None,
    apart: frozenset[str] = frozenset(),
    sees_moments: bool = True,
    cache: Path | None = None,
    progress: Progress,
    note: Callable[[str], None],
) -> StaticBasis:
    """Makes `model` ready in place and looks at it on data.

    Args:
        model: typed.
        folder: where its weights lie.
        data: samples of its inputs.
        target: what the result is for.
        method: how ranges follow from data.
        equalizes: scale channels so that they use their common range alike.
        smoothing: share of the range of activations that goes into the weights that read them, 0
            for none; None: for each what makes the least noise.
        apart: names of layers that stay out of that, because they will not be static.
        sees_moments: look at what the weights multiply, for rounding and biases.
        cache: a file that keeps what was seen.
        progress: hears how far it is.
        note: takes sentences for the report.

    Raises:
        SamplesError, StepError: the model does not run on the data.
    """
    prepare(model, folder)
    if smoothing != 0:
        smooth(model, folder, data, smoothing, apart=apart, progress=progress, note=note)
    if equalizes:
        equalize(model, folder, data, progress=progress, note=note)
    values = {
        value.name
        for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))
        if value.name
    }
    ranges = calibrate(
        model, folder, values, data, method=method, progress=progress, cache=cache, note=note
    )
    moments: Mapping[str, Moments] = {}
    if sees_moments:
        names = [layer.name for layer in layers_of(model, target)]
        moments = moments_of(model, folder, names, data.batches(), progress, data.count)
    return StaticBasis(ranges, moments)
