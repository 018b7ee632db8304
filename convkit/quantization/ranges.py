"""Ranges of activations on calibration data.

A first pass takes the smallest and the largest element of every value, as scalars if the values are
too many to be looked at together. Where a method needs to know how often what occurs, further
passes count elements into histograms, of as many values at a time as memory is planned for. So the
number of samples costs time and no memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.errors import UnknownNameError
from convkit.quantization.calibration_lint import moved
from convkit.quantization.clipping import CLIPPINGS
from convkit.quantization.histograms import Histogram
from convkit.quantization.observing import Batches, Observed, Schedule, schedule
from convkit.quantization.statistics_file import StatisticsFile
from convkit.quantization.value_range import Range as Range
from convkit.quantization.value_range import Ranges as Ranges
from convkit.step import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

METHODS = ("minmax", *CLIPPINGS)
DEFAULT_METHOD = "percentile"


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

    Takes the model's memory plus at most 300 MB, whatever the number of samples, unless one sample
    alone makes values beyond that.

    Args:
        model: it is run as it is, weights that lie in `folder` or in memory alike.
        folder: of the model file.
        values: names of float values of the main graph, inputs included; others are left out.
        data: samples of the model's inputs.
        method: how ranges follow from what is seen, one of `METHODS`.
        progress: hears how far it is.
        cache: a file for what was found, reused if model, data and method are the same.
        note: takes sentences for the report; without it a cache that cannot be written is an error.

    Raises:
        UnknownNameError: there is no such method.
        SamplesError: a sample has NaN or infinity.
        StepError: the model does not run on the samples.
        ResourceError: the cache cannot be written, and there is no `note` to say so.
    """
    if method not in METHODS:
        raise UnknownNameError("calibration method", method, METHODS)
    wanted = _measurable(model, values)
    if not wanted:
        return {}
    kept = StatisticsFile.of(cache, model, folder, data, method, note) if cache else None
    if kept is not None and (found := kept.read(wanted)) is not None:
        return found
    watched = Observed(model, folder, data, progress)
    sizes = watched.sizes(wanted)
    planned = schedule(sizes, data.fixed_rows)
    told = _told(planned, data.count, method)
    progress(told, 0, data.count)
    if note is not None:
        note(told)
    found, half = _measured(watched, sizes, planned, method)
    if note is not None and data.count > 1:
        for finding in moved(half, found):
            note(str(finding))
    if kept is not None:
        kept.write(found)
    return found


def _measurable(model: ir.Model, values: Collection[str]) -> set[str]:
    """Those of the values that are floats of the main graph."""
    import onnx_ir as ir

    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
    own = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return {v.name for v in own if v.name and v.dtype in floats} & set(values)


def _told(planned: Schedule, count: int, method: str) -> str:
    passes = 1 + (len(planned.groups) if method != "minmax" else 0)
    return (
        f"Calibrated by {method} on {count} samples, read {passes} times; predicted peak: the "
        f"model and {planned.peak_bytes / 2**20:.0f} MiB."
    )


def _measured(
    watched: Observed, sizes: Mapping[str, int], planned: Schedule, method: str
) -> tuple[dict[str, Range], dict[str, Range]]:
    """Ranges on all samples and on the first half of them."""
    ranges, half = _extremes(watched, sizes, planned)
    if method == "minmax":
        return ranges, half
    clip = CLIPPINGS[method]
    clipped: dict[str, Range] = {}
    half_clipped: dict[str, Range] = {}
    for number, group in enumerate(planned.groups, 1):
        count = watched.data.count
        histograms = {name: Histogram(ranges[name], sizes[name] * count) for name in group}
        what = f"histograms {number} of {len(planned.groups)}"
        watched.fetch(
            group,
            planned.fetched_rows,
            lambda name, array, held=histograms: held[name].add(array),  # type: ignore[misc]
            what,
        )
        for name, histogram in histograms.items():
            clipped[name] = clip(histogram)
            half_clipped[name] = clip(histogram.halved())
    return clipped, half_clipped


def _extremes(
    watched: Observed, sizes: Mapping[str, int], planned: Schedule
) -> tuple[dict[str, Range], dict[str, Range]]:
    """Finite extremes on all samples and on the first half of them.

    Scalars in one pass, then values that hold infinities (masks) as they are. Where all values are
    fetched together anyway, NumPy is several times faster than the runtime's reductions.
    """
    if len(planned.groups) == 1:
        return _finite(watched, planned.groups[0], planned.fetched_rows)
    ranges, half = watched.extremes(sizes, planned.rows)
    unbounded = {n for n, r in ranges.items() if not math.isfinite(r.high - r.low)}
    for group in planned.groups:
        mine = [name for name in group if name in unbounded]
        if mine:
            found, found_half = _finite(watched, mine, planned.fetched_rows)
            ranges |= found
            half |= found_half
    return ranges, half


def _finite(
    watched: Observed, names: Sequence[str], rows: int
) -> tuple[dict[str, Range], dict[str, Range]]:
    """Extremes of finite elements, of values that are fetched."""
    found: dict[str, Range] = {}
    half: dict[str, Range] = {}
    batches: Counter[str] = Counter()

    def look(name: str, array: np.ndarray[Any, Any]) -> None:
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not math.isfinite(high - low):
            finite = array[np.isfinite(array)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        seen = Range(low, high)
        found[name] = found[name].joined(seen) if name in found else seen
        batches[name] += 1
        if name not in half and 2 * batches[name] * rows >= watched.data.count:
            half[name] = found[name]

    watched.fetch(names, rows, look, "ranges")
    return found, half
