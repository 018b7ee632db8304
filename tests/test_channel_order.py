"""A model whose channels were moved to the end on request is compared as its source has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkit import verification
from convkit.artifact import Precision, TensorSpec
from convkit.channel_order import as_in_source
from convkit.step import Feeds, Outputs, Runner, Sizes


class Doubled(Runner):
    """Doubles an image."""

    def __init__(self, *shape: int | str, channels_last: frozenset[str] = frozenset()) -> None:
        self.inputs = (TensorSpec("x", "float32", shape),)
        self.outputs = (TensorSpec("y", "float32", shape),)
        self.channels_last = channels_last

    def __call__(self, feeds: Feeds) -> Outputs:
        assert feeds["x"].shape[3 if self.channels_last else 1] == 3
        return {"y": feeds["x"] * 2}

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        shape = [
            size if isinstance(size, int) else sizes.get(size, 2) for size in self.inputs[0].shape
        ]
        return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


MOVED = frozenset({"x", "y"})


def recorded(runner: Runner) -> Any:
    return verification.record(runner, [runner.example({}, 0)], 1)


def test_what_was_moved_is_moved_back_to_be_compared() -> None:
    source = recorded(Doubled("n", 3, 5, 7))
    candidate = Doubled("n", 5, 7, 3, channels_last=MOVED)
    compared = verification.compare(source, candidate, Precision.FP32)
    assert compared.checks
    assert all(check.passed for check in compared.checks)


def test_an_order_that_nobody_asked_for_is_a_failure() -> None:
    source = recorded(Doubled("n", 3, 5, 7))
    candidate = Doubled("n", 5, 7, 3)
    compared = verification.compare(source, candidate, Precision.FP32)
    assert not all(check.passed for check in compared.checks)


def test_two_models_with_their_channels_last_are_compared_as_they_are() -> None:
    source = recorded(Doubled("n", 5, 7, 3, channels_last=MOVED))
    assert source.channels_last == MOVED
    candidate = Doubled("n", 5, 7, 3, channels_last=MOVED)
    compared = verification.compare(source, candidate, Precision.FP32)
    assert all(check.passed for check in compared.checks)


def test_specs_and_examples_have_the_sources_order() -> None:
    runner = as_in_source(Doubled("n", 5, 7, 3, channels_last=MOVED), MOVED)
    assert str(runner.inputs[0]) == "x: float32[n, 3, 5, 7]"
    assert runner.example({"n": 4}, 0)["x"].shape == (4, 3, 5, 7)
    plain = Doubled("n", 3, 5, 7)
    assert as_in_source(plain, frozenset()) is plain
