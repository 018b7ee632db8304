"""A process that is asked again and again."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import worker_work

from convkit.child import ChildDiedError
from convkit.errors import UnknownNameError
from convkit.worker import Worker


def test_the_object_keeps_its_state_from_question_to_question() -> None:
    with Worker(worker_work.Counter, 3) as worker:
        worker.ready()
        assert [worker.ask("add", 2), worker.ask("add", 5)] == [5, 10]
        assert worker.ask("process") != os.getpid()


def test_an_error_of_convkit_comes_back_and_the_object_can_be_asked_on() -> None:
    with Worker(worker_work.Counter, 0) as worker:
        worker.ready()
        with pytest.raises(UnknownNameError) as caught:
            worker.ask("refuse")
        assert "in refuse" in str(caught.value.__cause__), "where it was raised is known here too"
        assert worker.ask("add", 1) == 1


def test_an_object_that_cannot_be_made_is_an_error() -> None:
    with Worker(worker_work.unmade) as worker, pytest.raises(UnknownNameError, match="onxn"):
        worker.ready()


@pytest.mark.parametrize(
    ("method", "words"), [("crash", "signal 11"), ("break_down", "segment 7 is bent")]
)
def test_a_process_that_dies_over_a_question_is_reported_with_how(method: str, words: str) -> None:
    with Worker(worker_work.Counter, 0) as worker:
        worker.ready()
        with pytest.raises(ChildDiedError, match=words):
            worker.ask(method)
        with pytest.raises(ChildDiedError, match=words):
            worker.ask("add", 1)


def test_the_environment_is_changed_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVKIT_TEST_KEPT", "kept")
    monkeypatch.setenv("CONVKIT_TEST_GONE", "there")
    changes = {"CONVKIT_TEST_NEW": "new", "CONVKIT_TEST_GONE": None}
    with Worker(worker_work.Counter, 0, environment=changes) as worker:
        worker.ready()
        names = ["CONVKIT_TEST_KEPT", "CONVKIT_TEST_GONE", "CONVKIT_TEST_NEW"]
        assert worker.ask("variables", names) == ["kept", None, "new"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process does")
def test_a_frozen_process_does_nothing_until_it_is_asked() -> None:
    with Worker(worker_work.Counter, 0) as worker:
        worker.ready()
        number = worker.ask("spin")
        ticks = _ticks(number)
        while _ticks(number) == ticks:  # a thread spins on
            pass
        worker.freeze()
        while _state(number) != "T":  # the signal is on its way
            pass
        ticks = _ticks(number)
        time.sleep(0.1)
        assert (_state(number), _ticks(number)) == ("T", ticks)
        assert worker.ask("add", 1) == 1
        assert _state(number) != "T"


def _fields(number: int) -> list[str]:
    """Source: proc(5), /proc/pid/stat from its third field on."""
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()


def _state(number: int) -> str:
    return _fields(number)[0]


def _ticks(number: int) -> int:
    return int(_fields(number)[11]) + int(_fields(number)[12])
