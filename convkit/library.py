"""The library's words: convert, plan, load, inspect, verify. The command line says the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit import graph
from convkit.artifact import Artifact, Description, Opening, Precision
from convkit.errors import MissingRequirementError, StepError
from convkit.openings import check_is_heeded, opening_of

if TYPE_CHECKING:
    from convkit.bisect import Divergence
    from convkit.listener import Listener
    from convkit.pipeline import Plan
    from convkit.report import Report
    from convkit.step import Runner
    from convkit.verification import Check


def convert(
    model: str | Path,
    *,
    to: str,
    precision: str | None = None,
    scheme: str | None = None,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    samples: str | Path | None = None,
    calibration: str | Path | None = None,
    adapter: str | Path | None = None,
    target: str | None = None,
    max_drop: float | str | None = None,
    metric: str | None = None,
    pure: bool = False,
    tensor_types: Sequence[str] = (),
    inputs: Sequence[str] = (),
    signature: str | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    opset: int | None = None,
    verify: bool = True,
    trust: bool = False,
    force: bool = False,
    listener: Listener | None = None,
) -> Report:
    """Converts a model and verifies the result; the arguments are those of the command line.

    Raises:
        ConvkitError: any of its kinds; nothing is left under the result's name then.
    """
    from convkit import pipeline, recipe

    made = recipe.make(
        model=str(model),
        to=to,
        precision=precision,
        scheme=scheme,
        out=out or None,
        weights=str(weights) if weights else None,
        samples=samples or None,
        calibration=calibration or None,
        adapter=adapter or None,
        target=target,
        max_drop=max_drop,
        metric=metric,
        pure=pure,
        tensor_types=tuple(tensor_types),
        inputs=tuple(inputs),
        signature=signature,
        input_names=tuple(input_names),
        output_names=tuple(output_names),
        settings=settings or {},
        opset=opset,
        verify=verify,
        trust=trust,
        force=force,
    )
    return pipeline.run(made, listener)


def plan(
    model: str | Path,
    *,
    to: str,
    precision: str | None = None,
    scheme: str | None = None,
    weights: str | Path | None = None,
    inputs: Sequence[str] = (),
    signature: str | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """What `convert` would do: the model as detected, the route, where the result would go."""
    from convkit import pipeline, recipe

    made = recipe.make(
        model=str(model),
        to=to,
        precision=precision,
        scheme=scheme,
        weights=str(weights) if weights else None,
        inputs=tuple(inputs),
        signature=signature,
        input_names=tuple(input_names),
        output_names=tuple(output_names),
        settings=settings or {},
    )
    return pipeline.plan(made)


def load(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    inputs: Sequence[str] = (),
    signature: str | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    adapter: str | Path | None = None,
    trust: bool = False,
) -> Runner:
    """Opens a model of any format: `load("m.onnx")({"x": array})` gives `{"y": array}`.

    Raises:
        ModelError: it cannot be used.
        UsageError: what is said of opening it has no effect.
        MissingRequirementError: the package that runs it is missing.
    """
    opening = opening_of(inputs, None, trust, signature, input_names, output_names, _path(adapter))
    artifact = _detect(model, weights, opening)
    check_is_heeded(opening, [graph.discover().format(artifact.format)], str(model))
    return open_as_verified(artifact, exactly=False)


def inspect(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    samples: str | Path | None = None,
    inputs: Sequence[str] = (),
    signature: str | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    adapter: str | Path | None = None,
    trust: bool = False,
) -> tuple[Artifact, Description]:
    """What a model is, from its headers.

    Raises:
        ModelError: it cannot be used.
    """
    examples = Path(samples) if samples else None
    opening = opening_of(
        inputs, examples, trust, signature, input_names, output_names, _path(adapter)
    )
    artifact = _detect(model, weights, opening)
    found = graph.discover().format(artifact.format)
    check_is_heeded(opening, [found], str(model))
    return artifact, found.describe(artifact.path, artifact.opening)


def inspection_json(artifact: Artifact, described: Description) -> dict[str, Any]:
    """The JSON of `convkit inspect`."""
    return {
        "path": str(artifact.path),
        "format": artifact.format,
        "precision": str(artifact.precision),
        "size_bytes": artifact.size_bytes(),
        "parameter_count": described.parameter_count,
        "inputs": [spec.to_json() for spec in artifact.inputs],
        "outputs": [spec.to_json() for spec in artifact.outputs],
        "operators": dict(described.operators),
        "details": dict(described.details),
        "provenance": [
            {"step": entry.step, "options": dict(entry.options), "versions": dict(entry.versions)}
            for entry in artifact.lineage
        ],
    }


@dataclass(frozen=True)
class Verdict:
    """Whether two models compute the same thing.

    Attributes:
        checks: every comparison made, the worst input of each.
        notes: outputs that are called differently, dimensions that one fixes.
        divergence: the first tensor at which they part, where it was looked for and found.
    """

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    divergence: Divergence | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The JSON of `convkit verify`."""
        document: dict[str, Any] = {
            "checks": [check.to_json() for check in self.checks],
            "passed": self.passed,
            "notes": list(self.notes),
        }
        if self.divergence is not None:
            document["divergence"] = self.divergence.to_json()
        return document


def _require_packages(*artifacts: Artifact) -> None:
    """Names the packages that opening these models needs and that are missing, before any work.

    Raises:
        MissingRequirementError: some are.
    """
    formats = graph.discover()
    needs = [need for each in artifacts for need in formats.format(each.format).needs]
    missing = list(dict.fromkeys(need for need in needs if not need.is_available))
    if missing:
        extras = ",".join(dict.fromkeys(need.extra for need in missing))
        raise MissingRequirementError(
            f"Packages are not installed: {', '.join(need.module for need in missing)}.",
            why=f"Needed to run {' and '.join(dict.fromkeys(each.format for each in artifacts))}.",
            hint=f'pip install "convkit-ml[{extras}]"',
            missing=[need.module for need in missing],
        )


def verify(
    reference: str | Path,
    candidate: str | Path,
    *,
    weights: str | Path | None = None,
    samples: str | Path | None = None,
    inputs: Sequence[str] = (),
    signature: str | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    adapter: str | Path | None = None,
    trust: bool = False,
    bisect: bool = False,
    listener: Listener | None = None,
) -> Verdict:
    """Runs two models of any two formats on the same inputs and judges the second by the first.

    Args:
        reference: the model that is right.
        candidate: the model in question; its precision decides the limits, unless the reference's
            is lower.
        weights: weights of what is a factory.
        inputs: input specs of what does not carry them.
        signature: which signature of a SavedModel.
        input_names: tensors where a TensorFlow graph begins.
        output_names: tensors where it ends.
        adapter: a low-rank adapter that counts as merged into the reference.
        samples: inputs to compare at; else seeded ones at several shapes.
        trust: open files that run code.
        bisect: also look for the first tensor at which they part.
        listener: hears how it goes on.
    """
    from convkit import recording as recordings
    from convkit import verification as comparing
    from convkit.listener import Silence
    from convkit.step import LanguageRunner

    listener = listener or Silence()
    examples = Path(samples) if samples else None
    opening = opening_of(
        inputs, examples, trust, signature, input_names, output_names, _path(adapter)
    )
    left = _detect(reference, weights, opening)
    right = _detect(candidate, weights, replace(opening, adapter=None))
    formats = [graph.discover().format(side.format) for side in (left, right)]
    check_is_heeded(Opening(adapter=opening.adapter), formats[:1], str(reference))
    check_is_heeded(replace(opening, adapter=None), formats, f"{reference} or {candidate}")
    _require_packages(left, right)
    listener.stage("Running the reference")
    recording = recordings.record_source(left, examples, formats[0])
    if not right.inputs and not right.opening.inputs:
        right = replace(right, opening=replace(right.opening, inputs=recording.inputs))
    listener.stage("Running the candidate")
    precision = min(left.precision, right.precision, key=lambda precision: precision.bits)
    with open_as_verified(right) as runner:
        comparison = comparing.compare(recording, runner, precision, same_names=False)
    notes = [f"'{name}' is called '{other}' in the candidate" for name, other in comparison.renamed]
    notes += [f"the candidate fixes {lost}" for lost in comparison.lost]
    notes += comparison.notes
    divergence = None
    if bisect:
        from convkit import bisect as bisecting

        listener.stage("Looking for the first tensor at which they part")
        divergence = bisecting.first_divergence(
            left, right, recording.samples, load=_load, precision=precision
        )
        if divergence is None and not comparison.passed and isinstance(runner, LanguageRunner):
            notes.append(
                "given a whole text at once both agree; the candidate's cache, which carries over "
                "from one call to the next, is what differs"
            )
    return Verdict(comparison.checks, tuple(notes), divergence)


def _path(name: str | Path | None) -> Path | None:
    return Path(name) if name else None


def _detect(model: str | Path, weights: str | Path | None, opening: Opening) -> Artifact:
    is_factory = not os.path.exists(os.path.expanduser(model))  # a name too long is no path
    return graph.detect(model, weights=weights if is_factory else None, opening=opening)


def open_as_verified(artifact: Artifact, *, exactly: bool = True) -> Runner:
    """A runner; one that rounds as hardware of its precision does, where the format has one.

    Args:
        artifact: what to open.
        exactly: False for the usual runtime, whatever it hides.
    """
    found = graph.discover().format(artifact.format)
    missing = [need for need in found.needs if not need.is_available]
    if missing:
        raise MissingRequirementError(
            f"Running {artifact.format} models needs {missing[0].module}.", hint=missing[0].install
        )
    if found.open is None:
        raise StepError(f"{artifact.format} models cannot be run here.")
    is_half = artifact.precision in (Precision.FP16, Precision.BF16)
    opener = found.open_exact if exactly and is_half and found.open_exact else found.open
    return opener(artifact)


def _load(artifact: Artifact) -> Any:
    load = graph.discover().format(artifact.format).load
    if load is None:
        raise StepError(f"{artifact.format} files have no framework object to load.")
    return load(artifact)
