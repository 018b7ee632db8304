"""Compares two runs of a model: the contract of their outputs, and the numbers in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convkit.artifact import Precision, TensorSpec
from convkit.channel_order import as_in_source
from convkit.checks import LIMITS as LIMITS
from convkit.checks import POOLED, Tally
from convkit.checks import Check as Check
from convkit.checks import Limits as Limits
from convkit.checks import label_of as label_of
from convkit.distributions import without_padding
from convkit.errors import ConvkitError, StepError
from convkit.language_limits import Party, limits_between
from convkit.matching import accepts, fit_feeds, lost_dimensions
from convkit.step import Feeds, Outputs, Runner

Array = np.ndarray[Any, Any]


_IN_FLOAT = Party(Precision.FP32)
_HALVES = (Precision.FP16, Precision.BF16)


@dataclass(frozen=True)
class Recording:
    """A model's outputs on inputs it accepts; what every later candidate is compared with.

    Attributes:
        inputs, outputs: its specs; outputs in order.
        runs: (feeds, outputs) pairs.
        refused: shapes the model itself refused, with its words.
        resolution, channels_last, distributions, vectors: see `Runner`.
        party: what its weights are worth, and what its runtime rounds.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runs: tuple[tuple[Feeds, Outputs], ...]
    refused: tuple[str, ...] = ()
    resolution: Mapping[str, float] = field(default_factory=dict)
    channels_last: frozenset[str] = frozenset()
    distributions: frozenset[str] = frozenset()
    vectors: frozenset[str] = frozenset()
    party: Party = _IN_FLOAT

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
    runner: Runner,
    samples: Iterable[Feeds],
    enough: int,
    given: Sequence[Feeds] = (),
    precision: Precision = Precision.FP32,
) -> Recording:
    """Runs a model on samples until it accepted `enough`; the ones it refuses are left out.

    What the source refuses is never asked of a result; what it accepts always is. Where all outputs
    are empty (an image smaller than the network shrinks it) nothing can be compared: such a sample
    serves only if no other does, or if it is one of those `given` by the user. The model's
    `precision` counts where it predicts text.

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
        runner.distributions,
        runner.vectors,
        _party(runner, precision),
    )


def _party(runner: Runner, precision: Precision) -> Party:
    return Party(precision, runner.scheme, runner.rounds_activations)


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
    usable = [
        run
        for run in reference.runs
        if accepts(candidate.inputs, run[0]) and candidate.can_take(run[0])
    ]
    if not usable:
        shapes = "; ".join(map(str, candidate.inputs))
        check = Check("inputs", "shape", 1.0, 0.0, False, f"takes none of the inputs: {shapes}")
        return Comparison((check,), lost)
    tally = Tally(
        LIMITS[_judged_at(reference.party.precision, precision)],
        precision,
        may_widen=not same_names or precision not in _HALVES,
    )
    limits = limits_between(reference.party, _party(candidate, precision))
    distributions = reference.distributions | candidate.distributions
    vectors = reference.vectors | candidate.vectors
    renamed: dict[str, str] = {}
    without: set[str] = set()
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
            if other is None and name in candidate.without:
                without.add(name)
            elif other is None:
                tally.add(Check(name, "name", 1.0, 0.0, False, f"got {', '.join(got)}"))
            elif name in distributions | vectors:
                pair = (expected[name], got[other])
                tally.judge_meaning(name, feeds, pair, limits, is_vector=name in vectors)
            else:
                resolution = max(
                    reference.resolution.get(name, 0.0), candidate.resolution.get(other, 0.0)
                )
                reference_array, array = expected[name], got[other]
                if precision in POOLED and reference_array.shape == array.shape:
                    reference_array, array = without_padding(feeds, reference_array, array)
                tally.judge(name, reference_array, array, label, resolution)
        extra = max(len(got) - len(expected), 0) if without else len(got) - len(expected)
        tally.add(Check("all", "output_count", float(extra), 0.0, extra == 0, label))
    notes = [f"'{name}' has no place in this format" for name in sorted(without)]
    unasked = sum(not candidate.can_take(feeds) for feeds, _ in reference.runs)
    if unasked:
        notes.append(f"{unasked} of {len(reference.runs)} inputs cannot be asked of this format")
    return Comparison(tally.checks, lost, tuple(renamed.items()), (*tally.notes, *notes))


def _judged_at(reference: Precision, candidate: Precision) -> Precision:
    """The precision whose limits count: a source that computes in halves measures no finer."""
    known = (reference, candidate) if reference in _HALVES else (candidate,)
    return min(known, key=lambda precision: LIMITS[precision].sqnr_db)


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


def _first_line(error: Exception) -> str:
    if isinstance(error, ConvkitError):
        return " ".join((error.what, *error.why[:1]))[:300]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
