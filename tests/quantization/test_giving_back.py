from __future__ import annotations

import itertools

import numpy as np
import pytest

from convkit.quantization.giving_back import MOST_SPARED, chosen
from convkit.quantization.sensitivity import Sensitivity

LAYERS = 10


def ranking_of(noises: np.ndarray, prices: np.ndarray) -> list[Sensitivity]:
    several = [
        Sensitivity((f"layer {at}",), "Conv", 1, float(noise), 0.0, float(price))
        for at, (noise, price) in enumerate(zip(noises, prices, strict=True))
    ]
    return sorted(several, key=lambda each: -each.worth)


@pytest.mark.parametrize("seed", range(6))
def test_noise_that_adds_up_is_taken_away_at_little_more_than_the_least_price(seed: int) -> None:
    dice = np.random.default_rng(seed)
    noises, prices = dice.lognormal(0, 2, LAYERS), dice.lognormal(0, 1, LAYERS)
    prices /= prices.sum()
    limit = 0.05 * float(noises.sum())
    measured = []

    def drop(keep: frozenset[str]) -> float:
        measured.append(keep)
        return sum(n for at, n in enumerate(noises) if f"layer {at}" not in keep)

    def price(keep: frozenset[str]) -> float:
        return sum(p for at, p in enumerate(prices) if f"layer {at}" in keep)

    choice = chosen(ranking_of(noises, prices), drop, limit)
    assert choice.keeps_limit
    assert choice.strain == drop(choice.keep) <= limit
    every = (
        frozenset(f"layer {at}" for at in kept)
        for count in range(LAYERS + 1)
        for kept in itertools.combinations(range(LAYERS), count)
    )
    least = min(price(keep) for keep in every if drop(keep) <= limit)
    assert price(choice.keep) <= 1.35 * least  # greedy by worth, then what is needless goes


def test_a_thousand_layers_take_some_thirty_measurements() -> None:
    noises = np.random.default_rng(0).lognormal(0, 2, 1000)
    count = 0

    def drop(keep: frozenset[str]) -> float:
        nonlocal count
        count += 1
        return sum(n for at, n in enumerate(noises) if f"layer {at}" not in keep)

    choice = chosen(ranking_of(noises, np.full(1000, 1e-3)), drop, 0.3 * float(noises.sum()))
    assert choice.keeps_limit
    assert count <= 2 * 10 + MOST_SPARED + 1


def test_nothing_is_given_back_where_nothing_is_lost() -> None:
    choice = chosen(ranking_of(np.ones(3), np.ones(3)), lambda keep: 0.001, 0.01)
    assert (choice.keep, choice.keeps_limit) == (frozenset(), True)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_where_nothing_suffices_the_best_choice_is_told(count: int) -> None:
    choice = chosen(
        ranking_of(np.ones(count), np.ones(count)), lambda keep: 1.0 - 0.1 * len(keep), 0.01
    )
    assert not choice.keeps_limit
    assert len(choice.keep) == count - 1  # one at least stays quantized
    assert choice.strain == pytest.approx(1.0 - 0.1 * (count - 1))


def test_where_worth_leads_nowhere_noise_does() -> None:
    loud = Sensitivity(("loud",), "Gemm", 1, noise_share=1.0, time_share=0.0, size_share=0.98)
    quiet = Sensitivity(("quiet",), "Gemm", 1, noise_share=0.1, time_share=0.0, size_share=0.02)
    ranking = [quiet, loud]
    choice = chosen(ranking, lambda keep: 0.1 if "loud" in keep else 1.0, 0.5)
    assert (choice.keep, choice.keeps_limit) == ({"loud"}, True)
