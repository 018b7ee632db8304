"""What accuracy is, and how much of it a quantized model has lost.

With labels it is what they say is right: `accuracy`, `top5`, `mse`, `mae`, or a function of the
user's. Without labels the model in floating point is what is right: `agreement`, the share of rows
whose largest output is the same one, or `noise`, the share of noise in the outputs.

A drop is a number of points: 0.01 is one percentage point of accuracy, top5 or agreement. Of an
error (`mse`, `mae`) it is how much the error grows, as a share of itself. Of noise it is the share
of noise, 10^(-SQNR / 10): at most 1 % is 20 dB. Of a function it is how much its value falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from convkit.errors import ConvkitError, SamplesError, UsageError
from convkit.factory import find_factory
from convkit.quantization.label_forms import Form, form_of, shown

Array = np.ndarray[Any, Any]
Batch = Mapping[str, Array]

WITH_LABELS = ("accuracy", "top5", "mse", "mae")
WITHOUT_LABELS = ("agreement", "noise")

_TOP = 5
_QUANTILE = 1.96
"""Of the normal distribution, for an interval of 95 %."""


@dataclass(frozen=True)
class Score:
    """How a candidate does beside its reference.

    Attributes:
        reference: value of the metric for the model in floating point.
        value: for the candidate.
        drop: what was lost, in points; negative where something was gained.
        interval: where the drop lies with 95 %, were there all samples; None where unknown.
        count: answers that are right or wrong, a row each or a token each; None where there are
            no such.
    """

    reference: float
    value: float
    drop: float
    interval: tuple[float, float] | None = None
    count: int | None = None


class Tally(Protocol):
    """Adds up batches of outputs, rows first."""

    def add(self, reference: Batch, candidate: Batch, labels: Array | None) -> None:
        """Takes a batch of both models, and what is right."""

    def score(self) -> Score:
        """What they say together."""


@dataclass(frozen=True)
class Metric:
    """A way to say how good outputs are.

    Attributes:
        name: as `--metric` takes it.
        words: what it measures, for the report.
        tally: a new sum.
        has_labels: whether labels say what is right; else the source does.
    """

    name: str
    words: str
    tally: Callable[[], Tally]
    has_labels: bool


def metric_of(
    name: str | None,
    outputs: Batch,
    labels: Array | None,
    classifying: Sequence[str],
    origin: str,
) -> Metric:
    """The metric the user asked for, else the one that outputs and labels suggest.

    Args:
        name: one of the known names, `module:function`, or None.
        outputs: of the model in floating point for all samples.
        labels: of all samples, if there are any.
        classifying: names of outputs whose largest element is what counts.
        origin: where samples and labels come from, for errors.

    Raises:
        UsageError: there is no such metric, or it does not go with these outputs.
        SamplesError: it needs labels and there are none, or they do not fit the outputs.
    """
    if name and ":" in name:
        function = find_factory(name)
        return Metric(name, name, lambda: _Calls(name, function), labels is not None)
    check_metric(name, labels, origin)
    if labels is None or name in WITHOUT_LABELS:
        return _against_source(name, outputs, classifying)
    form = form_of(name, outputs, labels, origin)
    if form.is_regression:
        kind = name or "mse"
        power = 1 if kind == "mae" else 2
        return Metric(kind, f"{kind} of '{form.output}'", lambda: _Errors(form, power), True)
    kind = name or "accuracy"
    words = f"{'top-5 accuracy' if kind == 'top5' else 'accuracy'} of '{form.output}'"
    top = _TOP if kind == "top5" else 1
    return Metric(kind, words, lambda: _Matches(form, top), True)


def check_metric(name: str | None, labels: Array | None, origin: str) -> None:
    """Sees to it that a metric is known, and that there are the labels that it needs.

    Raises:
        UsageError: there is no such metric.
        SamplesError: there are no labels.
        ModelError: the module of a function cannot be imported.
    """
    if name is None:
        return
    if ":" in name:
        find_factory(name)
    elif name not in (*WITH_LABELS, *WITHOUT_LABELS):
        raise UsageError(
            f"Unknown metric '{name}'.",
            why=f"Known: {', '.join((*WITH_LABELS, *WITHOUT_LABELS))}, and module:function.",
            hint="A function of yours takes (outputs, labels) and gives a number, higher is "
            "better:  --metric package.module:function",
        )
    if name in WITH_LABELS and labels is None:
        raise SamplesError(
            f"--metric {name} needs labels, and {origin} has none.",
            hint="Add an array 'labels' with what is right for each sample.\n"
            "Compare with the source instead: leave --metric out.",
        )


def _against_source(name: str | None, outputs: Batch, classifying: Sequence[str]) -> Metric:
    chosen = [each for each in classifying if each in outputs]
    if name == "agreement" and not chosen:
        chosen = [n for n, a in outputs.items() if a.ndim > 1 and a.shape[-1] > 1][:1]
        if not chosen:
            raise UsageError(
                "--metric agreement needs an output with a score for each class.",
                why=shown(outputs),
                hint="--metric noise",
            )
    if chosen and name != "noise":
        form = Form(chosen[0], outputs[chosen[0]].ndim - 1)
        words = f"top-1 agreement of {form.output!r}"
        return Metric("agreement", words, lambda: _Matches(form, 1), False)
    return Metric("noise", "noise in the outputs", _Noise, False)


class _Matches:
    """Rows that are right: by labels, or by the reference."""

    def __init__(self, form: Form, top: int) -> None:
        self._form = form
        self._top = top
        self._count = self._reference = self._candidate = 0
        self._lost = self._gained = 0

    def add(self, reference: Batch, candidate: Batch, labels: Array | None) -> None:
        form = self._form
        if labels is None:
            right = form.winners(reference[form.output])
            before = np.ones(right.shape, bool)
            after = right == form.winners(candidate[form.output])
        else:
            right = form.targets(labels)
            before = form.hits(reference[form.output], right, self._top)
            after = form.hits(candidate[form.output], right, self._top)
            counted = form.is_counted(right)
            before, after = before[counted], after[counted]
        self._count += before.size
        self._reference += int(before.sum())
        self._candidate += int(after.sum())
        self._lost += int((before & ~after).sum())
        self._gained += int((~before & after).sum())

    def score(self) -> Score:
        count = max(self._count, 1)
        before, after = self._reference / count, self._candidate / count
        interval = paired_interval(self._lost, self._gained, count)
        return Score(before, after, before - after, interval, self._count)


def paired_interval(lost: int, gained: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a drop between two models on the same rows.

    Args:
        lost: rows that only the reference has right.
        gained: rows that only the candidate has right.
        count: all rows.

    Source: Agresti and Min, "Simple improved confidence intervals for comparing matched
    proportions", 2005: Wald's interval with half a row added to each of the four cases.
    """
    b, c, n = lost + 0.5, gained + 0.5, count + 2.0
    middle = (b - c) / n
    spread = _QUANTILE * math.sqrt(max(b + c - (b - c) ** 2 / n, 0.0)) / n
    return max(middle - spread, -1.0), min(middle + spread, 1.0)


class _Errors:
    """Mean error against labels, of the first or second power."""

    def __init__(self, form: Form, power: int) -> None:
        self._form = form
        self._power = power
        self._before: list[Array] = []
        self._after: list[Array] = []

    def add(self, reference: Batch, candidate: Batch, labels: Array | None) -> None:
        assert labels is not None
        name = self._form.output
        for kept, outputs in ((self._before, reference), (self._after, candidate)):
            given = outputs[name].astype(np.float64).reshape(len(labels), -1)
            error = np.abs(given - labels.reshape(len(labels), -1)) ** self._power
            kept.append(error.mean(axis=1))  # (rows,)

    def score(self) -> Score:
        before, after = np.concatenate(self._before), np.concatenate(self._after)
        reference, value = float(before.mean()), float(after.mean())
        if not math.isfinite(value):
            return Score(reference, value, math.inf)
        unit = reference or float(np.finfo(np.float32).tiny)
        gap = after - before
        spread = _QUANTILE * float(gap.std()) / math.sqrt(len(gap))
        middle = float(gap.mean())
        interval = (middle - spread) / unit, (middle + spread) / unit
        return Score(reference, value, middle / unit, interval if len(gap) > 1 else None)


class NoiseTally:
    """Power of signal and noise of each output."""

    def __init__(self) -> None:
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}

    def add(self, reference: Batch, candidate: Batch, labels: Array | None = None) -> None:
        """Takes a batch of both."""
        for name, expected in reference.items():
            if expected.dtype.kind != "f" or name not in candidate:
                continue
            finite = np.isfinite(expected)  # masks hold -inf, which is no signal
            signal = expected[finite].astype(np.float64)
            noise = candidate[name][finite].astype(np.float64) - signal
            self._signal[name] = self._signal.get(name, 0.0) + float(np.sum(signal**2))
            self._noise[name] = self._noise.get(name, 0.0) + float(np.sum(noise**2))

    @property
    def share(self) -> float:
        """Power of noise as a share of the signal's, of the worst output; infinite where NaN."""
        worst = 0.0
        for name, noise in self._noise.items():
            if not math.isfinite(noise):
                return math.inf
            signal = self._signal[name]
            worst = max(worst, noise / signal if signal else (math.inf if noise else 0.0))
        return worst


class _Noise(NoiseTally):
    def score(self) -> Score:
        share = self.share
        return Score(0.0, share, share)


class _Calls:
    """A function of the user's, on all outputs at once."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._function = function
        self._reference: list[Batch] = []
        self._candidate: list[Batch] = []
        self._labels: list[Array] = []

    def add(self, reference: Batch, candidate: Batch, labels: Array | None) -> None:
        self._reference.append(reference)
        self._candidate.append(candidate)
        if labels is not None:
            self._labels.append(labels)

    def score(self) -> Score:
        labels = np.concatenate(self._labels) if self._labels else None
        before, after = (self._called(each, labels) for each in (self._reference, self._candidate))
        if not math.isfinite(before):
            raise UsageError(
                f"{self._name} gives {before} for the model in floating point.",
                why="A metric gives a finite number; higher is better.",
            )
        return Score(before, after, before - after if math.isfinite(after) else math.inf)

    def _called(self, batches: Sequence[Batch], labels: Array | None) -> float:
        outputs = joined(batches)
        try:
            return float(self._function(outputs, labels))
        except ConvkitError:
            raise
        except Exception as cause:  # the user's own code may raise anything
            without = " There are no labels." if labels is None else ""
            raise UsageError(
                f"{self._name}(outputs, labels) failed: {type(cause).__name__}: {cause}.{without}",
                why=f"It got {'; '.join(shown(outputs))}.",
                hint="It takes a dict of arrays with all rows, and labels; it gives one number.",
            ) from cause


def joined(batches: Sequence[Batch]) -> dict[str, Array]:
    """All rows of each output; of outputs whose rows differ in size, padded with zeros."""
    return {name: _stacked([batch[name] for batch in batches]) for name in batches[0]}


def _stacked(arrays: Sequence[Array]) -> Array:
    if not arrays[0].ndim:
        return np.stack(arrays)
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        largest = np.max([array.shape[1:] for array in arrays], axis=0)
        arrays = [
            np.pad(
                a, [(0, 0), *((0, int(m - s)) for m, s in zip(largest, a.shape[1:], strict=True))]
            )
            for a in arrays
        ]
    return np.concatenate(arrays)


def sqnr_db(share: float) -> float:
    """A share of noise in dB; infinite where there is none."""
    if share <= 0.0:
        return math.inf
    return -10.0 * math.log10(share) if math.isfinite(share) else -math.inf


def points(share: float) -> str:
    """A share in percentage points, as it is told: `0.5 points`."""
    return f"{100 * share:.3g} points"
