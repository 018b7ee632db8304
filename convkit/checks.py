"""Checks: what one output is held against, limit by limit.

The limits per precision stand in `LIMITS`, each with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convkit import metrics
from convkit.artifact import Precision
from convkit.distributions import Predictions, least_cosine
from convkit.language_limits import LanguageLimits
from convkit.metrics import Array
from convkit.pooling import Pool
from convkit.step import Feeds


@dataclass(frozen=True)
class Limits:
    """How far a result of one precision may be from its source.

    Attributes:
        sqnr_db: at least this signal-to-noise ratio.
        cosine: at least this cosine.
        max_abs: at most this difference, as a share of the reference's largest magnitude.
        top1: at least this share of rows with the same winner.
        floor: a reference whose largest magnitude is below this is zero up to rounding, and asks
            only for a result that is so too. A small output with meaning lies above it.
        reason: why these numbers.
    """

    sqnr_db: float
    cosine: float
    max_abs: float
    top1: float
    floor: float
    reason: str


LIMITS: Mapping[Precision, Limits] = {
    Precision.FP32: Limits(
        sqnr_db=80.0, cosine=0.99999, max_abs=1e-3, top1=1.0, floor=1e-6,
        reason="Runtimes sum in another order: 24-bit mantissas give about 140 dB an operation, "
        "deep or recurrent networks were measured at 95 dB and more; 80 dB is an error of 1e-4.",
    ),
    Precision.FP16: Limits(
        sqnr_db=40.0, cosine=0.999, max_abs=2e-2, top1=0.99, floor=2**-14,
        reason="An 11-bit mantissa gives about 70 dB a rounding; a hundred roundings in a row "
        "cost 20 dB, a margin of 10 dB is left. Below 2^-14 fp16 has no normal numbers.",
    ),
    Precision.BF16: Limits(
        sqnr_db=25.0, cosine=0.99, max_abs=1e-1, top1=0.98, floor=1e-6,
        reason="An 8-bit mantissa gives about 52 dB a rounding; a hundred roundings in a row cost "
        "20 dB, a margin of 7 dB is left.",
    ),
    Precision.INT8: Limits(
        sqnr_db=20.0, cosine=0.99, max_abs=0.3, top1=0.95, floor=1e-6,
        reason="256 levels over the observed range give 30 to 40 dB a layer; below 20 dB accuracy "
        "falls on classifiers. All samples together: of EfficientNet-lite0 at 21 dB, single "
        "pictures were measured at 11 to 29 dB.",
    ),
    Precision.Q4: Limits(
        sqnr_db=10.0, cosine=0.95, max_abs=0.5, top1=0.85, floor=1e-6,
        reason="16 levels a block give about 16 dB on Gaussian weights; 10 dB is what a usable "
        "4-bit model keeps.",
    ),
}  # fmt: skip


POOLED = (Precision.INT8, Precision.Q4)
"""Precisions whose cosine and signal-to-noise ratio are those of all samples together."""


@dataclass(frozen=True)
class Check:
    """One verdict on one output: a measured value against its limit."""

    output: str
    metric: str
    value: float
    limit: float
    passed: bool
    sample: str = ""

    def to_json(self) -> dict[str, Any]:
        """The JSON of `checks`."""
        return {
            "output": self.output,
            "metric": self.metric,
            "value": _json_number(self.value),
            "limit": self.limit,
            "passed": self.passed,
            "sample": self.sample,
        }


def label_of(feeds: Feeds) -> str:
    """A sample by its shapes: `x (1, 3, 224, 224)`."""
    return ", ".join(f"{name} {array.shape}" for name, array in feeds.items())


class Tally:
    """Collects checks and keeps the worst of each (output, metric).

    Args:
        limits: how far numbers may be apart.
        precision: of the candidate.
        may_widen: float32 serves where the reference gives a half.
    """

    def __init__(self, limits: Limits, precision: Precision, *, may_widen: bool = False) -> None:
        self._limits = limits
        self._precision = precision
        self._may_widen = may_widen
        self._worst: dict[tuple[str, str], Check] = {}
        self._faint: dict[str, float] = {}
        self._predictions: dict[str, Predictions] = {}
        self._pools: dict[str, Pool] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Where a check says less, or more, than it seems to."""
        faint = (
            f"On these inputs '{name}' stays below {peak:.1g}, near what its runtime resolves; "
            "compare on real ones:  --samples inputs.npz"
            for name, peak in self._faint.items()
        )
        return (*map(str, self._predictions.values()), *faint)

    @property
    def checks(self) -> tuple[Check, ...]:
        """The worst of each."""
        predicted = (
            check
            for name, found in self._predictions.items()
            for check in _of_predictions(name, found)
        )
        pooled = (
            check
            for name, pool in self._pools.items()
            for check in _of_pool(name, pool, self._limits)
        )
        return (*self._worst.values(), *pooled, *predicted)

    def add(self, check: Check) -> None:
        """Keeps the check if it is worse than what is held."""
        key = (check.output, check.metric)
        held = self._worst.get(key)
        if held is None or _worse(check, held):
            self._worst[key] = check

    def judge(
        self, name: str, expected: Array, got: Array, label: str, resolution: float = 0.0
    ) -> None:
        """Shape and dtype contract, then the numbers where shapes allow it."""
        same_shape = expected.shape == got.shape
        shapes = label if same_shape else f"{label}: {got.shape}, not {expected.shape}"
        self.add(Check(name, "shape", float(not same_shape), 0.0, same_shape, shapes))
        same_dtype = expected.dtype == got.dtype or self._may_become(expected, got)
        dtypes = label if same_dtype else f"{label}: {got.dtype}, not {expected.dtype}"
        self.add(Check(name, "dtype", float(not same_dtype), 0.0, same_dtype, dtypes))
        if same_shape and _is_real(expected) and _is_real(got):
            self._judge_real(name, expected, got, label, resolution)
        elif same_shape:
            share = metrics.agreement(expected, got)
            limit = self._limits.top1
            self.add(Check(name, "agreement", share, limit, share >= limit, label))

    def _may_become(self, expected: Array, got: Array) -> bool:
        """Whether an output may have another dtype than in the reference."""
        is_own = _is_real(expected) and got.dtype.name == _FLOAT_OF.get(self._precision)
        is_wider = expected.dtype.name in _FLOAT_OF.values() and got.dtype.name == "float32"
        return is_own or (is_wider and self._may_widen)

    def judge_meaning(
        self,
        name: str,
        feeds: Feeds,
        pair: tuple[Array, Array],
        limits: LanguageLimits,
        *,
        is_vector: bool,
    ) -> None:
        """Shape, then what logits say of the next token, or where embeddings point.

        Args:
            name: of the output.
            feeds: the inputs.
            pair: reference and candidate, (batch, sequence, vocabulary or width).
            limits: how far they may be apart.
            is_vector: they are embeddings.
        """
        label, (expected, got) = label_of(feeds), pair
        same_shape = expected.shape == got.shape
        shapes = label if same_shape else f"{label}: {got.shape}, not {expected.shape}"
        self.add(Check(name, "shape", float(not same_shape), 0.0, same_shape, shapes))
        bad = metrics.nonfinite_count(expected, got) if same_shape else 1
        self.add(Check(name, "nonfinite", float(bad), 0.0, bad == 0, label))
        if bad:
            return
        if is_vector:
            value = least_cosine(feeds, expected, got)
            passed = value >= limits.cosine
            self.add(Check(name, "token_cosine", value, limits.cosine, passed, label))
        else:
            self._predictions.setdefault(name, Predictions(limits)).add(feeds, expected, got)

    def _judge_real(
        self, name: str, expected: Array, got: Array, label: str, resolution: float
    ) -> None:
        limits = self._limits
        bad = metrics.nonfinite_count(expected, got)
        self.add(Check(name, "nonfinite", float(bad), 0.0, bad == 0, label))
        reference, candidate = _finite(expected, got)
        peak = metrics.peak(reference)
        if 0.0 < peak < resolution * _TELLING:
            self._faint[name] = max(peak, self._faint.get(name, 0.0))
        worst = metrics.max_abs(reference, candidate)
        allowed = max(limits.max_abs * peak if peak > limits.floor else limits.floor, resolution)
        self.add(Check(name, "max_abs", worst, allowed, worst <= allowed, label))
        is_noise = max(peak, worst) <= limits.floor
        if self._precision in POOLED:
            if not is_noise:
                close = (
                    candidate if resolution == 0 else _resolved(reference, candidate, resolution)
                )
                self._pools.setdefault(name, Pool()).add(reference, close)
        else:
            self._judge_ratios(name, (reference, candidate), label, resolution, is_noise=is_noise)
        if expected.ndim >= 2 and expected.shape[-1] > 1:
            share = metrics.top1_agreement(reference, candidate, margin=2 * allowed)
            self.add(Check(name, "top1_agreement", share, limits.top1, share >= limits.top1, label))

    def _judge_ratios(
        self,
        name: str,
        pair: tuple[Array, Array],
        label: str,
        resolution: float,
        *,
        is_noise: bool,
    ) -> None:
        """Cosine and signal-to-noise ratio of one sample."""
        limits, (reference, candidate) = self._limits, pair
        for metric, limit in (("cosine", limits.cosine), ("sqnr_db", limits.sqnr_db)):
            measure = getattr(metrics, metric)
            value = measure(reference, candidate)
            passed = value >= limit or is_noise
            if not passed and resolution > 0:
                passed = measure(reference, _resolved(reference, candidate, resolution)) >= limit
            self.add(Check(name, metric, value, limit, passed, label))


def _finite(expected: Array, got: Array) -> tuple[Array, Array]:
    """Both with zeros where either is not finite; as they are where all is, which is large."""
    if np.isfinite(metrics.peak(expected)) and np.isfinite(metrics.peak(got)):
        return expected, got
    finite = np.isfinite(expected) & np.isfinite(got)
    zeros = (np.zeros((), array.dtype) for array in (expected, got))
    return np.where(finite, expected, next(zeros)), np.where(finite, got, next(zeros))


def _resolved(reference: Array, candidate: Array, resolution: float) -> Array:
    """The candidate, equal to the reference where it differs by less than can be told."""
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    return np.where(np.abs(c - r) <= resolution, r, c)


def _of_pool(name: str, pool: Pool, limits: Limits) -> Iterator[Check]:
    for metric, value in (("cosine", pool.cosine), ("sqnr_db", pool.sqnr_db)):
        limit = getattr(limits, metric)
        yield Check(name, metric, value, limit, value >= limit, "all inputs together")


def _of_predictions(name: str, found: Predictions) -> Iterator[Check]:
    limits = found.limits
    yield Check(name, "kl", found.kl, limits.kl, found.kl <= limits.kl)
    yield Check(name, "top1_agreement", found.top1, limits.top1, found.top1 >= limits.top1)
    apart = found.ln_perplexity
    if apart is not None:
        limit = limits.ln_perplexity
        yield Check(name, "ln_perplexity", apart, limit, apart <= limit)


_TELLING = 1e3
"""An output this many times larger than its resolution is compared to three digits."""

_FLOAT_OF = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}
_LOWER_IS_BETTER = (
    "max_abs",
    "kl",
    "ln_perplexity",
    "nonfinite",
    "shape",
    "dtype",
    "name",
    "runs",
    "output_count",
)


def _worse(check: Check, held: Check) -> bool:
    if check.passed != held.passed:
        return not check.passed
    if np.isnan(check.value):
        return True
    if check.metric == "max_abs":  # limits scale with the sample's peak
        return check.value / check.limit > held.value / held.limit
    if check.metric in _LOWER_IS_BETTER:
        return check.value > held.value
    return check.value < held.value


def _is_real(array: Array) -> bool:
    is_small: bool = array.dtype.name.startswith(("bfloat", "float8"))
    return array.dtype.kind == "f" or is_small


def _json_number(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)
