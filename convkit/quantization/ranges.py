"""Ranges of activations on calibration data, with one batch in memory.

A first pass takes the smallest and the largest element of every value as scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from convkit.errors import StepError, UnknownNameError
from convkit.onnx_structure import plain_session
from convkit.quantization.probes import Probes
from convkit.quantization.value_range import Range as Range
from convkit.quantization.value_range import Ranges as Ranges
from convkit.step import Feeds, Progress

if TYPE_CHECKING:
    import onnx_ir as ir

METHODS = ("minmax", "percentile", "entropy", "mse")
DEFAULT_METHOD = "percentile"


class Batches(Protocol):
    """Samples as calibration wants them; `CalibrationData` is one."""

    @property
    def count(self) -> int:
        """How many samples."""

    @property
    def digest(self) -> str:
        """What tells these samples from others."""

    def batches(self, rows: int = ...) -> Iterator[Feeds]:
        """Inputs, one batch after another."""


def calibrate(
    model: ir.Model,
    folder: Path,
    values: Collection[str],
    data: Batches,
    *,
    method: str = DEFAULT_METHOD,
    progress: Progress,
    cache: Path | None = None,
    note: Callable[[str], None] | None = None,
) -> Mapping[str, Range]:
    """The range of each value on the data.

    Args:
        model: it is run as it is, weights that lie in `folder` or in memory alike.
        folder: of the model file.
        values: names of float values of the main graph, inputs included; others are left out.
        data: samples of the model's inputs.
        method: how ranges follow from what is seen, one of `METHODS`.
        progress: hears how far it is.
        cache: a file for the statistics, reused if model, data and method are the same.
        note: takes sentences for the report.

    Raises:
        UnknownNameError: there is no such method.
        SamplesError: a sample has NaN or infinity.
        StepError: the model does not run on the samples.
    """
    if method not in METHODS:
        raise UnknownNameError("calibration method", method, METHODS)
    wanted = _measurable(model, values)
    if not wanted:
        return {}
    return _extremes(model, folder, wanted, data, progress)


def _measurable(model: ir.Model, values: Collection[str]) -> set[str]:
    """Those of the values that are floats of the main graph."""
    import onnx_ir as ir

    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
    own = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    known = {v.name for v in own if v.name and v.dtype in floats}
    return known & set(values)


def _extremes(
    model: ir.Model, folder: Path, wanted: set[str], data: Batches, progress: Progress
) -> dict[str, Range]:
    import onnx_ir as ir

    names = [str(value.name) for value in model.graph.inputs]
    proto = ir.to_proto(model)
    probes = Probes(wanted, set(), allows_empty=False)
    probes.add_to(proto.graph, names)
    session = plain_session(proto, folder)
    found: dict[str, Range] = {}
    done = 0
    for feeds in data.batches():
        progress("ranges", done, data.count)
        done += _rows_of(feeds)
        scalars = dict(zip(probes.outputs, _run(session, probes.outputs, feeds), strict=True))
        for name, (low, high) in probes.scalars.items():
            seen = Range(float(scalars[low]), float(scalars[high]))
            found[name] = found[name].joined(seen) if name in found else seen
    return found


def _run(session: Any, outputs: list[str], feeds: Feeds) -> list[Any]:
    try:
        results: list[Any] = session.run(outputs, dict(feeds))
        return results
    except Exception as cause:  # the runtime's exceptions share no base class of their own
        line = next(iter(str(cause).splitlines()), type(cause).__name__)
        raise StepError(
            "The model does not run on the calibration data.",
            why=line[:400],
            hint="Give samples that it accepts:  --calibration inputs.npz",
        ) from cause


def _rows_of(feeds: Feeds) -> int:
    return max((array.shape[0] for array in feeds.values() if array.ndim), default=1)
