"""What a series of latencies tells: percentiles, intervals, ratios, drift. Pure functions.

Runs come in rounds: in each one every model runs for a moment, one after the other. Runs of a round
resemble each other more than runs of another (clock, caches, neighbours), so whole rounds are what
is drawn anew when an interval is estimated, the same ones for every model: what slows all of them
down alike leaves their ratio as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Interval = tuple[float, float]

LEAST_ROUNDS = 6
"""Of five runs of a kind not even all between the smallest and the largest is a 95 % interval of
their median. Source: order statistics, 1 - 2 / 2**n >= 0.95."""

BEYOND = 10
"""Runs that lie above a percentile which is stated: p99 needs 1,000 runs, p95 200."""

DRIFT = 0.05
"""Change between the first and the last third of a measurement that is told."""

_DRAWS = 2000
_CHUNK = 4_000_000
_SEED = 0
_TAIL = 0.025
_STUDENT = {3: 4.303, 4: 3.182, 5: 2.776}
"""Number of starts -> 97.5 % quantile of Student's t with one degree of freedom fewer."""


def percentile(runs: Array, percent: float) -> float | None:
    """A percentile by linear interpolation; None with too few runs beyond it."""
    if len(runs) * (100 - percent) / 100 < BEYOND - 1e-9:
        return None
    return float(np.percentile(runs, percent))


def medians(rounds: Sequence[Sequence[Array]], draws: int = _DRAWS, seed: int = _SEED) -> Array:
    """Medians of each model over rounds drawn anew: (models, draws).

    Rounds are drawn in blocks of neighbours, as many as the cube root of their number, so that
    what lasts longer than a round stays in.

    Args:
        rounds: per model, per round, its latencies; all models have the same number of rounds.
        draws: how often.
        seed: the same one draws the same rounds.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), sections 8.5 and 8.6;
    Politis and Romano, "A circular block-resampling procedure for stationary data" (1992).
    """
    counts = _picked(len(rounds[0]), draws, np.random.default_rng(seed))  # (draws, rounds)
    return np.stack([_weighted_medians(series, counts) for series in rounds])


def _picked(round_count: int, draws: int, generator: np.random.Generator) -> Array:
    """How often each round was drawn: (draws, rounds)."""
    block = max(1, round(round_count ** (1 / 3)))
    starts = generator.integers(0, round_count, (draws, -(-round_count // block)))
    picks = (starts[:, :, None] + np.arange(block)) % round_count
    picks = picks.reshape(draws, -1)[:, :round_count]
    offsets = picks + np.arange(draws)[:, None] * round_count
    counts = np.bincount(offsets.ravel(), minlength=draws * round_count)
    return counts.reshape(draws, round_count)


def _weighted_medians(series: Sequence[Array], counts: Array) -> Array:
    """The median of all runs, each counted as often as its round was drawn; one per draw."""
    runs = np.concatenate(series)
    home = np.repeat(np.arange(len(series)), [len(one) for one in series])
    order = np.argsort(runs, kind="stable")
    runs, home = runs[order], home[order]
    step = max(1, _CHUNK // len(runs))
    found = [
        _chunk_medians(runs, counts[at : at + step, home]) for at in range(0, len(counts), step)
    ]
    return np.concatenate(found)


def _chunk_medians(runs: Array, weights: Array) -> Array:
    below = np.cumsum(weights, axis=1)
    total = below[:, -1]
    low = np.argmax(below >= ((total + 1) // 2)[:, None], axis=1)
    high = np.argmax(below >= (total // 2 + 1)[:, None], axis=1)
    middle: Array = (runs[low] + runs[high]) / 2
    return middle


def interval(drawn: Array) -> Interval:
    """The 95 % interval of drawn statistics, by their percentiles."""
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def widened(within: Interval | None, value: float, starts: Sequence[float]) -> Interval | None:
    """An interval that also holds what differs from one start of the processes to another.

    Args:
        within: the interval by runs; None stays None.
        value: the statistic over all starts.
        starts: the same of each start alone; of fewer than three no spread is known.

    Source: Student's t of their logarithms, two-sided 95 %; Kalibera and Jones (2013), section 9.
    """
    if within is None or len(starts) < min(_STUDENT):
        return within
    logs = np.log(starts)
    half = _STUDENT[min(len(starts), max(_STUDENT))] * logs.std(ddof=1) / np.sqrt(len(starts))
    low, high = value * np.exp(-half), value * np.exp(half)
    return min(within[0], float(low)), max(within[1], float(high))


def verdict(speedup: Interval | None) -> str:
    """`faster` or `slower` than the first model where the whole interval says so, else `same`.

    Empty where there is no interval.
    """
    if speedup is None:
        return ""
    low, high = speedup
    return "faster" if low > 1 else "slower" if high < 1 else "same"


def drift(series: Sequence[Array]) -> float | None:
    """How much slower the last third of the rounds is than the first: 0.1 is 10 %.

    None with too few rounds.
    """
    third = len(series) // 3
    if third < 2:
        return None
    first, last = (np.median(np.concatenate(part)) for part in (series[:third], series[-third:]))
    return float(last / first - 1)


def spread(runs: Array) -> float:
    """The width of the middle half of the runs as a share of their median."""
    low, middle, high = np.percentile(runs, [25, 50, 75])
    return float((high - low) / middle)


def joined(rounds: Sequence[Array]) -> Array:
    """All runs of all rounds."""
    return np.concatenate(rounds)


def median(runs: Array) -> float:
    """The median."""
    return float(np.median(runs))
