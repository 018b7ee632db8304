"""How large the values of a model become on samples: the evidence for fp32 islands.

Every float value gets two nodes, its smallest and its largest element, and only these scalars leave
the session. So all values of all layers are measured in one run with the memory of an ordinary
one; nothing is fetched and nothing piles up. Values inside If, Loop and Scan bodies are measured
too: their scalars are handed out through further outputs of the body.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.onnx_structure import plain_session
from convkit.onnx_typing import nodes_of
from convkit.passes.onnx_half_types import is_float
from convkit.step import Feeds

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

SAMPLE_LIMIT = 32
"""Samples that are run; ranges hardly grow beyond."""

_FETCH_LIMIT_BYTES = 256 << 20
"""Memory for values that hold infinities, which are looked at outside the session."""

_MARK = "convkit_range"


@dataclass(frozen=True)
class Range:
    """Smallest and largest finite element of a value over all samples, and its element count."""

    low: float
    high: float
    count: int = 0

    @property
    def absmax(self) -> float:
        """Largest magnitude of a finite element."""
        return max(abs(self.low), abs(self.high))

    def joined(self, other: Range) -> Range:
        """The range that holds both."""
        return Range(
            min(self.low, other.low), max(self.high, other.high), max(self.count, other.count)
        )


Ranges = Mapping[str, Range]
"""Value name -> range; a value that was not seen is missing."""


def measure(
    model: ir.Model, folder: Path, samples: Sequence[Feeds], progress: Callable[..., None]
) -> Ranges:
    """Runs the fp32 model on the samples and gives the range of every float value.

    Args:
        model: its larger initializers still refer to files in `folder`.
        folder: the folder of the model file.
        samples: inputs by name; the first 32 are run.
        progress: takes (what, done, total).

    Raises:
        Exception: whatever ONNX Runtime raises when the model or a sample does not run.
    """
    import onnx_ir as ir

    wanted = {
        value.name for node in nodes_of(model.graph) for value in node.outputs if is_float(value)
    }
    wanted |= {value.name for value in model.graph.inputs if is_float(value)}
    if not wanted:
        return {}
    names = {value.name or "" for value in model.graph.inputs}
    batch = [{k: v for k, v in feeds.items() if k in names} for feeds in samples[:SAMPLE_LIMIT]]
    wanted -= {name for name in names if all(name in f and f[name].size == 0 for f in batch)}

    def attempt(allows_empty: bool) -> tuple[dict[str, Range], set[str]]:
        proto = ir.to_proto(model)
        probes = _Probes({name for name in wanted if name}, _sized(model), allows_empty)
        probes.add_to(proto.graph, [value.name for value in proto.graph.input])
        return _run(proto, probes, batch, folder, progress)

    try:
        found, unbounded = attempt(False)
    except Exception:  # a value without elements has no extremes; with a 0 joined it has
        found, unbounded = attempt(True)
    if unbounded:
        plain = ir.to_proto(model)
        own = {output for node in plain.graph.node for output in node.output}
        for name in unbounded:
            if name in own or name in names:
                found[name] = Range(0.0, 0.0)
            else:  # inside a body, where it cannot be looked at: taken for too large
                found[name] = Range(-math.inf, math.inf)
        found.update(_finite_ranges(plain, unbounded & (own | names), batch, folder))
    return found


def _sized(model: ir.Model) -> set[str]:
    """Values of the main graph whose element count matters: in and out of means and sums."""
    from convkit.passes.onnx_half_insides import SUMMING

    values = [v for n in model.graph if n.op_type in SUMMING for v in (n.inputs[0], n.outputs[0])]
    return {value.name for value in values if value is not None and value.name}


def _run(
    proto: onnx.ModelProto,
    probes: _Probes,
    batch: Sequence[Feeds],
    folder: Path,
    progress: Callable[..., None],
) -> tuple[dict[str, Range], set[str]]:
    session = plain_session(proto, folder)
    found: dict[str, Range] = {}
    unbounded: set[str] = set()
    for index, feeds in enumerate(batch):
        progress("ranges", index, len(batch))
        scalars = dict(zip(probes.outputs, session.run(probes.outputs, dict(feeds)), strict=True))
        for name, (low, high) in probes.scalars.items():
            count = int(scalars[probes.sizes[name]]) if name in probes.sizes else 0
            seen = Range(float(scalars[low]), float(scalars[high]), count)
            if not (math.isfinite(seen.low) and math.isfinite(seen.high)):
                unbounded.add(name)
            else:
                found[name] = found[name].joined(seen) if name in found else seen
    return found, unbounded


def _finite_ranges(
    proto: onnx.ModelProto,
    names: Iterable[str],
    batch: Sequence[Feeds],
    folder: Path,
) -> dict[str, Range]:
    """Ranges over the finite elements only; values are fetched few at a time."""
    import numpy as np
    import onnx

    found: dict[str, Range] = {}
    pending = sorted(names)
    chunk = 1
    while pending:
        now, pending = pending[:chunk], pending[chunk:]
        probe = onnx.ModelProto()
        probe.CopyFrom(proto)
        del probe.graph.output[:]
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in now)
        session = plain_session(probe, folder)
        largest = 1
        for feeds in batch:
            for name, array in zip(now, session.run(now, dict(feeds)), strict=True):
                finite = array[np.isfinite(array)]
                low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
                seen = Range(float(low), float(high), int(array.size))
                found[name] = found[name].joined(seen) if name in found else seen
                largest = max(largest, array.nbytes)
        chunk = max(1, min(64, _FETCH_LIMIT_BYTES // largest))
    return found


class _Probes:
    """Adds the measuring nodes.

    Attributes:
        outputs: names of the scalars, outputs of the main graph.
        scalars: value name -> names of its smallest and largest element.
        sizes: value name -> name of its element count.
    """

    def __init__(self, wanted: set[str], sized: set[str], allows_empty: bool) -> None:
        self._wanted = wanted
        self._sized = sized
        self._allows_empty = allows_empty
        self._count = 0
        self.outputs: list[str] = []
        self.scalars: dict[str, tuple[str, str]] = {}
        self.sizes: dict[str, str] = {}

    def add_to(self, graph: onnx.GraphProto, inputs: Iterable[str]) -> None:
        """Measures a main graph."""
        import onnx

        inside = self._measure(graph, inputs)
        for name, (low, high) in inside.items():
            self.scalars[name] = (low, high)
            self.outputs += [low, high]
        made = {output for node in graph.node for output in node.output} | set(inputs)
        for name in sorted(self._sized & made & set(inside)):
            self.sizes[name] = self._name("size")
            graph.node.append(onnx.helper.make_node("Size", [name], [self.sizes[name]]))
            self.outputs.append(self.sizes[name])
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.outputs)

    def _measure(self, graph: onnx.GraphProto, inputs: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Probes the values of a graph and of the bodies in it; their scalars live in `graph`."""
        nodes = list(graph.node)
        del graph.node[:]
        found: dict[str, tuple[str, str]] = {}
        for name in inputs:
            if name in self._wanted:
                found[name] = self._probe(graph, name)
        for node in nodes:
            lifted, after = self._lift(node)
            graph.node.append(node)
            graph.node.extend(after)
            found.update(lifted)
            for name in node.output:
                if name in self._wanted:
                    found[name] = self._probe(graph, name)
        return found

    def _probe(self, graph: onnx.GraphProto, name: str) -> tuple[str, str]:
        extreme = self._joined_extreme if self._allows_empty else self._extreme
        low, high = self._name("low"), self._name("high")
        graph.node.extend([*extreme("Min", name, low), *extreme("Max", name, high)])
        return low, high

    def _extreme(self, which: str, source: str, scalar: str) -> list[onnx.NodeProto]:
        """The extreme element as float32."""
        import onnx

        make = onnx.helper.make_node
        own = self._name("own")
        return [
            make(f"Reduce{which}", [source], [own], keepdims=0),
            make("Cast", [own], [scalar], to=onnx.TensorProto.FLOAT),
        ]

    def _joined_extreme(self, which: str, source: str, scalar: str) -> list[onnx.NodeProto]:
        """The same with a 0 joined, so that empty tensors have one too; slower by a copy."""
        import onnx

        make = onnx.helper.make_node
        zero, flat, joined, all_, wide = (self._name("part") for _ in range(5))
        minus = onnx.helper.make_tensor(all_, onnx.TensorProto.INT64, [1], [-1])
        none = onnx.helper.make_tensor(zero, onnx.TensorProto.FLOAT, [1], [0.0])
        return [
            make("Constant", [], [all_], value=minus),
            make("Constant", [], [zero], value=none),
            make("Reshape", [source, all_], [flat]),
            make("Cast", [flat], [wide], to=onnx.TensorProto.FLOAT),
            make("Concat", [wide, zero], [joined], axis=0),
            make(f"Reduce{which}", [joined], [scalar], keepdims=0),
        ]

    def _lift(
        self, node: onnx.NodeProto
    ) -> tuple[dict[str, tuple[str, str]], list[onnx.NodeProto]]:
        """Hands the scalars of a node's bodies out of it."""
        bodies = {a.name: a.g for a in node.attribute if a.HasField("g")}
        found: dict[str, tuple[str, str]] = {}
        after: list[onnx.NodeProto] = []
        if node.op_type == "If":
            inside = {name: self._measure(body, ()) for name, body in bodies.items()}
            for branch, probes in inside.items():
                for name, pair in probes.items():
                    outer = [self._hand_out_branch(node, bodies, branch, s) for s in pair]
                    found[name] = (outer[0], outer[1])
        elif node.op_type in ("Loop", "Scan") and "body" in bodies:
            for name, pair in self._measure(bodies["body"], ()).items():
                stacks = [self._hand_out(node, bodies["body"], scalar) for scalar in pair]
                found[name] = (self._name("low"), self._name("high"))
                low, high = found[name]
                after += self._joined_extreme("Min", stacks[0], low)
                after += self._joined_extreme("Max", stacks[1], high)
        return found, after

    def _hand_out(self, node: onnx.NodeProto, body: onnx.GraphProto, scalar: str) -> str:
        """One more scan output."""
        import onnx

        body.output.append(onnx.helper.make_tensor_value_info(scalar, 1, []))
        node.output.append(self._name("stack"))
        for attribute in node.attribute:
            if attribute.name in ("scan_output_axes", "scan_output_directions"):
                attribute.ints.append(0)
        return str(node.output[-1])

    def _hand_out_branch(
        self, node: onnx.NodeProto, bodies: Mapping[str, onnx.GraphProto], branch: str, scalar: str
    ) -> str:
        """One more output of an If; the other branch gives 0."""
        import onnx

        zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [], [0.0])
        for name, body in bodies.items():
            given = scalar
            if name != branch:
                given = self._name("zero")
                body.node.append(onnx.helper.make_node("Constant", [], [given], value=zero))
            body.output.append(onnx.helper.make_tensor_value_info(given, 1, []))
        node.output.append(self._name("branch"))
        return str(node.output[-1])

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{_MARK}_{kind}_{self._count}"
