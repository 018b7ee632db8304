"""The search of accuracy control: choices of layers, measured until one keeps the limits."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convkit.errors import StepError
from convkit.quantization.accuracy import Score, sqnr_db
from convkit.quantization.giving_back import chosen
from convkit.quantization.layer_times import Ratio, latencies_ms, ratio_of, time_shares
from convkit.quantization.reference import Reference, Trial
from convkit.quantization.sensitivity import Layer, Sensitivity, swept
from convkit.step import Work

Make = Callable[[frozenset[str]], Path]
"""Writes the model with the layers of these names in float, and says where it lies."""

_MARGIN_DB = 0.3
"""Verification may look at other samples."""

_ROUNDING = 1e-12
"""1 - 0.995 is a little more than 0.005."""

_MOST_PRICED = 64
"""Layers given back whose price is measured one by one."""

_TIMED_TOGETHER = 8
_MOST_TIMED_BYTES = 1 << 30
"""Of all models that are held at a time to be timed."""


@dataclass(frozen=True)
class Limits:
    """What a choice of layers must keep.

    Attributes:
        drop: what may be lost, in points of the metric.
        least_db: SQNR that verification will ask for; None: it does not.
    """

    drop: float
    least_db: float | None

    def strain(self, trial: Trial) -> float:
        """How far a trial is beyond the limits; 0 or less where it keeps them."""
        drop = trial.score.drop
        strain = math.inf if math.isnan(drop) else drop - self.drop - _ROUNDING
        if self.least_db is None:
            return strain
        share = 10.0 ** (-(self.least_db + _MARGIN_DB) / 10.0)
        return max(strain, trial.noise_share / float(share) - 1.0)


class Search:
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
        limits: Limits,
        work: Work,
        source: Path,
        base: Path | None,
    ) -> None:
        self.keep: frozenset[str] = frozenset()
        self.ranking: list[Sensitivity] = []
        self._make = make
        self._layers = list(layers)
        self._reference = reference
        self._limits = limits
        self._work = work
        self._source = source
        self._base = base
        self._trials: dict[frozenset[str], Trial] = {}
        self._sizes: dict[frozenset[str], int] = {}
        self._ratios: dict[frozenset[str], Ratio] = {}

    def run(self) -> bool:
        """Whether a choice keeps the limit."""
        if self._strain(frozenset()) <= 0.0:
            return True
        self.ranking = swept(
            self._make,
            self._layers,
            self._reference,
            self._times(),
            base=self._base,
            progress=self._work.progress,
        )
        choice = chosen(self.ranking, self._strain, 0.0)
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
            "max_drop": self._limits.drop,
            "value_before": score.reference,
            "value_quantized": _finite(self.before.value),
            "value": _finite(score.value),
            "drop_quantized": _finite(self.before.drop),
            "drop": _finite(score.drop),
            "interval": None if score.interval is None else [round(e, 6) for e in score.interval],
            "sqnr_db": _decibels(self._trials[self.keep]),
            "sqnr_db_quantized": _decibels(self._trials[everything]),
            "least_sqnr_db": self._limits.least_db,
            "passed": self._strain(self.keep) <= 0.0,
            "trials": self.trials,
            "layer_count": len(self._layers),
            "layers": [self._row(known[name]) for name in sorted(self.keep, key=self._rank)],
            "size_bytes": self._sizes[self.keep],
            "size_bytes_quantized": self._sizes[everything],
            **self._ratio(everything),
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
            **self._ratio(without),
        }

    def _ratio(self, other: frozenset[str]) -> dict[str, Any]:
        """How much longer a run takes as chosen than with `other` in float."""
        ratio = self._ratios.get(other)
        if ratio is None:
            return {"latency_ratio": None, "latency_ratio_ci": None}
        interval = [round(ratio.low, 3), round(ratio.high, 3)]
        return {"latency_ratio": round(ratio.value, 3), "latency_ratio_ci": interval}

    def _rank(self, name: str) -> int:
        return next((at for at, each in enumerate(self.ranking) if name in each.names), 0)

    def _strain(self, keep: frozenset[str]) -> float:
        if keep not in self._trials:
            path = self._make(keep)
            self._sizes[keep] = _size(path)
            self._trials[keep] = self._reference.trial(path)
            self._work.progress("choices of layers measured", self.trials, None)
        return self._limits.strain(self._trials[keep])

    def _times(self) -> dict[str, float]:
        try:
            return time_shares(self._source, self._reference.first())
        except Exception:  # prices are then those of sizes alone
            return {}

    def _price(self) -> None:
        """Sizes and latencies with none in float, and with one fewer each."""
        names = sorted(self.keep, key=self._rank)
        each = [self.keep - {name} for name in names] if len(names) <= _MOST_PRICED else []
        others = list(dict.fromkeys([frozenset[str](), *each])) if names else []
        for begin in range(0, len(others), _TIMED_TOGETHER):
            self._work.progress("the price of layers", begin, len(others))
            self._compare(others[begin : begin + _TIMED_TOGETHER])

    def _compare(self, others: Sequence[frozenset[str]]) -> None:
        """Sizes of other choices, and how much longer a run takes as chosen."""
        several = [self.keep, *others]
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            for number, keep in enumerate(several):
                made = self._make(keep)
                self._sizes[keep] = _size(made)
                paths[str(number)] = _moved(made, Path(folder) / str(number))
            if sum(self._sizes[keep] for keep in several) > _MOST_TIMED_BYTES:
                return
            try:
                runs = latencies_ms(paths, self._reference.first())
            except StepError:
                return
        for number, other in enumerate(others, 1):
            self._ratios[other] = ratio_of(runs["0"], runs[str(number)])


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in _parts(path))


def _parts(path: Path) -> list[Path]:
    """A model file and the files of its weights."""
    data = path.with_name(f"{path.name}.data")
    return [path, *([data] if data.exists() else [])]


def _moved(path: Path, folder: Path) -> Path:
    """Moves a model out of the way of the next one."""
    folder.mkdir()
    for part in _parts(path):
        part.rename(folder / part.name)
    return folder / path.name


def _decibels(trial: Trial) -> float | None:
    """SQNR of the worst output; None where there is no noise, or no number."""
    decibels = sqnr_db(trial.noise_share)
    return round(decibels, 2) if math.isfinite(decibels) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
