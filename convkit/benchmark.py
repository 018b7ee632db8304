"""Measures models side by side: latency, throughput, memory, size, with intervals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convkit import benchmark_machine, graph
from convkit.artifact import Artifact, Opening
from convkit.benchmark_inputs import shown
from convkit.benchmark_report import BenchReport
from convkit.benchmark_results import doubts, results
from convkit.benchmark_turns import Heat, measured
from convkit.errors import UsageError
from convkit.listener import Listener, Silence
from convkit.openings import check_is_heeded, opening_of

if TYPE_CHECKING:
    from convkit.explaining import Explanation
    from convkit.step import Feeds

DEFAULT_TIME_S = 20.0


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
    if explain and not any(each.name == "onnx" for each in formats):
        raise UsageError(
            "--explain needs an ONNX model: it reads what ONNX Runtime writes down.",
            why=f"These are {', '.join(dict.fromkeys(each.name for each in formats))}.",
            hint="Convert one first:  convkit convert MODEL --to onnx",
        )
    machine = benchmark_machine.fingerprint(formats, threads)
    heats = measured(artifacts, batches, examples, threads, time_s, listener)
    _raise_if_none_ran(heats)
    return BenchReport(
        machine=machine,
        inputs={heat.batch: shown(heat.feeds) for heat in heats},
        results=tuple(one for heat in heats for one in results(heat.batch, heat.several)),
        notes=tuple(one for heat in heats for one in doubts(heat.batch, heat.several)),
        explanations=_explained(artifacts, heats[0].feeds, threads, listener) if explain else (),
    )


def _raise_if_none_ran(heats: Sequence[Heat]) -> None:
    """The first error of models none of which could be run at all."""
    errors = [series.error for heat in heats for series in heat.several]
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
