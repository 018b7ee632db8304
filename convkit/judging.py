"""Opens a step's result and compares it with the source, in a process of its own where that pays.

A runtime that is not loaded yet (ONNX Runtime after a PyTorch export) is loaded in a child: its
memory does not come on top of the framework that made the result, and a result that crashes its
runtime is a failed verification instead of the end of convkit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from convkit import graph, resources, verification
from convkit.artifact import Artifact, Precision
from convkit.child import Child, ChildDiedError, is_not_loaded
from convkit.errors import ConvkitError, VerificationError
from convkit.loading import load_module
from convkit.step import Format

_LARGE_BYTES = 200 << 20
"""PyTorch alone takes 220 MiB; numpy, the ONNX package and convkit stay below 150 MiB."""


@dataclass(frozen=True)
class Judgement:
    """How a result compares with its source, what is to be noted, and the memory it took."""

    comparison: verification.Comparison
    notes: tuple[str, ...] = ()
    peak_rss_mib: float = 0.0


def judge(made: Artifact, recording: verification.Recording, format: Format) -> Judgement:
    """Compares a result with the source's recording.

    In a child if its runtime is not loaded here and this process already holds a framework.

    Raises:
        ConvkitError: the result cannot be opened.
        VerificationError: the runtime died over it.
    """
    if _needs_child(format):
        return _judge_in_child(made, recording)
    return judge_here(made, recording, format)


def prepare(format: Format) -> None:
    """Loads what will open a result, if it will be opened in this process; for idle moments."""
    if not _needs_child(format):
        for need in format.needs:
            load_module(need.module)


def _needs_child(format: Format) -> bool:
    is_large = resources.rss_bytes() > _LARGE_BYTES
    return is_large and is_not_loaded([need.module for need in format.needs])


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
    child = Child(_judge_by_name, made, recording)
    try:
        judgement = child.result()
    except ChildDiedError as cause:
        raise VerificationError(f"The process that ran {made.path.name} {cause}.") from cause
    finally:
        child.stop()
    return replace(judgement, peak_rss_mib=child.peak_rss_mib)


def _judge_by_name(made: Artifact, recording: verification.Recording) -> Judgement:
    return judge_here(made, recording, graph.discover().format(made.format))
