"""What is asked for, held against the model and the route before any work."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from convkit import samples
from convkit.artifact import Artifact, Precision
from convkit.errors import (
    MissingRequirementError,
    SamplesError,
    UnknownNameError,
    UsageError,
)
from convkit.graph import ConverterGraph, Route
from convkit.recipe import Recipe
from convkit.step import Pass

_CALIBRATION_HINT = (
    "Of GGUF, give a text or an importance matrix:  --calibration text.txt\n"
    "Of other formats, arrays named as the inputs:  --calibration inputs.npz"
)


def check_samples(recipe: Recipe) -> None:
    """Sees to it that there are the text to compare on and the data to calibrate with.

    Raises:
        SamplesError: there is none.
    """
    if recipe.samples and samples.is_text(recipe.samples):
        samples.read_text(recipe.samples)
    calibration = recipe.calibration
    if calibration is None or (calibration == samples.RANDOM and recipe.to != "gguf"):
        return
    if recipe.to == "gguf" and calibration.is_dir():
        raise SamplesError(f"{calibration} is a folder.", hint=_CALIBRATION_HINT)
    if not calibration.exists():
        raise SamplesError(f"There is no file {calibration}.", hint=_CALIBRATION_HINT)


def precision_of(recipe: Recipe, converters: ConverterGraph) -> Precision | None:
    """What is asked for, by a flag or by a scheme of the target.

    Raises:
        UnknownNameError: the target has no such scheme, or there is no such target.
        UsageError: the scheme belongs to another precision, or the target has none at all.
    """
    target = converters.format(recipe.to)
    if recipe.scheme is None:
        return recipe.precision
    if recipe.scheme not in target.schemes:
        raise _unknown_scheme(recipe, converters)
    precision = target.schemes[recipe.scheme]
    if recipe.precision not in (None, precision):
        raise UsageError(
            f"--scheme {recipe.scheme} is {precision}, not {recipe.precision}.",
            hint=f"Leave one of them out:  --scheme {recipe.scheme}",
        )
    return precision


def _unknown_scheme(recipe: Recipe, converters: ConverterGraph) -> UsageError:
    known = converters.format(recipe.to).schemes
    owner = next((f for f in converters.formats.values() if recipe.scheme in f.schemes), None)
    if owner is None and known:
        return UnknownNameError(f"scheme of {recipe.to}", str(recipe.scheme), known)
    if owner is None:
        return UsageError(
            f"{recipe.to} has no schemes, and nothing else has one called '{recipe.scheme}'.",
            hint="Say the precision:  --fp16  --int8  --q4",
        )
    precision = owner.schemes[str(recipe.scheme)]
    own = f"its own are {', '.join(sorted(known))}" if known else "it has none"
    return UsageError(
        f"{recipe.scheme} is a scheme of {owner.name}, not of {recipe.to}; {own}.",
        hint=f"Say the precision:  --{precision}\n"
        f"On a route over {owner.name} the scheme is an option of its step:  "
        f"--{precision} --set {owner.name}-{precision}.scheme={recipe.scheme}",
    )


def check_options(options: Mapping[str, Mapping[str, Any]], route: Route) -> None:
    """Sees to it that every option is of a step of the route, and every scheme one of its step.

    Raises:
        UsageError: an option is of no step of the route.
        UnknownNameError: a step has no such scheme.
    """
    names = [step.name for step in route.steps]
    unused = next((name for name in options if name not in names), None)
    if unused is not None:
        is_layout = unused == "onnx-to-savedmodel" and set(options[unused]) == {"layout"}
        said = "--layout" if is_layout else f"--set {unused}..."
        raise UsageError(
            f"{said} has no effect: the route is {' -> '.join(names)}.",
            hint=f"Leave {said.split()[0]} out.",
        )
    for step in route.steps:
        scheme = options.get(step.name, {}).get("scheme")
        if isinstance(step, Pass) and step.schemes and scheme not in (None, *step.schemes):
            raise UnknownNameError(f"scheme of {step.name}", str(scheme), step.schemes)


def share_options(recipe: Recipe, route: Route, options: dict[str, dict[str, Any]]) -> None:
    """Hands what a recipe says of the whole route to the steps that know it.

    Raises:
        UsageError: no step does.
    """
    shared = (
        ("opset", recipe.opset, f"--opset {recipe.opset}", "which writes no ONNX"),
        ("scheme", recipe.scheme, "", ""),  # it said the precision, which may be all there is
        ("target", recipe.target, f"--for {recipe.target}", "which is tuned to no target"),
        ("max_drop", recipe.max_drop, "--max-drop", "which gives no layer back"),
        ("metric", recipe.metric, "--metric", "which measures no accuracy"),
        ("pure", recipe.pure or None, "--pure", "which mixes no types"),
        ("tensor_types", recipe.tensor_types or None, "--tensor-type", "which mixes no types"),
    )
    for option, value, flag, why in shared:
        if value is None:
            continue
        takers = [step.name for step in route.steps if option in step.options]
        if not takers and flag:
            names = " -> ".join(step.name for step in route.steps)
            raise UsageError(
                f"{flag} has no effect: the route is {names}, {why}.",
                hint=f"Leave {flag.split()[0]} out.",
            )
        for name in takers:
            options.setdefault(name, {}).setdefault(option, value)
    if recipe.calibration and not any(getattr(step, "calibrated", False) for step in route.steps):
        raise UsageError(
            "--calibration has no effect: no step of the route is calibrated.",
            hint="Leave --calibration out.",
        )


def held_out(recipe: Recipe, route: Route) -> Path | None:
    """The calibration data whose control share results are compared on; None where not on these.

    Samples that the user gives come first, and what is drawn at random says nothing of real inputs.
    """
    data = recipe.calibration
    if data is None or recipe.samples or data == samples.RANDOM or samples.is_text(data):
        return None
    takes_arrays = any(
        isinstance(step, Pass) and step.calibrated and step.format == "onnx" for step in route.steps
    )
    return data if takes_arrays else None


def check_source_survives(source: Artifact, destination: Path) -> None:
    """A result never takes the place of what it was made from, `--force` or not.

    Raises:
        UsageError: the destination is the source, one of its data files, or a folder around it.
    """
    made = destination.resolve()
    for path in (source.path, *source.data_files):
        used = path.resolve()
        if used == made or made in used.parents:
            raise UsageError(
                f"{destination} is the source model, or holds it; the result would replace it.",
                hint="Write elsewhere:  -o PATH",
            )


def check_needs(route: Route, converters: ConverterGraph, *, verifies: bool) -> None:
    """Names every missing package before any work.

    Raises:
        MissingRequirementError: packages of the route are missing, or, where results are
            verified, those that run its models.
    """
    own = route.missing()
    formats = dict.fromkeys(name for name, _ in route.states) if verifies else ()
    running = (need for name in formats for need in converters.format(name).needs)
    missing = dict.fromkeys(need for need in chain(own, running) if not need.is_available)
    if not missing:
        return
    extras = ",".join(dict.fromkeys(need.extra for need in missing))
    hint = f'pip install "convkit-ml[{extras}]"'
    if not own:
        hint += "\nThe comparison alone needs them; to convert without it:  --no-verify"
    raise MissingRequirementError(
        f"The route {' -> '.join(step.name for step in route.steps)} needs packages that "
        f"are not installed: {', '.join(need.module for need in missing)}.",
        hint=hint,
        missing=[need.module for need in missing],
    )
