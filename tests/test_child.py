"""A process of its own: results and errors come back, crashes stay there."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import child_work
import pytest

from convkit.child import Child, ChildDiedError
from convkit.errors import UnknownNameError


def test_a_result_comes_back_whatever_is_printed_meanwhile() -> None:
    assert Child(child_work.add, 2, 3).result() == 5


def test_an_argument_that_does_not_travel_is_an_error_here() -> None:
    child = Child(child_work.add, 2, lambda: 3)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        child.result()
    child.stop()


def test_arrays_come_back_without_a_copy_beside_them() -> None:
    byte_count = 64 << 20
    tracemalloc.start()
    array = Child(child_work.ones, byte_count).result()
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.all()
    assert most_bytes < 1.5 * byte_count


def test_it_runs_in_another_process() -> None:
    assert Child(child_work.process_number).result() != os.getpid()


def test_its_peak_memory_is_known_afterwards() -> None:
    child = Child(child_work.add, 2, 3)
    child.result()
    assert 5 < child.peak_rss_mib < 500


def test_an_error_of_convkit_comes_back_as_it_was() -> None:
    with pytest.raises(UnknownNameError) as caught:
        Child(child_work.refuse).result()
    assert caught.value.hint == "Did you mean 'onnx'?"
    assert caught.value.exit_code == 2
    assert "in refuse" in str(caught.value.__cause__), "where it was raised is known here too"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (child_work.crash, "signal 11"),
        (child_work.break_down, "segment 7 is bent"),
        (child_work.leave, "code 0"),
    ],
)
def test_a_process_without_an_answer_is_reported_with_how_it_ended(function, words: str) -> None:
    with pytest.raises(ChildDiedError, match=words):
        Child(function).result()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends orphans")
def test_it_ends_with_a_parent_that_is_killed() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import time, child_work\n"
        "from convkit.child import Child\n"
        "child = Child(child_work.sleep); time.sleep(1); print(child._process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{number}").exists()


def test_a_stopped_process_is_gone() -> None:
    child = Child(child_work.sleep)
    started = time.monotonic()
    child.stop()
    assert time.monotonic() - started < 30
    with pytest.raises(ChildDiedError, match="signal 9"):
        child.result()
