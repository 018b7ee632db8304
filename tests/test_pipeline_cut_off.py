"""Full disks and killed processes, on toy formats: no half result under a final name."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_rooms as toy

from convkit import pipeline
from convkit.artifact import Artifact
from convkit.errors import ResourceError
from convkit.recipe import Recipe
from convkit.step import Converter, Rung, Work, ladder, rung


def to_b(only: Rung) -> Converter:
    return ladder("a", "b", only, carries=("fp32",), loses="nothing")


@rung("full_disk")
def full_disk(source: Artifact, out: Path, work: Work) -> None:
    """A framework that hides the system's error in one of its own."""
    out.write_text("half")
    raise RuntimeError("PytorchStreamWriter failed: No space left on device")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.write(tmp_path / "m.a", "a")


def run(model: Path, *steps: Converter, **fields: object) -> object:
    recipe = Recipe.model_validate({"model": str(model), "to": "b", **fields})
    return pipeline.run(recipe, converters=toy.graph(*steps))


def left_beside(model: Path) -> set[str]:
    return {path.name for path in model.parent.iterdir()} - {model.name}


def test_a_destination_under_a_file_is_a_resource_error(model: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be written"):
        run(model, toy.edge("a", "b"), out=model / "sub" / "m.b")


def test_an_error_that_hides_a_full_disk_is_recognised(model: Path) -> None:
    with pytest.raises(ResourceError, match="is full"):
        run(model, to_b(full_disk))
    assert left_beside(model) == set()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_nothing(model: Path, tiny_disk: Path) -> None:
    @rung("large")
    def large(source: Artifact, out: Path, work: Work) -> None:
        """Writes until the disk is full."""
        with out.open("wb") as stream:
            for _ in range(100):
                stream.write(bytes(1 << 20))

    with pytest.raises(ResourceError, match="is full"):
        run(model, to_b(large), out=tiny_disk / "m.b")
    assert list(tiny_disk.iterdir()) == []


def test_a_disk_too_small_is_said_before_work(model: Path, tiny_disk: Path) -> None:
    with model.open("a") as stream:
        stream.write(" " * (60 << 20))
    with pytest.raises(ResourceError, match="are needed") as caught:
        run(model, toy.edge("a", "b"), out=tiny_disk / "m.b")
    assert caught.value.details["needed_bytes"] > 60 << 20


_SLOW_RUN = """
    import signal, sys, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import toy_rooms as toy
    from convkit import cli, pipeline
    from convkit.recipe import Recipe
    from convkit.step import ladder, rung

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

    @rung("slow")
    def slow(source, out, work):
        out.write_text("b fp32")
        print("working", flush=True)
        time.sleep(60)

    step = ladder("a", "b", slow, carries=("fp32",), loses="nothing")
    recipe = Recipe(model={model!r}, to="b")
    sys.exit(cli.outcome(lambda: pipeline.run(recipe, converters=toy.graph(step))))
"""


@pytest.mark.parametrize(
    ("sent", "code", "leftovers"),
    [
        (signal.SIGINT, 130, 0),
        pytest.param(signal.SIGTERM, 143, 0, marks=pytest.mark.slow),
        (signal.SIGKILL, -9, 1),
    ],
)
def test_a_run_cut_off_leaves_no_result_and_the_next_one_works(
    model: Path, sent: signal.Signals, code: int, leftovers: int
) -> None:
    script = textwrap.dedent(_SLOW_RUN).format(tests=str(Path(__file__).parent), model=str(model))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        time.sleep(0.1)
        os.kill(process.pid, sent)
        assert process.wait(timeout=20) == code
    assert len(left_beside(model)) == leftovers
    run(model, toy.edge("a", "b"))
    assert left_beside(model) == {"m.b", "m.b.convkit.json"}
