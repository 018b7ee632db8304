"""Nodes that measure a graph while it runs: only scalars leave the session.

Every value that is asked for gets two nodes, its smallest and its largest element. So all values of
all layers are measured in one run with the memory of an ordinary one; nothing is fetched and
nothing piles up. Values inside If, Loop and Scan bodies are measured too: their scalars are handed
out through further outputs of the body.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_MARK = "convkit_range"


class Probes:
    """Adds the measuring nodes.

    Args:
        wanted: values to measure.
        sized: those of the main graph whose elements are counted as well.
        allows_empty: values may have no elements, which count as a 0 then; slower.

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
