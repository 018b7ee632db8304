"""The converter graph: which steps there are, what a file is, and the route between two formats."""

from __future__ import annotations

import functools
import heapq
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from convkit import factory_name
from convkit.artifact import Artifact, Opening, Precision
from convkit.errors import ModelError, NoRouteError, UnknownNameError, UsageError
from convkit.step import Converter, Format, Package, Pass, Step
from convkit.unrecognised import existing, unrecognised

_ROOMS = ("formats", "converters", "passes")

MISSING_COST = 100.0
"""What a step with a missing package costs more, so that a route that works here is preferred."""

LOWERED_COST = 0.25
"""What carrying a lowered precision through a converter costs more: precision drops late."""

State = tuple[str, Precision]


@dataclass(frozen=True)
class Route:
    """A chain of steps from one (format, precision) to another."""

    source: State
    steps: tuple[Step, ...]
    cost: float

    @property
    def states(self) -> tuple[State, ...]:
        """The (format, precision) before each step, and after the last."""
        states = [self.source]
        for step in self.steps:
            states.append(after(step, states[-1]))
        return tuple(states)

    def missing(self) -> tuple[Package, ...]:
        """Packages that its steps and formats need and that are not installed."""
        needs = [need for step in self.steps for need in step.needs]
        return tuple(dict.fromkeys(need for need in needs if not need.is_available))

    def explain(self) -> list[dict[str, Any]]:
        """A dictionary per step: name, from, to, loses, missing packages, options with defaults."""
        rows = []
        for step, before, after in zip(self.steps, self.states, self.states[1:], strict=False):
            rows.append(
                {
                    "name": step.name,
                    "from": f"{before[0]} {before[1]}",
                    "to": f"{after[0]} {after[1]}",
                    "loses": step.loses,
                    "rungs": [rung.name for rung in step.rungs],
                    "missing": [n.module for n in step.needs if not n.is_available],
                    "options": {name: str(p.default) for name, p in step.options.items()},
                }
            )
        return rows


@dataclass(frozen=True)
class ConverterGraph:
    """All formats and steps there are, by name.

    Attributes:
        origins: step or format name -> the distribution a plugin came from; own rooms are absent.
    """

    formats: Mapping[str, Format]
    steps: Mapping[str, Step]
    origins: Mapping[str, str]

    def format(self, name: str) -> Format:
        """The format of that name. Raises UnknownNameError with the nearest match."""
        if name not in self.formats:
            raise UnknownNameError("format", name, self.formats)
        return self.formats[name]

    def step(self, name: str) -> Step:
        """The step of that name (`onnx-fp16`). Raises UnknownNameError with the nearest match."""
        if name not in self.steps:
            raise UnknownNameError("step", name, self.steps)
        return self.steps[name]

    def plan(
        self,
        source: State,
        to: str,
        precision: Precision | None = None,
        artifact: Artifact | None = None,
    ) -> Route:
        """The cheapest route; precision never rises and falls as late as possible.

        Args:
            source: format and precision of the model at hand.
            to: format name.
            precision: asked for; None keeps the source's, or what converters alone make of it.
            artifact: the model at hand; without it every step that fits the state is considered.

        Raises:
            UnknownNameError: there is no format `to`.
            NoRouteError: there is no route.
        """
        self.format(to)
        for cost, state, steps in self._explore(source, to, artifact):
            is_kept = precision is None and all(isinstance(step, Converter) for step in steps)
            if state[0] == to and (is_kept or state[1] is precision):
                return Route(source, steps, cost)
        raise self._no_route(source, (to, precision or source[1]))

    def reachable(self, source: State) -> dict[State, Route]:
        """Every (format, precision) there is a route to, the source itself included."""
        return {state: Route(source, steps, cost) for cost, state, steps in self._explore(source)}

    def _explore(
        self, source: State, to: str = "", artifact: Artifact | None = None
    ) -> Iterator[tuple[float, State, tuple[Step, ...]]]:
        """Dijkstra's algorithm: states in order of cost, each with its cheapest chain.

        Source: Dijkstra, A note on two problems in connexion with graphs, 1959.
        """
        queue: list[tuple[float, int, State, tuple[Step, ...]]] = [(0.0, 0, source, ())]
        settled: set[State] = set()
        order = 0
        while queue:
            cost, _, state, steps = heapq.heappop(queue)
            if state in settled:
                continue
            settled.add(state)
            yield cost, state, steps
            for step in self.steps.values():
                if not _applies(step, state) or not _has_folder(step, steps):
                    continue
                if _comes_back(step, source, steps) or _unpacks_again(step, state, steps):
                    continue
                if not steps and artifact is not None and not _takes(step, artifact, to):
                    continue
                order += 1
                arrived = after(step, state)
                heapq.heappush(queue, (cost + _cost(step, state), order, arrived, (*steps, step)))

    def _no_route(self, source: State, goal: State) -> NoRouteError:
        reachable = self.reachable(source)
        same_format = [str(p) for f, p in reachable if f == goal[0]]
        same_precision = [f for f, p in reachable if p is goal[1] and f != source[0]]
        why = [
            f"{goal[0]} can be reached at: {', '.join(sorted(same_format)) or 'no precision'}",
            f"{goal[1]} can be reached in: {', '.join(sorted(same_precision)) or 'no format'}",
        ]
        if not source[1].may_become(goal[1]):
            why.insert(0, f"The source holds {source[1]}; a precision never rises.")
        return NoRouteError(
            f"No route from {source[0]} ({source[1]}) to {goal[0]} ({goal[1]}).",
            why=why,
            hint="See what there is:  convkit formats",
            source=list(source),
            goal=list(goal),
        )


def _applies(step: Step, state: State) -> bool:
    if isinstance(step, Converter):
        return step.source == state[0] and state[1] in step.carries
    return (
        step.format == state[0]
        and state[1] in step.accepts
        and state[1] is not step.precision
        and (step.recasts or state[1].may_become(step.precision))
    )


def _has_folder(step: Step, before: Sequence[Step]) -> bool:
    """Whether what a step works on will be there, if it works on folders as users have them."""
    if not step.of_source or not before:
        return True
    last = before[-1]
    return last.makes_folder if isinstance(last, Converter) else last.of_source


def _comes_back(step: Step, source: State, before: Sequence[Step]) -> bool:
    """Whether a step leads to a format that the route has left: unpacked weights do not return."""
    passed = {source[0], *(one.target for one in before if isinstance(one, Converter))}
    return isinstance(step, Converter) and step.target in passed


def _unpacks_again(step: Step, state: State, before: Sequence[Step]) -> bool:
    """Whether a step unpacks what a pass of the route quantized: a precision that rises."""
    is_unpacking = isinstance(step, Converter) and state[1] in step.gives
    return is_unpacking and any(isinstance(one, Pass) for one in before)


def _takes(step: Step, artifact: Artifact, to: str) -> bool:
    """Whether a step may begin the way of a model to a format."""
    if isinstance(step, Pass) or step.takes is None or step.target == to:
        return True
    return step.takes(artifact)


def after(step: Step, state: State) -> State:
    """The (format, precision) a step arrives at from a state."""
    if isinstance(step, Converter):
        return step.target, step.gives.get(state[1], state[1])
    return state[0], step.precision


def _cost(step: Step, state: State) -> float:
    missing = MISSING_COST * sum(not need.is_available for need in step.needs)
    lowered = LOWERED_COST * (isinstance(step, Converter) and state[1] is not Precision.FP32)
    return step.cost + missing + lowered


@functools.cache
def discover() -> ConverterGraph:
    """Scans the three rooms and the entry-point group `convkit.plugins`.

    A plugin that cannot be imported fails loudly: an edge that vanishes in silence is worse.
    """
    formats: dict[str, Format] = {}
    steps: dict[str, Step] = {}
    origins: dict[str, str] = {}
    for module, origin in _modules():
        for value in vars(module).values():
            if isinstance(value, Format):
                formats[value.name] = value
            elif isinstance(value, Converter | Pass):
                steps[value.name] = value
            else:
                continue
            if origin:
                origins[value.name] = origin
    return ConverterGraph(formats, steps, origins)


def _modules() -> Iterator[tuple[ModuleType, str]]:
    """Modules that hold records, each with the distribution it came from ("" for our own)."""
    for room in _ROOMS:
        package = importlib.import_module(f"convkit.{room}")
        names = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
        for name in names:
            if _holds_record(room, name, names):
                yield importlib.import_module(f"convkit.{room}.{name}"), ""
    for entry in importlib.metadata.entry_points(group="convkit.plugins"):
        yield entry.load(), entry.dist.name if entry.dist else entry.value


def _holds_record(room: str, name: str, names: Sequence[str]) -> bool:
    """Whether a module's name is that of a record: the others support one and are not imported.

    Converters are `<source>_to_<target>`, passes `<format>_<precision>`, formats one name that
    extends no other's (`onnx_header` supports `onnx`).
    """
    if room == "converters":
        return "_to_" in name
    if room == "passes":
        return name.rpartition("_")[2] in {str(precision) for precision in Precision}
    return not any(name.startswith(f"{other}_") for other in names)


def detect(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    opening: Opening | None = None,
    graph: ConverterGraph | None = None,
) -> Artifact:
    """What a model is: its format by content, its precision and signature from headers.

    Args:
        model: a path, or `package.module:factory`.
        weights: the weights of a factory's network, `FILE` or `FILE:KEY`.
        opening: how to open it, as far as the user said.
        graph: other than the installed one, for tests.

    Raises:
        ModelError: missing, empty, not readable, or of no known format.
        UsageError: a hub name, or weights without a factory.
    """
    try:
        return _detect(str(model), weights, opening or Opening(), graph or discover())
    except OSError as cause:  # no permission, a name of a thousand letters, a failing disk
        raise ModelError(
            f"{cause.filename or model} cannot be read: {cause.strerror or cause}.",
            hint=f"Look at it:  ls -ld {cause.filename or model}",
        ) from cause


def _detect(
    text: str, weights: str | Path | None, opening: Opening, graph: ConverterGraph
) -> Artifact:
    if not text:
        raise UsageError("No model is named.", hint="convkit convert PATH --to onnx")
    if text.startswith("hf://"):
        raise UsageError(
            f"{text} lies on a hub; this version converts local models only.",
            hint=f"Download it first:  hf download {text[5:]} --local-dir {Path(text).name}",
        )
    path = Path(text).expanduser()
    factory_name.check_is_no_file(text)
    if not path.exists() and factory_name.matches(text):
        file, key = factory_name.split_weights(weights)
        opening = replace(opening, factory=text, weights_key=key)
        path = existing(file) if file else factory_name.module_file(text)
    elif weights is not None:
        raise UsageError(
            f"--weights goes with a factory, but {text} is a path.",
            hint=f"Name the network:  convkit convert package.module:factory --weights {weights}",
        )
    else:
        existing(path)
    found = next((f for f in graph.formats.values() if f.matches(path, opening)), None)
    if found is None:
        raise unrecognised(path, graph.formats)
    described = found.describe(path, opening)
    artifact = Artifact(
        path=path,
        format=found.name,
        precision=described.precision,
        inputs=described.inputs,
        outputs=described.outputs,
        opening=opening,
        data_files=described.data_files,
    )
    return replace(artifact, lineage=artifact.read_lineage())
