"""How fast ONNX files are beside the first of them, and how far their answers are from its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from quantization_models.case import Case

if TYPE_CHECKING:
    import onnxruntime

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_TURN_S = 0.02
"""A turn has as many calls as fit in this, at least one."""


@dataclass
class Row:
    """A model, and what was measured of it.

    Attributes:
        name: for the table.
        path: the file; None where it could not be made.
        failure: why, in a few words; or what is to be said of a file that is there.
        seconds: to make it.
        size_mb: of the file.
        p50_ms: at each batch size.
        speed: fp32's time by its own, at each batch size: the median over turns.
        score: what its answers are worth, 0 to 1.
        sqnr_db: of all outputs, beside fp32's.
        agreement: share of rows whose largest output is fp32's.
    """

    name: str
    path: Path | None
    failure: str = ""
    seconds: float = 0.0
    size_mb: float = 0.0
    p50_ms: dict[int, float] = field(default_factory=dict)
    speed: dict[int, float] = field(default_factory=dict)
    score: float = float("nan")
    sqnr_db: float = float("nan")
    agreement: float = float("nan")

    def to_json(self) -> dict[str, object]:
        """All numbers."""
        return {**vars(self), "path": str(self.path) if self.path else None}


def measure(case: Case, rows: Sequence[Row], threads: int, seconds: float) -> None:
    """Fills in rows that have a file; the first is the model in float."""
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    for row in rows:
        if row.path is None:
            continue
        try:
            sessions[row.name] = _session(row.path, threads)
        except Exception as cause:  # ONNX Runtime has a class for each of its codes
            row.path, row.failure = None, f"does not open: {_first_line(cause)}"
            continue
        row.size_mb = _size(row.path)
    feeds = _arrays(case.folder / "evaluation.npz")
    _answers(case, rows, sessions, feeds)
    for batch in case.batches:
        _times(rows, sessions, {n: a[:batch] for n, a in feeds.items()}, batch, seconds)


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _answers(
    case: Case,
    rows: Sequence[Row],
    sessions: Mapping[str, onnxruntime.InferenceSession],
    feeds: Feeds,
) -> None:
    answers = _arrays(case.folder / "answers.npz")
    reference: dict[str, Array] = {}
    for row in rows:
        if row.name not in sessions:
            continue
        outputs = _outputs(sessions[row.name], feeds, case.rows)
        reference = reference or outputs
        row.score = case.score(outputs, answers)
        pairs = [
            (reference[name][: case.compared], outputs[name][: case.compared]) for name in reference
        ]
        signal = sum(float((a.astype(np.float64) ** 2).sum()) for a, _ in pairs)
        noise = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in pairs)
        row.sqnr_db = 10 * np.log10(signal / noise) if noise else float("inf")
        first, second = pairs[0]
        if case.classifies:
            row.agreement = float((first.argmax(-1) == second.argmax(-1)).mean())


def _outputs(session: onnxruntime.InferenceSession, feeds: Feeds, rows: int) -> dict[str, Array]:
    names = [each.name for each in session.get_outputs()]
    count = len(next(iter(feeds.values())))
    batches = [
        session.run(names, {name: array[at : at + rows] for name, array in feeds.items()})
        for at in range(0, count, rows)
    ]
    return {name: np.concatenate(parts) for name, *parts in zip(names, *batches, strict=True)}


def _times(
    rows: Sequence[Row],
    sessions: Mapping[str, onnxruntime.InferenceSession],
    feeds: Feeds,
    batch: int,
    seconds: float,
) -> None:
    """Turns of a few calls each, so that a busy machine is busy for all."""
    calls = {name: _calls(session, feeds) for name, session in sessions.items()}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    began, turns = time.perf_counter(), 0
    while turns < 7 or time.perf_counter() - began < seconds * len(sessions):
        for name, session in sessions.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                session.run(None, feeds)
            taken[name].append((time.perf_counter() - started) / calls[name])
        turns += 1
    first = taken[rows[0].name]
    for row in rows:
        if row.name in taken:
            own = taken[row.name]
            row.p50_ms[batch] = 1e3 * statistics.median(own)
            row.speed[batch] = statistics.median(a / b for a, b in zip(first, own, strict=True))


def _calls(session: onnxruntime.InferenceSession, feeds: Feeds) -> int:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - started)
    return max(1, int(_TURN_S / min(times)))


def _arrays(file: Path) -> dict[str, Array]:
    with np.load(file) as known:
        return {name: known[name] for name in known.files}


def _size(path: Path) -> float:
    parts = [path, *path.parent.glob(f"{path.name}.data")]
    return sum(part.stat().st_size for part in parts) / 1e6


def _first_line(cause: Exception) -> str:
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
