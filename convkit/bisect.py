"""Finds the first tensor at which two models part, a few intermediates at a time.

Both models run with some of their common tensors exposed, about log2(N) of N in a run; what is
found to agree or differ narrows the search, as in a binary search that asks several questions at
once. What is reported is checked: every nearest common tensor it is computed from agrees, and
the difference reaches the ones computed from it (masks of different depth differ and do no harm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convkit import metrics
from convkit.artifact import Artifact, Precision, TensorSpec
from convkit.bisect_pairs import Pair, paired
from convkit.errors import UsageError
from convkit.exposing import Exposed, element_counts
from convkit.matching import fit_feeds
from convkit.step import Feeds, Outputs
from convkit.verification import LIMITS, label_of

MEMORY_LIMIT_BYTES = 1 << 30
"""What exposed tensors may take together."""

_BYTES_PER_ELEMENT = 32
"""An exposed element: 4 bytes on each side, and three float64 copies while they are compared."""

_HEALED_DB = 20.0
"""How far above the limit the readers of a differing tensor must agree for it to be harmless. A
mask of -65504 for -1e9 is gone after the softmax; an error that only shrank is 20 dB worse."""

_HEALING_LEVELS = 6
"""How far a difference is followed: a mask is reshaped, expanded and added before the softmax."""
_HEALING_COUNT = 48

_MAX_RUNS = 64
"""Runs after which the best answer so far is given."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Divergence:
    """Where two models part.

    Attributes:
        tensor: the candidate's value.
        counterpart: what it was compared with: a value of the same name, or a module's path.
        node, op_type: who makes the tensor in the candidate.
        sqnr_db: of the tensor, against the reference's.
        max_abs: largest absolute difference.
        limit_db: what would have agreed.
        last_agreeing: the nearest tensor it is computed from that agrees; None for the inputs.
        run_count: how often both models ran.
        compared_count: how many tensors they have in common.
        sample: shapes of the input it was seen on.
    """

    tensor: str
    counterpart: str
    node: str
    op_type: str
    sqnr_db: float
    max_abs: float
    limit_db: float
    last_agreeing: str | None
    run_count: int
    compared_count: int
    sample: str

    def __str__(self) -> str:
        other = f" (module {self.counterpart})" if self.counterpart != self.tensor else ""
        return (
            f"The first tensor at which they part is '{self.tensor}'{other},\n"
            f"  made by {self.op_type} node '{self.node}': SQNR {self.sqnr_db:.1f} dB, "
            f"{self.limit_db:.0f} dB would agree; max_abs {self.max_abs:.3g}.\n"
            f"  Up to {self._before()} they agree.\n"
            f"  {self.compared_count} common tensors, {self.run_count} runs, at {self.sample}"
        )

    def _before(self) -> str:
        return "the inputs" if self.last_agreeing is None else f"'{self.last_agreeing}'"

    def to_json(self) -> dict[str, Any]:
        """The JSON of `verify --bisect`; numbers that JSON lacks are text."""
        return {
            key: value if not isinstance(value, float) or math.isfinite(value) else str(value)
            for key, value in vars(self).items()
        }


def first_divergence(
    reference: Artifact,
    candidate: Artifact,
    samples: Iterable[Feeds],
    *,
    load: Callable[[Artifact], Any] | None = None,
    precision: Precision | None = None,
    limit_db: float | None = None,
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
) -> Divergence | None:
    """The first tensor at which a candidate parts from its reference; one of them is ONNX.

    Args:
        reference: an ONNX graph, whose values are matched by name; a PyTorch network, whose
            modules are matched by the scopes the exporter wrote; or a TensorFlow model, whose
            tensors the ONNX values are named after.
        candidate: an ONNX graph; or what was made from the reference, an ONNX graph: a PyTorch
            program or a SavedModel, which carry its names.
        samples: inputs; the search follows the first on which the outputs differ.
        load: gives the framework's object behind an artifact (`Format.load`).
        precision: its limits decide what differs; the candidate's where not given.
        limit_db: another limit on the SQNR.
        memory_limit_bytes: what exposed tensors may take together, by estimate.

    Returns:
        None where the outputs agree on every sample.

    Raises:
        UsageError: neither pair.
        ModelError: a model cannot be opened.
    """
    samples = list(samples)
    limits = LIMITS[precision or candidate.precision]
    judge = _Judge(limits.sqnr_db if limit_db is None else limit_db, limits.floor)
    pair = paired(reference, candidate, load, samples)
    if not samples:
        raise UsageError("Nothing can be compared without samples.")
    for feeds in samples:
        search = _Search(pair, feeds, judge, memory_limit_bytes)
        start = search.first_output()
        if start is not None:
            return search.divergence(start)
    return None


class _Judge:
    """Whether two tensors differ, by SQNR above a floor that is rounding noise."""

    def __init__(self, limit_db: float, floor: float) -> None:
        self.limit_db = limit_db
        self._floor = floor

    def measure(self, reference: Array, candidate: Array) -> tuple[float, float]:
        """SQNR in dB and the largest difference; -inf dB where one is finite and one is not."""
        if metrics.nonfinite_count(reference, candidate):
            return -math.inf, math.inf
        finite = np.isfinite(reference.astype(np.float64))
        expected = np.where(finite, reference, 0).astype(np.float64)
        got = np.where(finite, candidate, 0).astype(np.float64)
        return metrics.sqnr_db(expected, got), metrics.max_abs(expected, got)

    def differs(self, measured: tuple[float, float]) -> bool:
        """Whether a measured pair is too far apart."""
        sqnr_db, max_abs = measured
        return not (sqnr_db >= self.limit_db or max_abs <= self._floor)

    def is_touched(self, measured: tuple[float, float]) -> bool:
        """Whether a measured pair shows more than rounding noise."""
        sqnr_db, max_abs = measured
        return not (sqnr_db >= self.limit_db + _HEALED_DB or max_abs == 0.0)


class _Search:
    """One search on one sample. Values are the graph's; their index is topological order."""

    def __init__(
        self,
        pair: Pair,
        feeds: Feeds,
        judge: _Judge,
        memory_limit_bytes: int,
    ) -> None:
        self._pair = pair
        self._graph = graph = pair.graph
        self._pairs = dict(pair.names)
        self._feeds = feeds
        self._given = [TensorSpec(n, a.dtype.name, a.shape) for n, a in feeds.items()]
        self._judge = judge
        self._memory_limit_bytes = memory_limit_bytes
        self._order = {name: index for index, name in enumerate(graph.makers)}
        self._measured: dict[str, tuple[float, float]] = {}
        self._run_count = 0
        self._elements = element_counts(graph, feeds)
        self._at_once = max(1, math.ceil(math.log2(len(self._pairs) + 1)))

    def first_output(self) -> str | None:
        """The first output that differs, in the order of the graph."""
        self._probe(())
        differing = [name for name in self._graph.outputs if self._differs(name)]
        return min(differing, key=lambda name: self._order.get(name, -1), default=None)

    def divergence(self, start: str) -> Divergence:
        """Narrows down from an output that differs."""
        found = self._narrow(start)
        while found != start and self._run_count < _MAX_RUNS and not self._matters(found, start):
            self._forget(found)
            found = self._narrow(start)
        sqnr_db, max_abs = self._measured[found]
        agreeing = [name for name in self._parents(found) if name in self._measured]
        last = max(agreeing, key=lambda name: self._order[name], default=None)
        node = self._graph.makers.get(found)
        return Divergence(
            tensor=found,
            counterpart=self._pairs.get(found, found),
            node=node.name if node else "",
            op_type=node.op_type if node else "input",
            sqnr_db=sqnr_db,
            max_abs=max_abs,
            limit_db=self._judge.limit_db,
            last_agreeing=last,
            run_count=self._run_count,
            compared_count=len(self._pairs),
            sample=label_of(self._feeds),
        )

    def _narrow(self, found: str) -> str:
        """From a tensor that differs to one whose nearest common sources all agree."""
        while self._run_count < _MAX_RUNS:
            sources = sorted(self._ancestors(found), key=lambda name: self._order[name])
            earlier = [name for name in sources if self._differs(name)]
            if earlier:
                found = earlier[0]
                continue
            agreeing = [i for i, name in enumerate(sources) if name in self._measured]
            window = sources[agreeing[-1] + 1 :] if agreeing else sources
            unknown = window or [n for n in self._parents(found) if n not in self._measured]
            if not unknown:
                break
            self._probe(self._choose(unknown))
        return found

    def _matters(self, found: str, start: str) -> bool:
        """Whether a difference still shows some tensors on, or at the output `start`."""
        levels = self._levels_below(found)
        while self._run_count < _MAX_RUNS:
            below = [name for level in levels for name in level]
            unknown = [n for n in below if n not in self._measured and n in self._pairs]
            if not unknown:
                break
            self._probe(self._fitting(unknown))
            levels = self._levels_below(found)  # what cannot be compared is passed through
        touched = {found}
        for level in levels:
            shown = {n for n in level if n in self._measured}
            shown = {n for n in shown if self._judge.is_touched(self._measured[n])}
            touched = {n for name in touched for n in self._children(name) if n in shown}
            if not touched or start in touched:
                break
        return bool(touched)

    def _levels_below(self, found: str) -> list[list[str]]:
        """Common tensors computed from one, the nearest first; a few dozen at most."""
        levels, seen = [[found]], {found}
        while len(levels) <= _HEALING_LEVELS and len(seen) <= _HEALING_COUNT:
            below = [n for name in levels[-1] for n in self._children(name)]
            below = [n for n in dict.fromkeys(below) if n not in seen]
            if not below:
                break
            seen.update(below)
            levels.append(below)
        return levels[1:]

    def _choose(self, names: Sequence[str]) -> list[str]:
        """Evenly spaced ones, as many as are asked at once and as memory allows."""
        count = min(self._at_once, len(names))
        spaced = [names[(i + 1) * len(names) // (count + 1)] for i in range(count)]
        return self._fitting(list(dict.fromkeys(spaced)))

    def _fitting(self, names: Sequence[str]) -> list[str]:
        """The first ones, as many as memory allows; one at least."""
        chosen: list[str] = []
        left = self._memory_limit_bytes
        for name in names:
            left -= self._elements[name] * _BYTES_PER_ELEMENT
            if left < 0 and chosen:
                break
            chosen.append(name)
        return chosen

    def _probe(self, names: Sequence[str]) -> None:
        """Runs both with these exposed and measures; what cannot be compared is forgotten."""
        self._run_count += 1
        keys = [self._pairs[name] for name in names]
        shown = self._graph.run(names, self._fed(self._graph))
        other = self._pair.other.run(keys, self._fed(self._pair.other))
        if not names:
            self._measure_outputs(other, shown)
        for name, key in zip(names, keys, strict=True):
            found = _aligned(other.get(key), shown.get(name))
            if found is not None and _are_comparable(found, shown[name]):
                self._measured[name] = self._measure(found, shown[name])
            else:
                self._forget(name)

    def _fed(self, side: Exposed) -> Feeds:
        """The sample under the names of a side."""
        inputs = [
            replace(spec, dtype=spec.dtype or given.dtype)
            for spec, given in zip(side.inputs, self._given, strict=False)
        ]
        return fit_feeds(self._feeds, self._given, inputs) if inputs else self._feeds

    def _measure(self, other: Array, shown: Array) -> tuple[float, float]:
        sides = (shown, other) if self._pair.graph_is_reference else (other, shown)
        return self._judge.measure(*sides)

    def _measure_outputs(self, other: Outputs, shown: Outputs) -> None:
        names = list(self._graph.outputs)
        known = list(other)
        if not set(known) <= set(names):  # other names: outputs go by their order
            known = known[: len(names)]
        else:
            names = known
        for key, name in zip(known, names, strict=False):
            self._pairs[name] = key
            if other[key].shape != shown[name].shape:
                self._measured[name] = (-math.inf, math.inf)
            elif _are_comparable(other[key], shown[name]):
                self._measured[name] = self._measure(other[key], shown[name])

    def _forget(self, name: str) -> None:
        self._pairs.pop(name, None)
        self._measured.pop(name, None)

    def _differs(self, name: str) -> bool:
        return name in self._measured and self._judge.differs(self._measured[name])

    def _ancestors(self, name: str) -> set[str]:
        """Every common tensor that a tensor is computed from."""
        return self._upward(name, stop_at_common=False)

    def _parents(self, name: str) -> list[str]:
        """The nearest common tensors that a tensor is computed from."""
        return sorted(self._upward(name, stop_at_common=True), key=lambda n: self._order[n])

    def _upward(self, name: str, stop_at_common: bool) -> set[str]:
        found: set[str] = set()
        seen = {name}
        waiting = [name]
        while waiting:
            node = self._graph.makers.get(waiting.pop())
            for source in node.reads if node else ():
                if source in seen:
                    continue
                seen.add(source)
                is_common = source in self._pairs and source in self._order
                if is_common:
                    found.add(source)
                if not (is_common and stop_at_common):
                    waiting.append(source)
        return found

    def _children(self, name: str) -> list[str]:
        """The nearest common tensors that are computed from a tensor."""
        touched = {name}
        found: list[str] = []
        for node in self._graph.nodes:
            if touched.isdisjoint(node.reads):
                continue
            for made in filter(None, node.outputs):
                if made in self._pairs and made != name:
                    found.append(made)
                else:
                    touched.add(made)
        return found


def _aligned(array: Array | None, like: Array | None) -> Array | None:
    """An array in the shape of another, where one of the two counts the rows of a batch on."""
    if array is None or like is None or abs(array.ndim - like.ndim) != 1:
        return array
    flat, batched = sorted((array.shape, like.shape), key=len)
    counted_on = (math.prod(batched[:2]), *batched[2:])
    return array.reshape(like.shape) if flat == counted_on else array


def _are_comparable(reference: Array, candidate: Array) -> bool:
    """Tensors of numbers and of one shape; equal names may stand for other things."""
    return (
        isinstance(reference, np.ndarray)
        and isinstance(candidate, np.ndarray)
        and reference.shape == candidate.shape
        and reference.dtype.kind not in "OUSc"
        and candidate.dtype.kind not in "OUSc"
    )
