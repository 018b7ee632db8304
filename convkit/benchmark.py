"""Measures models side by side: latency, throughput, memory, size, with intervals.

Each model runs in a process of its own and all take turns in short rounds, so that what slows the
machine down slows all of them down. While one runs, the others are stopped (SIGSTOP): threads of
ONNX Runtime keep a processor busy for 31 ms after a call, waiting for the next one, and those of
PyTorch for 7 ms. Switching that waiting off instead would measure something else than users get: it
made the same model 15 % (ONNX Runtime) and 27 % (PyTorch, OMP_WAIT_POLICY=passive) slower on two
cores. So every runtime keeps its own defaults. The first call of a turn, which finds cold caches,
is not timed where calls are short.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit import benchmark_machine, graph
from convkit.artifact import Artifact, Opening, TensorSpec
from convkit.benchmark_inputs import batches_for, check_alike, shared_sizes, shown, source_for
from convkit.benchmark_report import BenchReport, labels
from convkit.benchmark_results import Series, doubts, results
from convkit.benchmark_subject import Opened, Subject
from convkit.child import ChildDiedError
from convkit.errors import ConvkitError, StepError, UsageError
from convkit.listener import Listener, Silence
from convkit.openings import check_is_heeded, opening_of
from convkit.worker import Worker

if TYPE_CHECKING:
    from convkit.explaining import Explanation
    from convkit.step import Feeds

DEFAULT_TIME_S = 20.0

_WARM_SHARE = 0.1
_LEAST_WARM_S = 1.0
_ROUNDS = 100
_TURN_S = (0.02, 0.25)
"""How long a turn is at least and at most."""
_LEAD_BELOW = 1 / 4
"""A call that takes less than this share of a turn is led by one that is not timed."""
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
            raise died(self.artifact.path, cause) from cause
        self.worker.freeze()
        return answer


def died(path: Path, cause: ChildDiedError) -> StepError:
    """The error of a process that ended while it ran a model."""
    return StepError(
        f"The process that ran {path.name} {cause}.",
        why="A kill by the system (signal 9) means that memory ran out.",
        hint="See what this machine has:  convkit doctor",
    )


def bench(
    models: Sequence[str | Path],
    *,
    time_s: float = DEFAULT_TIME_S,
    batches: Sequence[int] = (),
    threads: int | None = None,
    explain: bool = False,
    weights: str | Path | None = None,
    samples: str | Path | None = None,
    inputs: Sequence[str] = (),
    signature: str | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    adapter: str | Path | None = None,
    trust: bool = False,
    listener: Listener | None = None,
) -> BenchReport:
    """Measures models of any formats on the same inputs, side by side.

    Args:
        models: paths or factories; the first is what the others are compared with.
        time_s: seconds of measuring, shared by all models and batches. Opening and warming up come
            on top.
        batches: rows of a call; without any 1, or what the models fix.
        threads: to compute with; without it as many as there are processors.
        explain: also say where the time of ONNX models goes, and what would save some.
        weights: of what is a factory.
        samples: inputs to run on, the first sample of a file; else seeded ones.
        inputs: input specs of what does not carry them.
        signature: which signature of a SavedModel.
        input_names: tensors where a TensorFlow graph begins.
        output_names: tensors where it ends.
        adapter: a low-rank adapter that counts as merged into the first model.
        trust: open files that run code.
        listener: hears how it goes on.

    Raises:
        UsageError: nothing can be measured as it is asked.
        SamplesError: the models do not take the same inputs.
        ConvkitError: a model cannot be opened or run here.
    """
    listener = listener or Silence()
    _check(models, time_s, batches, threads)
    examples = Path(samples) if samples else None
    opening = opening_of(
        inputs,
        examples,
        trust,
        signature,
        input_names,
        output_names,
        Path(adapter) if adapter else None,
    )
    artifacts = [_detected(model, weights, opening) for model in models]
    formats = [graph.discover().format(artifact.format) for artifact in artifacts]
    check_is_heeded(opening, formats, ", ".join(map(str, models)))
    machine = benchmark_machine.fingerprint(formats, threads)
    measured: dict[int, list[Series]] = {}
    fed: dict[int, Feeds] = {}
    with ExitStack() as stack:
        contenders = _opened(artifacts, threads, stack, listener)
        specs = [each.opened.inputs for each in contenders]
        check_alike([each.label for each in contenders], specs)
        rows = batches_for(specs, batches, examples)
        for batch in rows:
            source = source_for(specs, batch)
            fed[batch] = contenders[source].ask(
                "example", shared_sizes(specs, source, batch), examples
            )
            turns = _Turns(contenders, fed[batch], specs[source], batch, listener)
            measured[batch] = turns.measured(time_s / len(rows))
    _raise_if_none_ran(measured)
    return BenchReport(
        machine=machine,
        inputs={batch: shown(feeds) for batch, feeds in fed.items()},
        results=tuple(one for batch in measured for one in results(batch, measured[batch])),
        notes=tuple(one for batch in measured for one in doubts(batch, measured[batch])),
        explanations=_explained(artifacts, fed[rows[0]], threads, listener) if explain else (),
    )


def _raise_if_none_ran(measured: Mapping[int, Sequence[Series]]) -> None:
    """The first error of models none of which could be run at all."""
    errors = [series.error for several in measured.values() for series in several]
    if errors[0] is not None and all(errors):
        raise errors[0]


def _explained(
    artifacts: Sequence[Artifact], feeds: Feeds, threads: int | None, listener: Listener
) -> tuple[Explanation, ...]:
    from convkit import explaining

    listener.stage("Looking where the time goes")
    return explaining.explain(artifacts, feeds, threads)


def _detected(model: str | Path, weights: str | Path | None, opening: Opening) -> Artifact:
    is_factory = not os.path.exists(os.path.expanduser(model))
    return graph.detect(model, weights=weights if is_factory else None, opening=opening)


def _check(
    models: Sequence[str | Path], time_s: float, batches: Sequence[int], threads: int | None
) -> None:
    if not models:
        raise UsageError("No model is named.", hint="convkit bench model.onnx model.int8.onnx")
    if not time_s > 0:
        raise UsageError(f"{time_s:g} s is no time to measure in.", hint="--time 20s")
    wrong = [batch for batch in batches if batch < 1]
    if wrong:
        raise UsageError(f"A batch of {wrong[0]} has no rows.", hint="--batch 1,32")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads compute nothing.", hint="--threads 1")


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
            raise died(artifact.path, cause) from cause
        contender = _Contender(artifact, name, worker)
        contender.opened = contender.ask("opened")
        contenders.append(contender)
    return contenders


class _Turns:
    """Models that take turns at one batch; one that fails is left out, and says why."""

    def __init__(
        self,
        contenders: Sequence[_Contender],
        feeds: Feeds,
        specs: Sequence[TensorSpec],
        batch: int,
        listener: Listener,
    ) -> None:
        self._several = [
            (each, Series(each.artifact, each.label, each.opened)) for each in contenders
        ]
        self._feeds = feeds
        self._specs = specs
        self._at = f"at batch {batch}"
        self._listener = listener

    def measured(self, time_s: float) -> list[Series]:
        """Warms all models up and measures for so long.

        Raises:
            UsageError: the time does not suffice for a single round.
        """
        warm_s = max(_LEAST_WARM_S, _WARM_SHARE * time_s / len(self._several))
        for contender, series in self._several:
            self._listener.stage(f"Warming up {series.label} {self._at}")
            with _kept(series):
                contender.ask("prepare", self._feeds, self._specs)
                series.warmth = contender.ask("warm", warm_s)
        _plan([series for _, series in self._running()], time_s)
        self._listener.stage(f"Measuring {self._at}")
        started, done, dice = time.perf_counter(), 0.0, random.Random(0)
        while done < time_s and (running := self._running()):
            for contender, series in dice.sample(running, len(running)):  # none follows always one
                with _kept(series):
                    turn = contender.ask("run", series.run_count, series.lead_count)
                    series.blocks.append(turn)
            done = time.perf_counter() - started
            self._listener.progress(f"Measuring {self._at}", int(done), int(time_s), "s")
        for contender, series in self._running():
            series.peak_rss_mib = contender.ask("peak_rss_mib")
        return [series for _, series in self._several]

    def _running(self) -> list[tuple[_Contender, Series]]:
        return [pair for pair in self._several if pair[1].is_running]


@contextmanager
def _kept(series: Series) -> Iterator[None]:
    """Keeps the error of a model that fails, in place of what it gave."""
    try:
        yield
    except ConvkitError as error:
        series.error = error


def _plan(running: Sequence[Series], time_s: float) -> None:
    """How many calls each model's turn has: as many as fit into the same time for all.

    Raises:
        UsageError: the time does not suffice for a single round.
    """
    calls_s = [series.warmth.run_ms / 1e3 for series in running if series.warmth]
    if sum(calls_s) > time_s:
        raise UsageError(
            f"There is no time for a single run: a call of each model takes {sum(calls_s):.3g} s "
            f"together, {time_s:.3g} s are left for it.",
            hint=f"--time {max(1, round(_ENOUGH * sum(calls_s)))}s",
        )
    low, high = _TURN_S
    turn_s = min(max(time_s / (_ROUNDS * max(1, len(running))), low), high)
    for series, call_s in zip(running, calls_s, strict=True):
        series.run_count = max(1, round(turn_s / call_s))
        series.lead_count = int(call_s < _LEAD_BELOW * turn_s)
