"""Opens a step's result and compares it with the source, in a process of its own where that pays.

A runtime that is not loaded yet (ONNX Runtime after a PyTorch export) is loaded in a child: its
memory does not come on top of the framework that made the result, and a result that crashes its
runtime is a failed verification instead of the end of convkit.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from convkit import graph, resources, verification
from convkit.artifact import Artifact, Precision
from convkit.errors import ConvkitError, VerificationError
from convkit.step import Format


@dataclass(frozen=True)
class Judgement:
    """How a result compares with its source, what is to be noted, and the memory it took."""

    comparison: verification.Comparison
    notes: tuple[str, ...] = ()
    peak_rss_mib: float = 0.0


def judge(made: Artifact, recording: verification.Recording, format: Format) -> Judgement:
    """Compares a result with the source's recording; in a child if its runtime is not loaded here.

    Raises:
        ConvkitError: the result cannot be opened.
        VerificationError: the runtime died over it.
    """
    modules = [need.module for need in format.needs]
    if not modules or any(module in sys.modules for module in modules):
        return judge_here(made, recording, format)
    return _judge_in_child(made, recording)


def judge_here(made: Artifact, recording: verification.Recording, format: Format) -> Judgement:
    """Compares at the precision's true arithmetic; the usual runtime must load it as well."""
    if format.open is None:
        raise VerificationError(f"{made.format} cannot be run here, so it cannot be verified.")
    is_half = made.precision in (Precision.FP16, Precision.BF16)
    if format.open_exact is None or not is_half:
        with format.open(made) as runner:
            return Judgement(verification.compare(recording, runner, made.precision))
    with format.open_exact(made) as runner:
        exact = verification.compare(recording, runner, made.precision)
    first = replace(recording, runs=recording.runs[:1])
    try:
        with format.open(made) as runner:
            usual = verification.compare(first, runner, made.precision)
    except ConvkitError as error:
        if made.precision is Precision.BF16:  # ONNX Runtime's CPU kernels know no bfloat16
            note = f"Verified by emulation only; this machine's runtime says: {error.what}"
            return Judgement(exact, (note,))
        raise
    return Judgement(exact if usual.passed else usual)


def _judge_in_child(made: Artifact, recording: verification.Recording) -> Judgement:
    child = subprocess.run(
        [sys.executable, "-c", "from convkit.judging import answer; answer()"],
        input=pickle.dumps((made, recording, sys.path)),
        capture_output=True,
        check=False,
    )
    if child.returncode != 0:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-3:]
        code = child.returncode
        ended = f"signal {-code}" if code < 0 else f"code {code}"
        raise VerificationError(
            f"The process that ran {made.path.name} ended with {ended}.", why=last
        )
    answer = pickle.loads(child.stdout)
    if isinstance(answer, ConvkitError):
        raise answer
    judgement: Judgement = answer
    return judgement


def answer() -> None:
    """The child: reads what to judge from standard input, answers on standard output."""
    send = _take_stdout()
    made, recording, path = pickle.load(sys.stdin.buffer)
    sys.path[:] = path
    try:
        judgement = judge_here(made, recording, graph.discover().format(made.format))
        peak = resources.peak_rss_bytes() / (1 << 20)
        found: Judgement | ConvkitError = replace(judgement, peak_rss_mib=peak)
    except ConvkitError as error:
        found = error
    send(pickle.dumps(found))


def _take_stdout() -> Callable[[bytes], None]:
    """Keeps standard output for the answer: what a framework prints goes to standard error."""
    import os

    kept = os.dup(1)
    os.dup2(2, 1)

    def write(content: bytes) -> None:
        with os.fdopen(kept, "wb") as stream:
            stream.write(content)

    return write
