from __future__ import annotations

import threading
import tracemalloc
from collections import defaultdict

import numpy as np

from convkit.checkpoint.rows import Array, Held
from convkit.checkpoint.stored import RecentArrays, TurnedAround


class Owner:
    """Stands for a tensor."""


class Maker:
    """Counts how often arrays are made."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.owners: dict[str, Owner] = defaultdict(Owner)

    def get(self, recent: RecentArrays, owner: str) -> Array:
        def make() -> tuple[Array, ...]:
            self.made.append(owner)
            return (np.zeros(100, np.uint8),)

        return recent.get(self.owners[owner], make)[0]


def test_arrays_are_kept_up_to_the_limit_and_the_oldest_go_first() -> None:
    recent, maker = RecentArrays(250), Maker()
    for owner in ("a", "b", "c", "a", "d", "c", "b"):
        maker.get(recent, owner)
    # With a, b, c there are 300 bytes, so that before d the oldest goes: b, since a was used again.
    assert maker.made == ["a", "b", "c", "d", "b"]


def test_arrays_that_another_thread_is_using_are_kept_whatever_the_limit() -> None:
    recent, maker = RecentArrays(0), Maker()
    can_go_on, has_begun = threading.Event(), threading.Event()

    def work() -> None:
        maker.get(recent, "theirs")
        has_begun.set()
        can_go_on.wait(10)
        maker.get(recent, "theirs")

    other = threading.Thread(target=work)
    other.start()
    has_begun.wait(10)
    for owner in ("a", "b", "a"):
        maker.get(recent, owner)
    can_go_on.set()
    other.join()
    assert maker.made == ["theirs", "a", "b", "a"]


def test_threads_that_want_the_same_arrays_make_them_once() -> None:
    recent, maker = RecentArrays(1000), Maker()
    threads = [threading.Thread(target=maker.get, args=(recent, "a")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert maker.made == ["a"]


def test_arrays_go_with_the_tensor_that_they_belong_to() -> None:
    recent, maker = RecentArrays(1000), Maker()
    maker.get(recent, "a")
    del maker.owners["a"]
    maker.get(recent, "a")
    assert maker.made == ["a", "a"]


def test_of_many_matrices_that_are_turned_around_one_is_held_at_a_time() -> None:
    recent = RecentArrays(0)
    matrices = [TurnedAround(Held(np.full((256, 512), i)), recent) for i in range(8)]
    tracemalloc.start()
    try:
        assert [matrix.array().max() for matrix in matrices] == list(range(8))
        assert tracemalloc.get_traced_memory()[1] < 3 * 4 * 256 * 512
    finally:
        tracemalloc.stop()
