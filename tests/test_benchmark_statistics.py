"""Statistics of benchmarks on numbers whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convkit import benchmark_statistics as statistics


def rounds_of(values: np.ndarray, count: int) -> list[np.ndarray]:
    return list(np.split(values, count))


@pytest.mark.parametrize(("percent", "least"), [(50, 20), (95, 200), (99, 1000)])
def test_a_percentile_needs_ten_runs_beyond_it(percent: float, least: int) -> None:
    runs = np.arange(least, dtype=float)
    assert statistics.percentile(runs[:-1], percent) is None
    assert statistics.percentile(runs, percent) == np.percentile(runs, percent)


def test_medians_of_rounds_drawn_anew_are_those_of_the_runs_written_out() -> None:
    generator = np.random.default_rng(1)
    series = [generator.random(int(size)) for size in generator.integers(1, 6, 9)]
    counts = generator.integers(0, 4, (50, 9))
    counts[:, 0] += 1  # at least one round
    wanted = [
        np.median(
            np.concatenate([np.repeat(one, count) for one, count in zip(series, row, strict=True)])
        )
        for row in counts
    ]
    assert statistics._weighted_medians(series, counts) == pytest.approx(wanted, abs=0)


def test_the_interval_of_a_median_is_as_wide_as_theory_says() -> None:
    runs = np.random.default_rng(2).normal(10.0, 1.0, 3000)
    low, high = statistics.interval(statistics.medians([rounds_of(runs, 100)])[0])
    # Standard error of a normal median: sqrt(pi / 2 / n); the bootstrap's own error is about 10 %.
    wanted = 2 * 1.96 * math.sqrt(math.pi / 2 / 3000)
    assert high - low == pytest.approx(wanted, rel=0.25)
    assert low < np.median(runs) < high


@pytest.mark.parametrize("of_rounds", [0.0, 1.0, 4.0])
def test_nineteen_in_twenty_intervals_hold_the_truth_whatever_rounds_have_in_common(
    of_rounds: float,
) -> None:
    held, trials = 0, 200
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        common = np.repeat(generator.normal(0, of_rounds, 60), 5)
        runs = 100 + common + generator.normal(0, 1, 300)
        drawn = statistics.medians([rounds_of(runs, 60)], draws=400)[0]
        low, high = statistics.interval(drawn)
        held += low <= 100 <= high
    # 95 % of 200 with a standard deviation of 1.5 %; percentile intervals of few rounds are a
    # little narrow.
    assert 0.89 <= held / trials <= 0.995


def test_what_slows_all_models_down_alike_leaves_their_ratio_narrow() -> None:
    generator = np.random.default_rng(3)
    weather = np.repeat(np.exp(generator.normal(0, 0.3, 100)), 10)
    slow = weather * generator.normal(2.0, 0.01, 1000)
    fast = weather * generator.normal(1.0, 0.005, 1000)
    first, second = statistics.medians([rounds_of(slow, 100), rounds_of(fast, 100)])
    low, high = statistics.interval(first / second)
    assert low < 2 < high
    assert high - low < 0.1
    alone = statistics.interval(first)
    assert (alone[1] - alone[0]) / 2 > 5 * (high - low) / 2


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((1.01, 1.2), "faster"),
        ((0.8, 0.99), "slower"),
        ((0.99, 1.3), "same"),
        ((1.0, 1.3), "same"),
        (None, ""),
    ],
)
def test_a_word_is_said_only_where_the_interval_excludes_one(interval, word: str) -> None:
    assert statistics.verdict(interval) == word


def test_starts_that_differ_widen_an_interval_and_starts_that_agree_do_not() -> None:
    assert statistics.widened((0.9, 1.1), 1.0, [1.0, 1.0, 1.0]) == (0.9, 1.1)
    low, high = statistics.widened((0.99, 1.01), 1.0, [0.8, 1.0, 1.25]) or (1.0, 1.0)
    # By hand: logarithms -0.223, 0, 0.223; deviation 0.223; 4.303 * 0.223 / sqrt(3) = 0.554.
    assert math.log(high) == pytest.approx(0.554, abs=2e-3)
    assert math.log(low) == pytest.approx(-0.554, abs=2e-3)
    assert statistics.widened((0.99, 1.01), 1.0, [0.5, 2.0]) == (0.99, 1.01)
    assert statistics.widened(None, 1.0, [1.0, 2.0, 3.0]) is None


def test_quantiles_of_student_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for starts, quantile in statistics._STUDENT.items():
        assert quantile == pytest.approx(stats.t.ppf(0.975, starts - 1), abs=5e-4)


def test_drift_is_the_change_between_the_first_and_the_last_third() -> None:
    steady = [np.full(3, 2.0)] * 9
    assert statistics.drift(steady) == 0
    assert statistics.drift([*steady[:6], *[np.full(3, 2.5)] * 3]) == pytest.approx(0.25)
    assert statistics.drift(steady[:5]) is None


def test_spread_is_the_width_of_the_middle_half() -> None:
    assert statistics.spread(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 / 3)
