"""Metrics: identical arrays give the perfect value; a pair worked by hand; NaN stated."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy import special
from scipy.spatial import distance

from convkit import metrics

R = np.array([[1.0, 2.0, 2.0], [3.0, 0.0, 4.0]])


@pytest.mark.parametrize(
    ("metric", "perfect"),
    [
        (metrics.max_abs, 0.0),
        (metrics.cosine, 1.0),
        (metrics.sqnr_db, math.inf),
        (metrics.kl, 0.0),
        (metrics.top1_agreement, 1.0),
        (metrics.agreement, 1.0),
        (metrics.nonfinite_count, 0),
    ],
)
def test_identical_arrays_give_the_perfect_value(metric, perfect) -> None:
    assert metric(R, R) == pytest.approx(perfect)


def test_max_abs_by_hand() -> None:
    assert metrics.max_abs(np.array([1.0, -2.0]), np.array([1.5, -4.0])) == 2.0


def test_max_abs_of_half_precision_does_not_overflow() -> None:
    a, b = np.array([60000.0], np.float16), np.array([-60000.0], np.float16)
    assert metrics.max_abs(a, b) == pytest.approx(2 * 60000, rel=1e-3)  # fp16 spacing there is 32


def test_max_abs_with_nan_is_nan() -> None:
    assert math.isnan(metrics.max_abs(np.array([1.0]), np.array([math.nan])))


def test_cosine_by_hand() -> None:
    assert metrics.cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)


def test_cosine_of_huge_and_tiny_values_neither_overflows_nor_vanishes() -> None:
    a = np.array([1e200, 1e200])
    assert metrics.cosine(a, a * 1e-300) == pytest.approx(1.0)


@pytest.mark.parametrize(("other", "value"), [([0.0, 0.0], 1.0), ([1.0, 0.0], 0.0)])
def test_cosine_with_zeros(other: list[float], value: float) -> None:
    assert metrics.cosine(np.zeros(2), np.array(other)) == value


def test_sqnr_by_hand() -> None:
    # signal 100, noise 1: 20 dB
    assert metrics.sqnr_db(np.array([6.0, 8.0]), np.array([7.0, 8.0])) == pytest.approx(20.0)


def test_sqnr_of_a_zero_reference_is_minus_infinity() -> None:
    assert metrics.sqnr_db(np.zeros(2), np.ones(2)) == -math.inf


def test_kl_by_hand() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): ln 2 / 2 + ln(2/3) / 2
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert metrics.kl(p, q) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_top1_agreement_by_hand() -> None:
    candidate = np.array([[1.0, 3.0, 2.0], [5.0, 0.0, 4.0]])
    assert metrics.top1_agreement(np.array([[1, 3, 2], [3, 0, 4]]), candidate) == 0.5


def test_top1_agreement_leaves_out_rows_that_the_reference_does_not_decide() -> None:
    reference, candidate = np.array([[1.0, 1.001], [0.0, 9.0]]), np.array([[2.0, 1.0], [0.0, 9.0]])
    assert metrics.top1_agreement(reference, candidate, margin=0.01) == 1.0


def test_top1_by_hand() -> None:
    winners, leads = metrics.top1(np.array([[[1.0, 4.0, 2.5]], [[7.0, 7.0, 0.0]]]))
    assert winners.tolist() == [1, 0]
    assert leads.tolist() == [1.5, 0.0]


def test_arrays_of_any_length_are_measured_as_a_whole() -> None:
    random = np.random.default_rng(0)
    r = random.standard_normal((5, 40_000), np.float32)
    c = r + random.standard_normal(r.shape, np.float32) / 100
    c[4, 39_999] = 9.0
    wide, other = r.astype(np.float64), c.astype(np.float64)
    noise = wide - other
    assert metrics.max_abs(r, c) == np.abs(noise).max()
    assert metrics.peak(c) == 9.0
    assert metrics.sqnr_db(r, c) == pytest.approx(
        10 * np.log10(np.square(wide).sum() / np.square(noise).sum())
    )
    assert 1 - metrics.cosine(r, c) == pytest.approx(distance.cosine(wide.ravel(), other.ravel()))
    p, q = special.softmax(wide, axis=-1), special.softmax(other, axis=-1)
    assert metrics.kl(r, c) == pytest.approx(special.rel_entr(p, q).sum(-1).mean())
    same = wide.argmax(-1) == other.argmax(-1)
    assert not same.all()
    assert metrics.top1_agreement(r, c) == same.mean()


def test_logits_are_compared_in_far_less_memory_than_they_fill() -> None:
    logits = np.random.default_rng(0).standard_normal((1, 64, 49_152), np.float32)
    tracemalloc.start()
    for metric in (metrics.cosine, metrics.sqnr_db, metrics.kl, metrics.top1_agreement):
        metric(logits, logits)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < logits.nbytes / 2


def test_nonfinite_counts_where_they_differ() -> None:
    reference = np.array([1.0, math.nan, math.inf, 2.0])
    candidate = np.array([math.nan, math.nan, -math.inf, 2.0])
    assert metrics.nonfinite_count(reference, candidate) == 2
