"""Noise over all samples together."""

from __future__ import annotations

import numpy as np
import pytest

from convkit import metrics
from convkit.artifact import Precision
from convkit.checks import LIMITS, Tally
from convkit.pooling import Pool

GENERATOR = np.random.default_rng(0)


def test_a_pool_is_worth_what_the_metrics_say_of_all_samples_joined() -> None:
    samples = [GENERATOR.standard_normal((n, 9)).astype(np.float32) * n for n in (1, 3, 8)]
    others = [sample + GENERATOR.standard_normal(sample.shape) * 0.1 for sample in samples]
    pool = Pool()
    for sample, other in zip(samples, others, strict=True):
        pool.add(sample, other)
    joined = np.concatenate(samples), np.concatenate(others)
    assert pool.sqnr_db == pytest.approx(metrics.sqnr_db(*joined))
    assert pool.cosine == pytest.approx(metrics.cosine(*joined))


def test_pools_of_equal_and_of_empty_signals_are_worth_what_metrics_say() -> None:
    zeros, ones = np.zeros(4), np.ones(4)
    for pair in ((ones, ones), (zeros, ones), (zeros, zeros), (ones, zeros)):
        pool = Pool()
        pool.add(*pair)
        assert (pool.sqnr_db, pool.cosine) == (metrics.sqnr_db(*pair), metrics.cosine(*pair))


@pytest.mark.parametrize(
    ("precision", "passes"), [("int8", True), ("q4", True), ("fp16", False), ("fp32", False)]
)
def test_one_faint_sample_among_many_fails_floating_point_only(
    precision: str, passes: bool
) -> None:
    limits = LIMITS[Precision(precision)]
    tally = Tally(limits, Precision(precision))
    noise = 10 ** (-(limits.sqnr_db + 5) / 20)  # 5 dB better than asked; 9 dB worse where faint
    for strength in (0.2, *[1.0] * 11):
        sample = GENERATOR.standard_normal((1, 1000)) * strength
        tally.judge("y", sample, sample + noise * GENERATOR.standard_normal((1, 1000)), "")
    ratios = [check for check in tally.checks if check.metric == "sqnr_db"]
    assert [check.passed for check in ratios] == [passes]
