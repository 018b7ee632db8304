"""Runs a recipe: plan, check needs, record the source, step, verify, publish."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convkit import demands, foresight, fusing, graph, opset_step, resources, verification
from convkit.artifact import Artifact
from convkit.climb import Climb
from convkit.destination import default_destination
from convkit.errors import UsageError
from convkit.graph import ConverterGraph, Route
from convkit.listener import Listener, Silence
from convkit.openings import check_is_heeded
from convkit.options import options_of
from convkit.recipe import Recipe
from convkit.recording import Recorder
from convkit.report import Report, StepReport
from convkit.step import Step, Work
from convkit.workspace import workspace

_SHOWN_REFUSALS = 3


@dataclass(frozen=True)
class Plan:
    """A recipe seen against the model at hand: what it is, the route, where the result goes."""

    recipe: Recipe
    source: Artifact
    route: Route
    destination: Path
    options: Mapping[str, Mapping[str, Any]]


def plan(recipe: Recipe, converters: ConverterGraph | None = None) -> Plan:
    """What `run` would do.

    Raises:
        ModelError, UsageError, NoRouteError: see `graph.detect` and `ConverterGraph.plan`.
    """
    converters = converters or graph.discover()
    demands.check_samples(recipe)
    precision = demands.precision_of(recipe, converters)
    options = options_of(converters, recipe.settings)
    source = graph.detect(
        recipe.model, weights=recipe.weights, opening=recipe.opening(), graph=converters
    )
    check_is_heeded(source.opening, [converters.format(source.format)], recipe.model)
    state = (source.format, source.precision)
    route = converters.plan(state, recipe.to, precision, source)
    if not route.steps and recipe.scheme:
        route = _requantizing(route, converters)
    route = opset_step.extended(route, source, recipe.to, recipe.opset)
    if not route.steps:
        raise UsageError(
            f"{recipe.model} already is {source.format} at {source.precision}.",
            hint="Ask for another format or precision:  --to FORMAT  --fp16",
        )
    demands.check_options(options, route)
    demands.share_options(recipe, route, options)
    destination = recipe.out or default_destination(
        source, recipe.model, route, converters, recipe.scheme
    )
    destination = destination.expanduser().absolute()
    demands.check_source_survives(source, destination)
    return Plan(recipe, source, route, destination, options)


def run(
    recipe: Recipe, listener: Listener | None = None, converters: ConverterGraph | None = None
) -> Report:
    """Converts as the recipe says, and verifies every step against the untouched source.

    Raises:
        ConvkitError: any of its kinds; nothing is left under the destination's name then.
    """
    converters = converters or graph.discover()
    listener = listener or Silence()
    started = time.perf_counter()
    listener.stage("Looking at the model")
    job = plan(recipe, converters)
    demands.check_needs(job.route, converters, verifies=recipe.verify)
    steps = fusing.fused(job.route, job.options)
    with ExitStack() as cleanup:
        place = cleanup.enter_context(workspace(job.destination, force=recipe.force))
        size = job.source.size_bytes()
        resources.check_disk(place.destination.parent, _needed_bytes(job, steps, size))
        is_held = recipe.verify or recipe.calibration  # else only rows of it are in memory
        if is_held or not all(step.streaming for step in job.route.steps):
            resources.check_memory(size)
        held_out = demands.held_out(recipe, job.route)
        recorder = Recorder(
            job.source,
            recipe.samples,
            converters.format(job.source.format),
            held_out,
            loaded=_loaded_by(steps[0]),
            is_wanted=recipe.verify,
        )
        cleanup.callback(recorder.stop)
        climb = Climb(
            converters=converters,
            place=place,
            recorder=recorder,
            options=job.options,
            last=steps[-1],
            verifies=recipe.verify,
            trust=recipe.trust,
            calibration=recipe.calibration,
            examples=recipe.samples,
            is_forced=recipe.force,
            listener=listener,
        )
        current, reports, peak = job.source, list[StepReport](), 0.0
        for number, step in enumerate(steps, 1):
            if step is opset_step.onnx_opset and opset_step.is_at_most(current.path, recipe.opset):
                continue  # the step before wrote what was asked for
            listener.stage(f"Step {number} of {len(steps)}: {step.name}")
            current, report = climb.take(step, current, number)
            reports.append(report)
            peak = max(peak, report.peak_rss_mib)
        listener.stage("Writing the result")
        recording = recorder.recording() if recorder.is_done else None
        peak = max(peak, recorder.peak_rss_mib)
        final = _moved(current, job.destination)
        current.write_manifest(
            checks=[check.to_json() for check in reports[-1].checks], verified=recipe.verify
        )
        place.publish(current.path)
        return Report(
            source=job.source,
            artifact=final,
            steps=tuple(reports),
            route=tuple(step.name for step in job.route.steps),
            samples=tuple(map(verification.label_of, recording.samples)) if recording else (),
            seconds=time.perf_counter() - started,
            peak_rss_mib=peak,
            notes=_notes(recording, held_out if recipe.verify else None) if recording else (),
            verified=recipe.verify,
            size_bytes=final.size_bytes(),
            source_size_bytes=size,
        )


def _notes(recording: verification.Recording, held_out: Path | None) -> tuple[str, ...]:
    """What concerns the whole run: where inputs came from, and which the source refused."""
    told = (
        f"Results are compared on samples of {held_out} that are held out of calibration, every "
        "fifth, at most 32."
    )
    return ((told,) if held_out else ()) + _refusals(recording.refused)


def _refusals(refused: Sequence[str]) -> tuple[str, ...]:
    """At most three lines on inputs that the source itself does not take."""
    shown = refused if len(refused) <= _SHOWN_REFUSALS else refused[: _SHOWN_REFUSALS - 1]
    lines = [f"The source model itself refuses {text}" for text in shown]
    if len(refused) > len(shown):
        lines.append(f"... and {len(refused) - len(shown)} further shapes.")
    return tuple(lines)


def _loaded_by(step: Step) -> list[str]:
    """Modules that a step loads before it needs to know what the source computes."""
    first = step.rungs[0]
    return [need.module for need in first.needs] if first.is_eager else []


def _moved(made: Artifact, destination: Path) -> Artifact:
    """The artifact once it is published; files beside it keep their place beside it."""
    beside = [file.relative_to(made.path.parent) for file in made.data_files]
    files = tuple(destination.parent / name for name in beside)
    return replace(made, path=destination, data_files=files)


def predicted_bytes(job: Plan) -> int | None:
    """Exact size of the result where headers alone tell it; None where only the work would.

    Raises:
        ModelError, UsageError: the work could not begin.
    """
    recipe = job.recipe
    work = Work((), _nothing_to_load, _unheard, _unseen, None, recipe.calibration, recipe.force)
    return fusing.predicted_bytes(job.route, job.source, job.options, work)


def warnings(job: Plan, converters: ConverterGraph | None = None) -> Sequence[Mapping[str, str]]:
    """What is known beforehand to disappoint: each with its `step` and the `warning`."""
    found = converters or graph.discover()
    return foresight.warnings_of_route(
        job.route, job.source, job.options, job.recipe.calibration, found
    )


def _nothing_to_load(artifact: Artifact) -> Any:
    raise AssertionError("a plan loads no model")


def _unheard(text: str) -> None:
    """Nobody hears what a plan notes."""


def _unseen(what: str, done: int, total: int | None, unit: str = "") -> None:
    """Nobody sees how far a plan is."""


def _requantizing(route: Route, converters: ConverterGraph) -> Route:
    """From one scheme to another of the same precision: the pass to it, although nothing falls."""
    name = f"{route.source[0]}-{route.source[1]}"
    step = converters.steps.get(name)
    return route if step is None else replace(route, steps=(step,), cost=step.cost)


def _needed_bytes(job: Plan, steps: Sequence[Step], source_bytes: int) -> int:
    """What the results of all steps take together: intermediate ones go only when the run ends."""
    if len(steps) == 1 and (exact := predicted_bytes(job)) is not None:
        return exact
    state = (job.source.format, job.source.precision)
    bits, needed = state[1].bits, 0
    for step in steps:
        state = graph.after(step, state)
        needed += source_bytes * state[1].bits // bits
    return needed
