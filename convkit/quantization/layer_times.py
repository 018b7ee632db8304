"""Where the time of a model goes, layer by layer, and how the times of several models compare."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convkit.quantization.reference import opened
from convkit.step import Feeds

_RUNS = 5
_ROUNDS = 60
_MEASURING_S = 6.0
_LEAST_ROUNDS = 12
_TURN_S = 0.005
"""A turn of a small model is as many runs as take about this long."""

_MOST_REPEATS = 100


def time_shares(path: Path, feeds: Feeds) -> dict[str, float]:
    """Share of a run's time that each node takes, by name, from ONNX Runtime's own profile.

    Nodes are not fused over there, so that they keep their names.

    Source: onnxruntime, "Profiling Tools": events of category Node end in `_kernel_time`, `dur` in
    microseconds.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(_RUNS):
            session.run(None, _own(session, feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    runs: dict[str, list[int]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            runs.setdefault(name.removesuffix("_kernel_time"), []).append(int(event["dur"]))
    medians = {name: statistics.median(several) for name, several in runs.items()}
    total = sum(medians.values()) or 1.0
    return {name: median / total for name, median in medians.items()}


@dataclass(frozen=True)
class Ratio:
    """How much longer a run of one model takes than of another, with its 95 % interval."""

    value: float
    low: float
    high: float


def ratio_of(runs: Sequence[float], others: Sequence[float]) -> Ratio:
    """The median ratio of runs of the same rounds: what slows a round down is in both.

    Source: the interval of a median by order statistics, ranks n/2 -+ 1.96 sqrt(n)/2.
    """
    ratios = sorted(run / other for run, other in zip(runs, others, strict=True))
    count = len(ratios)
    rank = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return Ratio(statistics.median(ratios), ratios[rank], ratios[count - 1 - rank])


def latencies_ms(paths: Mapping[str, Path], feeds: Feeds) -> dict[str, list[float]]:
    """Times of a run of each model on one thread, round by round; the models take turns.

    One thread, because those of a waiting session would keep the processor from the others.
    """
    sessions = {name: opened(path, threads=1) for name, path in paths.items()}
    given = {name: _own(session, feeds) for name, session in sessions.items()}
    runs: dict[str, list[float]] = {name: [] for name in sessions}
    repeats = {}
    for name, session in sessions.items():
        session.run(None, given[name])  # the first run finds nothing ready
        begin = time.perf_counter()
        session.run(None, given[name])
        repeats[name] = max(1, min(_MOST_REPEATS, round(_TURN_S / (time.perf_counter() - begin))))
    started = time.perf_counter()
    for number in range(_ROUNDS):
        for name in _rotated(list(sessions), number):
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                sessions[name].run(None, given[name])
            runs[name].append((time.perf_counter() - begin) * 1e3 / repeats[name])
        if number >= _LEAST_ROUNDS and time.perf_counter() - started > _MEASURING_S:
            break
    return runs


def _rotated(names: Sequence[str], number: int) -> list[str]:
    """So that none follows always the same one."""
    at = number % len(names)
    return [*names[at:], *names[:at]]


def _own(session: Any, feeds: Feeds) -> dict[str, Any]:
    names = {argument.name for argument in session.get_inputs()}
    return {name: array for name, array in feeds.items() if name in names}
