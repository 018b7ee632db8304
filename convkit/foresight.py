"""What is known of a step before it is taken: that its result will disappoint on the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convkit.artifact import Artifact
from convkit.graph import ConverterGraph, Route
from convkit.step import Pass, Step

Options = Mapping[str, Mapping[str, Any]]
"""Step name -> its options."""


def warnings_of(
    step: Step,
    source: Artifact,
    options: Options,
    calibration: Path | None,
    converters: ConverterGraph,
) -> tuple[str, ...]:
    """Sentences that a pass has for a model, from its headers and the options said.

    Args:
        step: converters have none.
        source: the model at hand; of another format than the pass's, its operators say nothing.
        options: of the route.
        calibration: the data that the user gave.
        converters: where formats are found.
    """
    if not isinstance(step, Pass) or step.warns is None:
        return ()
    operators: Mapping[str, int] = {}
    if source.format == step.format:
        described = converters.format(source.format).describe(source.path, source.opening)
        operators = described.operators or {}
    said = {**options.get(step.name, {}), "calibration": calibration}
    return tuple(step.warns(operators, said))


def warnings_of_route(
    route: Route,
    source: Artifact,
    options: Options,
    calibration: Path | None,
    converters: ConverterGraph,
) -> Sequence[dict[str, str]]:
    """The same of all steps, each with the `step` that it is about and its `warning`."""
    return [
        {"step": step.name, "warning": text}
        for step in route.steps
        for text in warnings_of(step, source, options, calibration, converters)
    ]
