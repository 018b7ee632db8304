"""Accuracy control: which layers stay in float, so that no more is lost than the user allows."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit import samples
from convkit.artifact import Artifact
from convkit.errors import SamplesError, UsageError
from convkit.onnx_folder import graph_file
from convkit.quantization.accuracy import check_metric
from convkit.quantization.control_search import Limits, Make, Search
from convkit.quantization.control_words import gate_error, told
from convkit.quantization.reference import Reference
from convkit.quantization.sensitivity import Layer, Sensitivity
from convkit.quantization.sensitivity_chart import chart
from convkit.step import Work

if TYPE_CHECKING:
    from convkit.quantization.calibration_data import CalibrationData

LEAST_SQNR_DB = {"int8": 20.0, "q4": 10.0}
"""What verification asks of a result of that precision, whatever the metric says; a result that
lost nothing by the metric and is refused afterwards would help nobody."""


@dataclass(frozen=True)
class Control:
    """What was found: the layers that stay in float, and what that gives and costs.

    Attributes:
        keep: names of the nodes that stay in float.
        passed: whether no more is lost than may be.
        facts: all of it as JSON values, for the report.
        ranking: layers, most worth giving back first; empty where nothing had to be given back.
        notes: what the report says of it.
        work: hears them.
    """

    keep: frozenset[str]
    passed: bool
    facts: Mapping[str, Any]
    ranking: Sequence[Sensitivity]
    notes: Sequence[str]
    work: Work = field(repr=False)

    @property
    def drop(self) -> float:
        """What is lost, in points; infinite where the result gives no numbers."""
        drop = self.facts["drop"]
        return math.inf if drop is None else float(drop)

    def conclude(self, out: Path) -> None:
        """Tells what was found, and saves the ranking beside the result `out`.

        The result was written with `keep` in float.

        Raises:
            GateError: more is lost than may be; the result may be looked at.
        """
        for line in self.notes:
            self.work.note(line)
        facts = dict(self.facts)
        if self.ranking:
            file = beside(out, ".sensitivity.json")
            facts["ranking"] = file.name
            rows = [each.to_json() for each in self.ranking]
            file.write_text(
                json.dumps({"control": facts, "ranking": rows}, indent=2, allow_nan=False) + "\n"
            )
            beside(out, ".sensitivity.svg").write_text(chart(self.ranking, self.keep))
        self.work.record("control", facts)
        if not self.passed:
            raise gate_error(out, facts)


def beside(out: Path, ending: str) -> Path:
    """Where what belongs to a result goes: beside it, or into its folder."""
    return out / f"model{ending}" if out.is_dir() else out.with_name(out.name + ending)


def controlled(
    make: Make,
    layers: Sequence[Layer],
    data: CalibrationData | None,
    source: Artifact,
    *,
    max_drop: float,
    metric: str | None,
    work: Work,
    is_calibrated: bool = True,
    base: Path | None = None,
    precision: str | None = None,
) -> Control:
    """Finds the cheapest layers that must stay in float for the metric to keep within `max_drop`.

    All are quantized first. Where that loses too much, each layer is quantized alone, which ranks
    them by the noise they make for their price; then the first of the ranking return to float
    until the limit is kept, and those that were not needed are quantized again.

    Args:
        make: writes the model with layers of these names in float; the same file each time, if it
            likes. It is never asked for all layers.
        layers: those that can be quantized, in the graph's order.
        data: what the user calibrates with, all of it; None where nothing was given.
        source: the model in float.
        max_drop: what may be lost, in points of the metric (see `accuracy`).
        metric: by name, or as `module:function`; None: as labels and outputs suggest.
        work: takes notes; its `examples` are used where they have labels.
        is_calibrated: whether what is made was calibrated on `data.shares()[0]`, so that only the
            other share may judge it; if not, all of the data do.
        base: the model in float as it is before layers are quantized, where it differs from the
            source (channels scaled); the noise of layers counts from there.
        precision: of the result. Layers return to float until its outputs keep the noise that
            verification allows as well; None: noise does not count. Nor does it where models
            predict text, which is verified otherwise.

    Raises:
        UsageError: there are neither data nor samples, or the metric cannot be meant.
        SamplesError: the samples do not fit the model, or lack labels that the metric needs.
        StepError: a model does not run.
    """
    judging = judging_data(data, source, work, is_calibrated=is_calibrated)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = graph_file(source.path)
        reference = Reference(path, judging, metric, Path(folder), work.progress)
        least_db = None if source.path.is_dir() or precision is None else LEAST_SQNR_DB[precision]
        search = Search(make, layers, reference, Limits(max_drop, least_db), work, path, base)
        found = search.run()
    seconds = time.perf_counter() - started
    facts = {**search.facts(), "seconds": round(seconds, 1)}
    notes = told(facts, judging, reference.metric, search.before, search.after)
    return Control(search.keep, found, facts, search.ranking, notes, work)


def check_control(
    data: CalibrationData | None,
    source: Artifact,
    work: Work,
    *,
    metric: str | None,
    is_calibrated: bool = True,
) -> None:
    """Sees to it, before anything is quantized, that there is what a metric is measured on.

    Raises:
        UsageError, SamplesError: see `controlled`.
    """
    judging = judging_data(data, source, work, is_calibrated=is_calibrated)
    check_metric(metric, judging.labels, str(judging.path))


def judging_data(
    data: CalibrationData | None, source: Artifact, work: Work, *, is_calibrated: bool
) -> CalibrationData:
    """The samples that judge: those with labels, else those held out of calibration.

    Raises:
        UsageError: there are none.
        SamplesError: they do not fit the model.
    """
    from convkit.quantization.calibration_data import CalibrationData

    examples = None
    if work.examples is not None and not samples.is_text(work.examples):
        try:
            examples = CalibrationData(work.examples, source.inputs)
        except SamplesError:
            if data is None:
                raise
    if examples is not None and (data is None or examples.labels is not None):
        return examples
    if data is None:
        raise UsageError(
            "--max-drop measures on samples what is lost, and there are none.",
            hint="Give some, best with an array 'labels':  --calibration inputs.npz",
        )
    return data.shares()[1] if is_calibrated else data
