"""One model while it is measured: opens it in a process of its own, feeds it, keeps the times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convkit import library, resources, samples
from convkit.artifact import Artifact, TensorSpec
from convkit.errors import ConvkitError, SamplesError, StepError
from convkit.matching import accepts, fit_feeds
from convkit.processors import thread_count
from convkit.step import Feeds, LanguageRunner, Runner, Sizes

_SEED = 0
_MIB = 1 << 20
_WINDOW_S = 0.05
_WINDOW_RUNS = 5
_STEADY = 0.03
"""Two windows in a row whose medians differ by no more than this end the warm-up."""


@dataclass(frozen=True)
class Opened:
    """What opening a model took, and what it takes.

    Attributes:
        inputs: specs.
        import_ms: loading the packages that run it, most of a cold start.
        load_ms: opening the model itself.
    """

    inputs: tuple[TensorSpec, ...]
    import_ms: float
    load_ms: float


@dataclass(frozen=True)
class Warmth:
    """How a model came to its speed.

    Attributes:
        first_run_ms: the very first call at this batch.
        run_ms: a call at the end.
        run_count: calls it took.
        is_steady: whether it had stopped changing when the time was over.
    """

    first_run_ms: float
    run_ms: float
    run_count: int
    is_steady: bool


@dataclass(frozen=True)
class Block:
    """A block of timed calls.

    Attributes:
        runs_ms: each call.
        waited_s: time in which a thread was ready to run and no processor was free.
        seconds: of the whole block.
    """

    runs_ms: np.ndarray[tuple[int], np.dtype[np.float64]]
    waited_s: float
    seconds: float


class Subject:
    """An opened model that is asked for calls.

    Raises:
        ConvkitError: it cannot be opened here.
    """

    def __init__(self, artifact: Artifact) -> None:
        from convkit import graph
        from convkit.loading import load_module

        self._name = artifact.path.name
        started = time.perf_counter()
        for need in graph.discover().format(artifact.format).needs:
            if need.is_available:
                try:
                    load_module(need.module)
                except ImportError:  # one in its place serves
                    continue
        imported = time.perf_counter()
        self._runner: Runner = library.open_as_verified(artifact, exactly=False)
        opened = time.perf_counter()
        self._times = (imported - started) * 1e3, (opened - imported) * 1e3
        self._load_peak = resources.peak_rss_bytes()
        self._feeds: Feeds = {}

    def opened(self) -> Opened:
        """What opening took."""
        return Opened(self._runner.inputs, *self._times)

    def example(self, sizes: Sizes, examples: Path | None) -> Feeds:
        """Inputs that the model makes sense of: the user's first sample, or seeded ones.

        Raises:
            SamplesError: the samples cannot be read.
        """
        specs = self._runner.inputs
        if examples is None:
            return self._runner.example(sizes, _SEED)
        if samples.is_text(examples):
            feeds = self._row_of_text(examples)
        else:
            feeds = samples.without_labels(samples.read(examples)[0], specs)
        known = {name: size for name, size in _sizes_of(feeds, specs).items() if name not in sizes}
        return samples.resize(feeds, specs, {**known, **sizes})

    def _row_of_text(self, path: Path) -> Feeds:
        from convkit.recording import text_windows

        row = text_windows(self._runner, path)[0]
        names = {spec.name for spec in self._runner.inputs}
        return {name: array for name, array in row.items() if name in names}

    def prepare(self, feeds: Feeds, specs: Sequence[TensorSpec]) -> None:
        """Takes inputs made for a model with these specs, for all calls that follow.

        Raises:
            SamplesError: this model does not take them.
        """
        own = self._runner.inputs
        if own and not accepts(own, feeds):
            raise SamplesError(f"{self._name} takes {'; '.join(map(str, own))} only.")
        fitted = dict(fit_feeds(feeds, specs, own)) if own else dict(feeds)
        if isinstance(self._runner, LanguageRunner) and not self._runner.can_take(fitted):
            raise SamplesError(f"{self._name} cannot be asked this.")
        self._feeds = {name: np.ascontiguousarray(array) for name, array in fitted.items()}

    def warm(self, limit_s: float) -> Warmth:
        """Runs until two windows in a row are equally fast, or the time is over.

        Raises:
            ConvkitError: the model fails on these inputs.
        """
        with resources.measured():  # the peak of memory begins anew
            first_ms = self._guarded_call()
            started = time.perf_counter()
            run_ms, count, is_steady = first_ms, 1, False
            while not is_steady and time.perf_counter() - started < limit_s:
                window = self._window()
                median = float(np.median(window))
                is_steady = abs(median / run_ms - 1) <= _STEADY
                run_ms, count = median, count + len(window)
        return Warmth(first_ms, run_ms, count, is_steady)

    def _guarded_call(self) -> float:
        try:
            return self._call()
        except ConvkitError:
            raise
        except MemoryError:
            raise
        except Exception as cause:  # frameworks raise what they like
            lines = str(cause).splitlines() or [type(cause).__name__]
            raise StepError(f"{self._name} fails on these inputs.", why=lines[0][:300]) from cause

    def _window(self) -> list[float]:
        started, window = time.perf_counter(), [self._call()]
        while len(window) < _WINDOW_RUNS and time.perf_counter() - started < 20 * _WINDOW_S:
            window.append(self._call())
        while time.perf_counter() - started < _WINDOW_S:
            window.append(self._call())
        return window

    def run(self, count: int, lead: int) -> Block:
        """Times `count` calls, after `lead` calls that bring caches and threads back."""
        for _ in range(lead):
            self._call()
        waited, started = waited_s(), time.perf_counter()
        runs = np.array([self._call() for _ in range(count)])
        return Block(runs, waited_s() - waited, time.perf_counter() - started)

    def peak_rss_mib(self) -> float:
        """Peak memory of this process, at opening or at these inputs, whichever was more."""
        return max(self._load_peak, resources.peak_rss_bytes()) / _MIB

    def _call(self) -> float:
        runner, feeds = self._runner, self._feeds
        started = time.perf_counter_ns()
        runner(feeds)
        runner.synchronize()
        return (time.perf_counter_ns() - started) / 1e6


def _sizes_of(feeds: Feeds, specs: Sequence[TensorSpec]) -> dict[str, int]:
    """Sizes that feeds give to the dynamic dimensions of specs."""
    return {
        size: feeds[spec.name].shape[axis]
        for spec in specs
        if spec.name in feeds and feeds[spec.name].ndim == len(spec.shape)
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    }


def waited_s() -> float:
    """Seconds that a thread of this process waited for a processor so far; 0 where nobody counts.

    The mean of as many threads as compute.

    Source: Linux Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat: time spent on the
    processor, time spent waiting on a run queue (nanoseconds), number of timeslices.
    """
    total = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            total += int((task / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return total / 1e9 / thread_count()
