"""Compares two runs of a model: the contract of their outputs, and the numbers in them.

The limits per precision stand in `LIMITS`, each with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convkit import metrics
from convkit.artifact import Precision, TensorSpec
from convkit.channel_order import as_in_source
from convkit.errors import ConvkitError, StepError
from convkit.matching import accepts, fit_feeds, lost_dimensions
from convkit.step import Feeds, Outputs, Runner

Array = np.ndarray[Any, Any]


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
        "falls on classifiers.",
    ),
    Precision.Q4: Limits(
        sqnr_db=10.0, cosine=0.95, max_abs=0.5, top1=0.85, floor=1e-6,
        reason="16 levels a block give about 16 dB on Gaussian weights; 10 dB is what a usable "
        "4-bit model keeps.",
    ),
}  # fmt: skip


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


@dataclass(frozen=True)
class Recording:
    """A model's outputs on inputs it accepts; what every later candidate is compared with.

    Attributes:
        inputs, outputs: its specs; outputs in order.
        runs: (feeds, outputs) pairs.
        refused: shapes the model itself refused, with its words.
        resolution, channels_last: see `Runner`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runs: tuple[tuple[Feeds, Outputs], ...]
    refused: tuple[str, ...] = ()
    resolution: Mapping[str, float] = field(default_factory=dict)
    channels_last: frozenset[str] = frozenset()

    @property
    def samples(self) -> tuple[Feeds, ...]:
        """The inputs alone."""
        return tuple(feeds for feeds, _ in self.runs)


@dataclass(frozen=True)
class Comparison:
    """What comparing two models gave.

    Attributes:
        checks: all verdicts, the worst sample of each.
        lost: dynamic dimensions of the reference that the candidate fixed, `input.dimension`.
        renamed: reference output -> candidate output, where names differ.
        notes: where the comparison says less than it seems to.
    """

    checks: tuple[Check, ...]
    lost: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)


def record(
    runner: Runner, samples: Iterable[Feeds], enough: int, given: Sequence[Feeds] = ()
) -> Recording:
    """Runs a model on samples until it accepted `enough`; the ones it refuses are left out.

    What the source refuses is never asked of a result; what it accepts always is. Where all outputs
    are empty (an image smaller than the network shrinks it) nothing can be compared: such a sample
    serves only if no other does, or if it is one of those `given` by the user.

    Raises:
        StepError: it accepted none.
    """
    runs: list[tuple[Feeds, Outputs]] = []
    empty: list[tuple[Feeds, Outputs]] = []
    refused: list[str] = []
    cause: Exception | None = None
    wanted = {id(feeds) for feeds in given}
    for feeds in samples:
        try:
            outputs = runner(feeds)
        except Exception as error:  # any framework may refuse with any type
            cause = error
            refused.append(f"{label_of(feeds)}: {_first_line(error)}")
            continue
        says_something = any(array.size for array in outputs.values()) or id(feeds) in wanted
        (runs if says_something else empty).append((feeds, outputs))
        if len(runs) == enough:
            break
    runs = runs or empty[:enough]
    if not runs:
        if isinstance(cause, ConvkitError):
            raise cause
        raise StepError(
            "The source model does not run on the inputs it was given.",
            why=refused[:3],
            hint="Give inputs that it accepts:  --samples inputs.npz",
        ) from cause
    specs = runner.outputs or _observed_specs([outputs for _, outputs in runs])
    return Recording(
        tuple(runner.inputs),
        tuple(specs),
        tuple(runs),
        tuple(refused),
        dict(runner.resolution),
        runner.channels_last,
    )


def compare(
    reference: Recording, candidate: Runner, precision: Precision, *, same_names: bool = True
) -> Comparison:
    """Runs the candidate on the reference's inputs and judges it by the limits of its precision.

    Args:
        reference: what the source computed.
        candidate: the opened result.
        precision: of the candidate; the limits follow from it.
        same_names: whether outputs must be called as in the reference. If not, outputs with other
            names are matched by their order.
    """
    candidate = as_in_source(candidate, candidate.channels_last - reference.channels_last)
    lost = lost_dimensions(reference.inputs, candidate.inputs)
    usable = [run for run in reference.runs if accepts(candidate.inputs, run[0])]
    if not usable:
        shapes = "; ".join(map(str, candidate.inputs))
        check = Check("inputs", "shape", 1.0, 0.0, False, f"takes none of the inputs: {shapes}")
        return Comparison((check,), lost)
    tally = _Tally(LIMITS[precision], precision)
    renamed: dict[str, str] = {}
    for feeds, expected in usable:
        label = label_of(feeds)
        try:
            got = candidate(fit_feeds(feeds, reference.inputs, candidate.inputs))
        except Exception as error:  # a result that cannot run has failed, whatever it raised
            tally.add(Check("all", "runs", 1.0, 0.0, False, f"{label}: {_first_line(error)}"))
            continue
        names = _match(expected, got, same_names)
        renamed |= {name: other for name, other in names.items() if other and other != name}
        for name, other in names.items():
            if other is None:
                tally.add(Check(name, "name", 1.0, 0.0, False, f"got {', '.join(got)}"))
            else:
                resolution = max(
                    reference.resolution.get(name, 0.0), candidate.resolution.get(other, 0.0)
                )
                tally.judge(name, expected[name], got[other], label, resolution)
        extra = len(got) - len(expected)
        tally.add(Check("all", "output_count", float(extra), 0.0, extra == 0, label))
    return Comparison(tally.checks, lost, tuple(renamed.items()), tally.notes)


class _Tally:
    """Collects checks and keeps the worst of each (output, metric)."""

    def __init__(self, limits: Limits, precision: Precision) -> None:
        self._limits = limits
        self._precision = precision
        self._worst: dict[tuple[str, str], Check] = {}
        self._faint: dict[str, float] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"On these inputs '{name}' stays below {peak:.1g}, near what its runtime resolves; "
            "compare on real ones:  --samples inputs.npz"
            for name, peak in self._faint.items()
        )

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(self._worst.values())

    def add(self, check: Check) -> None:
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
        same_dtype = expected.dtype == got.dtype or (
            _is_real(expected) and got.dtype.name == _FLOAT_OF.get(self._precision)
        )
        dtypes = label if same_dtype else f"{label}: {got.dtype}, not {expected.dtype}"
        self.add(Check(name, "dtype", float(not same_dtype), 0.0, same_dtype, dtypes))
        if same_shape and _is_real(expected) and _is_real(got):
            self._judge_real(name, expected, got, label, resolution)
        elif same_shape:
            share = metrics.agreement(expected, got)
            limit = self._limits.top1
            self.add(Check(name, "agreement", share, limit, share >= limit, label))

    def _judge_real(
        self, name: str, expected: Array, got: Array, label: str, resolution: float
    ) -> None:
        limits = self._limits
        bad = metrics.nonfinite_count(expected, got)
        self.add(Check(name, "nonfinite", float(bad), 0.0, bad == 0, label))
        finite = np.isfinite(expected.astype(np.float64)) & np.isfinite(got.astype(np.float64))
        reference = np.where(finite, expected, 0).astype(np.float64)
        candidate = np.where(finite, got, 0).astype(np.float64)
        peak = float(np.max(np.abs(reference), initial=0.0))
        if 0.0 < peak < resolution * _TELLING:
            self._faint[name] = max(peak, self._faint.get(name, 0.0))
        worst = metrics.max_abs(reference, candidate)
        allowed = max(limits.max_abs * peak if peak > limits.floor else limits.floor, resolution)
        self.add(Check(name, "max_abs", worst, allowed, worst <= allowed, label))
        resolved = np.where(np.abs(candidate - reference) <= resolution, reference, candidate)
        is_noise = max(peak, worst) <= limits.floor
        for metric, limit in (("cosine", limits.cosine), ("sqnr_db", limits.sqnr_db)):
            measure = getattr(metrics, metric)
            value = measure(reference, candidate)
            passed = value >= limit or is_noise or measure(reference, resolved) >= limit
            self.add(Check(name, metric, value, limit, passed, label))
        if expected.ndim >= 2 and expected.shape[-1] > 1:
            share = metrics.top1_agreement(reference, candidate, margin=2 * allowed)
            self.add(Check(name, "top1_agreement", share, limits.top1, share >= limits.top1, label))


_TELLING = 1e3
"""An output this many times larger than its resolution is compared to three digits."""

_FLOAT_OF = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}
_LOWER_IS_BETTER = ("max_abs", "nonfinite", "shape", "dtype", "name", "runs", "output_count")


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


def label_of(feeds: Feeds) -> str:
    """A sample by its shapes: `x (1, 3, 224, 224)`."""
    return ", ".join(f"{name} {array.shape}" for name, array in feeds.items())


def _match(expected: Outputs, got: Outputs, same_names: bool) -> dict[str, str | None]:
    if same_names or set(expected) <= set(got):
        return {name: name if name in got else None for name in expected}
    others = list(got)
    return {name: others[i] if i < len(others) else None for i, name in enumerate(expected)}


def _observed_specs(runs: Sequence[Outputs]) -> tuple[TensorSpec, ...]:
    """Output specs as runs showed them; a size that changed between runs is dynamic."""
    specs = []
    for name, array in runs[0].items():
        shapes = [run[name].shape for run in runs if name in run and run[name].ndim == array.ndim]
        shape: tuple[int | str, ...] = tuple(
            size if all(other[axis] == size for other in shapes) else f"{name}_dim{axis}"
            for axis, size in enumerate(array.shape)
        )
        specs.append(TensorSpec(name, array.dtype.name, shape))
    return tuple(specs)


def _is_real(array: Array) -> bool:
    is_small: bool = array.dtype.name.startswith(("bfloat", "float8"))
    return array.dtype.kind == "f" or is_small


def _first_line(error: Exception) -> str:
    if isinstance(error, ConvkitError):
        return " ".join((error.what, *error.why[:1]))[:300]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _json_number(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)
