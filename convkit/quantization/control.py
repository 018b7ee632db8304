"""Accuracy control: which layers stay in float, so that no more is lost than the user allows."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit import samples
from convkit.artifact import Artifact
from convkit.errors import SamplesError, StepError, UsageError
from convkit.onnx_folder import graph_file
from convkit.quantization.accuracy import Score, check_metric
from convkit.quantization.control_words import gate_error, told
from convkit.quantization.giving_back import chosen
from convkit.quantization.layer_times import latencies_ms, time_shares
from convkit.quantization.reference import Reference, Trial
from convkit.quantization.sensitivity import Layer, Sensitivity, swept
from convkit.quantization.sensitivity_chart import chart
from convkit.step import Work

if TYPE_CHECKING:
    from convkit.quantization.calibration_data import CalibrationData

Make = Callable[[frozenset[str]], Path]
"""Writes the model with the layers of these names in float, and says where it lies."""

_MOST_PRICED = 12
"""Layers given back whose price is measured one by one."""

_MOST_TIMED_BYTES = 1 << 30
"""Of all models that are held at a time to be timed."""


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
        search = _Search(make, layers, reference, max_drop, work, path, base)
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


class _Search:
    """Measures choices of layers until one keeps the limit.

    Attributes:
        keep: what was chosen.
        ranking: of the sweep, if there was one.
    """

    def __init__(
        self,
        make: Make,
        layers: Sequence[Layer],
        reference: Reference,
        max_drop: float,
        work: Work,
        source: Path,
        base: Path | None,
    ) -> None:
        self.keep: frozenset[str] = frozenset()
        self.ranking: list[Sensitivity] = []
        self._make = make
        self._layers = list(layers)
        self._reference = reference
        self._limit = max_drop
        self._work = work
        self._source = source
        self._base = base
        self._trials: dict[frozenset[str], Trial] = {}
        self._sizes: dict[frozenset[str], int] = {}
        self._latencies: dict[frozenset[str], float] = {}

    def run(self) -> bool:
        """Whether a choice keeps the limit."""
        if self._drop(frozenset()) <= self._limit:
            return True
        self.ranking = swept(
            self._make,
            self._layers,
            self._reference,
            self._times(),
            base=self._base,
            progress=self._work.progress,
        )
        choice = chosen(self.ranking, self._drop, self._limit)
        self.keep = choice.keep
        self._price()
        return choice.keeps_limit

    @property
    def trials(self) -> int:
        """Choices of layers that were measured."""
        return len(self._trials)

    @property
    def before(self) -> Score:
        """With all layers quantized."""
        return self._trials[frozenset()].score

    @property
    def after(self) -> Score:
        """With what was chosen in float."""
        return self._trials[self.keep].score

    def facts(self) -> dict[str, Any]:
        """What was found, as JSON values."""
        score, everything = self.after, frozenset[str]()
        known = {layer.name: layer for layer in self._layers}
        return {
            "metric": self._reference.metric.name,
            "against": "labels" if self._reference.metric.has_labels else "source",
            "samples": self._reference.count,
            "max_drop": self._limit,
            "value_before": score.reference,
            "value_quantized": _finite(self.before.value),
            "value": _finite(score.value),
            "drop_quantized": _finite(self.before.drop),
            "drop": _finite(score.drop),
            "interval": None if score.interval is None else [round(e, 6) for e in score.interval],
            "passed": score.drop <= self._limit,
            "trials": self.trials,
            "layer_count": len(self._layers),
            "layers": [self._row(known[name]) for name in sorted(self.keep, key=self._rank)],
            "size_bytes": self._sizes[self.keep],
            "size_bytes_quantized": self._sizes[everything],
            "latency_ratio": self._ratio(everything),
        }

    def _row(self, layer: Layer) -> dict[str, Any]:
        """A layer given back, and its price: what it would save to quantize it after all."""
        without = self.keep - {layer.name}
        size = self._sizes.get(without)
        return {
            "name": layer.name,
            "op_type": layer.op_type,
            "parameter_count": layer.parameter_count,
            "bytes": None if size is None else self._sizes[self.keep] - size,
            "latency_ratio": self._ratio(without),
        }

    def _ratio(self, other: frozenset[str]) -> float | None:
        """How much longer a run takes as chosen than with `other` in float."""
        if not {self.keep, other} <= self._latencies.keys():
            return None
        return round(self._latencies[self.keep] / self._latencies[other], 3)

    def _rank(self, name: str) -> int:
        return next((at for at, each in enumerate(self.ranking) if name in each.names), 0)

    def _drop(self, keep: frozenset[str]) -> float:
        if keep not in self._trials:
            path = self._make(keep)
            self._sizes[keep] = _size(path)
            self._trials[keep] = self._reference.trial(path)
            self._work.progress("choices of layers measured", self.trials, None)
        drop = self._trials[keep].score.drop
        return math.inf if math.isnan(drop) else drop

    def _times(self) -> dict[str, float]:
        try:
            return time_shares(self._source, self._reference.first())
        except Exception:  # prices are then those of sizes alone
            return {}

    def _price(self) -> None:
        """Sizes and latencies with one layer fewer in float each, and with none."""
        names = sorted(self.keep, key=self._rank)
        each = [self.keep - {name} for name in names] if len(names) <= _MOST_PRICED else []
        several = list(dict.fromkeys([self.keep, frozenset[str](), *each]))
        if not self.keep:
            return
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            for number, keep in enumerate(several):
                self._work.progress("the price of layers", number, len(several))
                made = self._make(keep)
                self._sizes[keep] = _size(made)
                paths[str(number)] = _copied(made, Path(folder) / str(number))
            if sum(self._sizes[keep] for keep in several) > _MOST_TIMED_BYTES:
                return
            try:
                medians = latencies_ms(paths, self._reference.first())
            except StepError:
                return
        self._latencies = {keep: medians[str(n)] for n, keep in enumerate(several)}


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in _parts(path))


def _parts(path: Path) -> list[Path]:
    """A model file and the files of its weights."""
    data = path.with_name(f"{path.name}.data")
    return [path, *([data] if data.exists() else [])]


def _copied(path: Path, folder: Path) -> Path:
    """Moves a model out of the way of the next one."""
    folder.mkdir()
    for part in _parts(path):
        part.rename(folder / part.name)
    return folder / path.name


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
