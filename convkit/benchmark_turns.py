"""Lets models take turns, each in a process of its own.

All run in short rounds, one after the other, so that what slows the machine down slows all of them
down. While one runs, the others are stopped (SIGSTOP): threads of ONNX Runtime keep a processor
busy for 31 ms after a call, waiting for the next one, and those of PyTorch for 7 ms. Switching that
waiting off instead would measure something else than users get: it made the same model 15 % (ONNX
Runtime) and 27 % (PyTorch, OMP_WAIT_POLICY=passive) slower on two cores. So every runtime keeps its
own defaults. The first call of a turn, which finds cold caches, is not timed where calls are short.

Where opening is cheap, all processes are started several times: where memory and threads happen to
lie differs from start to start, and makes two copies of one model differ by more than chance.

Source: Kalibera and Jones, "Rigorous benchmarking in reasonable time" (2013): repeat at the highest
level that varies. Mytkowicz et al., "Producing wrong data without doing anything obviously wrong!"
(2009): what differs from start to start.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convkit import benchmark_machine
from convkit import benchmark_statistics as statistics
from convkit.artifact import Artifact, TensorSpec
from convkit.benchmark_inputs import batches_for, check_alike, shared_sizes, source_for, takes
from convkit.benchmark_report import labels
from convkit.benchmark_results import Series
from convkit.benchmark_subject import Opened, Subject
from convkit.child import ChildDiedError
from convkit.errors import ConvkitError, SamplesError, StepError, UsageError
from convkit.listener import Listener
from convkit.step import Feeds
from convkit.worker import Worker

_WARM_S = 1.0
_WARM_SHARE = 0.1
_SURVEY_S = 0.5
_ROUNDS = 100
_TURN_S = (0.02, 0.25)
"""How long a turn is at least and at most."""
_LEAD_BELOW = 1 / 4
"""A call that takes less than this share of a turn is led by one that is not timed."""
_LAUNCHES = (3, 5)
"""How often processes are started where it pays; of two starts no spread can be told."""
_LAUNCH_SHARE = 0.3
"""Of the measuring time, that starting again may take on top."""
_ENOUGH = 20
"""Rounds that a hint asks the time for."""


@dataclass
class _Contender:
    """A model in its process."""

    artifact: Artifact
    label: str
    worker: Worker
    opened: Opened = field(default_factory=lambda: Opened((), 0.0, 0.0))

    def ask(self, method: str, *arguments: Any) -> Any:
        """What its subject answers; the process is stopped again afterwards.

        Raises:
            ConvkitError: the model fails, or its process died.
        """
        try:
            answer = self.worker.ask(method, *arguments)
        except ChildDiedError as cause:
            raise died(self.label, cause) from cause
        self.worker.freeze()
        return answer


def died(name: str, cause: ChildDiedError) -> StepError:
    """The error of a process that ended while it ran a model."""
    return StepError(
        f"The process that ran {name} {cause}.",
        why="A kill by the system (signal 9) means that memory ran out.",
        hint="See what this machine has:  convkit doctor",
    )


@dataclass
class Heat:
    """All models at one batch.

    Attributes:
        feeds: what they are given.
        specs: input specs of the model that the feeds were made for.
        several: what each gave; the first model first.
    """

    batch: int
    feeds: Feeds
    specs: Sequence[TensorSpec]
    several: list[Series]

    @property
    def running(self) -> list[Series]:
        """Those that did not fail."""
        return [series for series in self.several if series.is_running]

    @property
    def round_s(self) -> float:
        """A call of each."""
        return sum(series.warmth.run_ms / 1e3 for series in self.running if series.warmth)


def measured(
    artifacts: Sequence[Artifact],
    batches: Sequence[int],
    examples: Path | None,
    threads: int | None,
    time_s: float,
    listener: Listener,
) -> list[Heat]:
    """Measures all models at all batches for so long together.

    Raises:
        SamplesError: the models do not take the same inputs.
        UsageError: the time does not suffice for a single run.
        ConvkitError: a model cannot be opened.
    """
    heats: list[Heat] = []
    done, launch_count = 0, 1
    while done < launch_count:
        with ExitStack() as stack:
            started = time.perf_counter()
            contenders = _opened(artifacts, threads, stack, listener)
            if not heats:
                opening_s = time.perf_counter() - started
                heats = _surveyed(contenders, batches, examples, listener)
                launch_count = _launch_count(heats, opening_s, time_s)
            for heat in heats:
                share_s = time_s / (len(heats) * launch_count)
                _take_turns(contenders, heat, share_s, listener)
        done += 1
    return heats


def _opened(
    artifacts: Sequence[Artifact], threads: int | None, stack: ExitStack, listener: Listener
) -> list[_Contender]:
    """Every model in a process; one after the other, so that each has the machine to itself."""
    variables = benchmark_machine.environment(threads)
    contenders = []
    names = labels([artifact.path for artifact in artifacts])
    for artifact, name in zip(artifacts, names, strict=True):
        listener.stage(f"Opening {name}")
        worker = stack.enter_context(Worker(Subject, artifact, environment=variables))
        try:
            worker.ready()
        except ChildDiedError as cause:
            raise died(name, cause) from cause
        contender = _Contender(artifact, name, worker)
        contender.opened = contender.ask("opened")
        contenders.append(contender)
    return contenders


def _surveyed(
    contenders: Sequence[_Contender],
    batches: Sequence[int],
    examples: Path | None,
    listener: Listener,
) -> list[Heat]:
    """The inputs of every batch, and how long a call of each model takes about."""
    specs = [each.opened.inputs for each in contenders]
    check_alike([each.label for each in contenders], specs)
    heats = []
    for batch in batches_for(specs, batches, examples):
        several = [Series(each.artifact, each.label, each.opened) for each in contenders]
        for series in several:
            if not takes(series.opened.inputs, batch):
                series.error = _misfit(series)
        source = source_for(specs, batch)
        feeds: Feeds = {}
        if source is not None:
            sizes = shared_sizes(specs, source, batch)
            feeds = contenders[source].ask("example", sizes, examples)
        heats.append(Heat(batch, feeds, specs[source or 0], several))
        _warm(contenders, heats[-1], _SURVEY_S, listener)
    return heats


def _misfit(series: Series) -> SamplesError:
    specs = "; ".join(map(str, series.opened.inputs))
    return SamplesError(f"{series.label} takes {specs} only.")


def _launch_count(heats: Sequence[Heat], opening_s: float, time_s: float) -> int:
    """How often to start all processes.

    Raises:
        UsageError: the time does not suffice for a single round.
    """
    slowest_s = max(heat.round_s for heat in heats)
    share_s = time_s / len(heats)
    if slowest_s > share_s:
        raise UsageError(
            f"There is no time for a single run: a call of each model takes {slowest_s:.3g} s "
            f"together, {share_s:.3g} s are left for it.",
            hint=f"--time {max(1, round(_ENOUGH * slowest_s * len(heats)))}s",
        )
    least, most = _LAUNCHES
    fitting = int(share_s / (statistics.LEAST_ROUNDS * max(slowest_s, _TURN_S[0])))
    paying = 1 + int(_LAUNCH_SHARE * time_s / opening_s)
    count = min(most, paying, fitting)
    return count if count >= least else 1


def _warm(contenders: Sequence[_Contender], heat: Heat, limit_s: float, listener: Listener) -> None:
    """Brings all models to their speed; one that fails keeps its error."""
    for contender, series in zip(contenders, heat.several, strict=True):
        listener.stage(f"Warming up {series.label} at batch {heat.batch}")
        if series.is_running:
            with _kept(series):
                contender.ask("prepare", heat.feeds, heat.specs)
                series.warmths.append(contender.ask("warm", limit_s))


def _take_turns(
    contenders: Sequence[_Contender], heat: Heat, time_s: float, listener: Listener
) -> None:
    """Measures the models of one batch for so long; one that fails is left out from then on."""
    limit_s = max(_WARM_S, _WARM_SHARE * time_s / len(contenders))
    _warm(contenders, heat, limit_s, listener)
    pairs = list(zip(contenders, heat.several, strict=True))
    for series in heat.running:
        _plan(series, time_s / len(heat.running))
        series.launches.append([])
    what = f"Measuring at batch {heat.batch}"
    listener.stage(what)
    started, done, dice = time.perf_counter(), 0.0, random.Random(len(heat.several[0].launches))
    while done < time_s and heat.running:
        for contender, series in dice.sample(pairs, len(pairs)):  # none follows always the same one
            if series.is_running:
                with _kept(series):
                    asked = ("run", series.run_count, series.lead_count)
                    series.launches[-1].append(contender.ask(*asked))
        done = time.perf_counter() - started
        listener.progress(what, int(done), int(time_s), "s")
    for contender, series in pairs:
        if series.is_running:
            with _kept(series):
                peak_mib = contender.ask("peak_rss_mib")
                series.peak_rss_mib = max(series.peak_rss_mib, peak_mib)


@contextmanager
def _kept(series: Series) -> Iterator[None]:
    """Keeps the error of a model that fails, in place of what it gave."""
    try:
        yield
    except ConvkitError as error:
        series.error = error


def _plan(series: Series, time_s: float) -> None:
    """How many calls a turn has: as many as fit into the same time for all models."""
    assert series.warmth is not None
    call_s = series.warmth.run_ms / 1e3
    low, high = _TURN_S
    turn_s = min(max(time_s / _ROUNDS, low), high)
    series.run_count = max(1, round(turn_s / call_s))
    series.lead_count = int(call_s < _LEAD_BELOW * turn_s)
