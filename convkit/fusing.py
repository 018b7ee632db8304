"""Joins neighbours on a route that work tensor by tensor: one pass over the disk, no file between.

A converter gives the target's stream, passes change it, and one sink writes it. What they promise
and how they are called stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convkit import graph
from convkit.artifact import Artifact
from convkit.graph import Route
from convkit.step import Converter, Package, Pass, Rung, Step, Streaming, Work
from convkit.streaming import write

Options = Mapping[str, Mapping[str, Any]]
"""Step name -> its options."""

JOINT = " + "
"""Between the names of steps that are taken as one."""


def fused(route: Route, options: Options) -> tuple[Step, ...]:
    """The steps to take: runs of neighbours that stream are one step each."""
    taken: list[Step] = []
    group: list[tuple[Step, graph.State]] = []
    for step, state in zip(route.steps, route.states, strict=False):
        if group and not _follows(step):
            taken.append(_joined(group, options))
            group = []
        if step.streaming:
            group.append((step, state))
        else:
            taken.append(step)
    if group:
        taken.append(_joined(group, options))
    return tuple(taken)


def predicted_bytes(route: Route, source: Artifact, options: Options, work: Work) -> int | None:
    """Exact size of the result, from headers alone; None where only the work itself would tell."""
    steps = fused(route, options)
    if len(steps) != 1 or not all(step.streaming for step in route.steps):
        return None
    with _stream(route.steps, source, work, options) as stream:
        return None if stream.byte_count is None else int(stream.byte_count)


def _follows(step: Step) -> bool:
    """Whether a step can take over the stream of the one before it."""
    return isinstance(step, Pass) and step.streaming is not None


def _joined(group: Sequence[tuple[Step, graph.State]], options: Options) -> Step:
    steps = [step for step, _ in group]
    if len(steps) == 1:
        return steps[0]
    (first, begin), (last, state) = group[0], group[-1]
    end = graph.after(last, state)
    label = JOINT.join(step.name for step in steps)

    def run(source: Artifact, out: Path, work: Work) -> None:
        with _stream(steps, source, work, options) as stream:
            write(stream, out, work, _streaming(last).sink)

    return Converter(
        source=begin[0],
        target=end[0],
        carries=(begin[1],),
        loses="; ".join(step.loses for step in steps),
        cost=sum(step.cost for step in steps),
        rungs=(Rung(label, _needs_of(steps), run, is_eager=True),),
        gives={begin[1]: end[1]},
        ending=first.ending if isinstance(first, Converter) else None,
        label=label,
    )


def names_in(step: Step) -> list[str]:
    """The steps of a route behind one that is taken."""
    return step.name.split(JOINT)


def options_in(step: Step, options: Options) -> dict[str, Any]:
    """The options of a step as its lineage has them; of one that is several, by their names."""
    names = names_in(step)
    if len(names) == 1:
        return dict(options.get(step.name, {}))
    return {name: dict(options[name]) for name in names if options.get(name)}


def _needs_of(steps: Sequence[Step]) -> tuple[Package, ...]:
    return tuple(dict.fromkeys(need for step in steps for need in step.needs))


@contextmanager
def _stream(steps: Sequence[Step], source: Artifact, work: Work, options: Options) -> Iterator[Any]:
    """What the last of these steps writes."""
    first = steps[0]
    own = options.get(first.name, {}) if isinstance(first, Converter) else {}
    with _streaming(first).open(source, work, **own) as stream:
        for step in steps:
            change = _streaming(step).change
            if change is not None:
                stream = change(stream, work, **options.get(step.name, {}))
        yield stream


def _streaming(step: Step) -> Streaming:
    assert step.streaming is not None
    return step.streaming
