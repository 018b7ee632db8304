"""Loops that are recurrent layers become ONNX's RNN and GRU.

tf2onnx leaves Keras' GRU and SimpleRNN as Loop: correct, slow, and out of reach for runtimes
without loops. Here a Loop over the first axis of a sequence whose step is exactly such a cell
becomes the operator; any other stays a Loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from convkit.converters.tf2onnx_cells import Array, Cell, Leaf, NoMatchError, Sum, match
from convkit.converters.tf2onnx_lengths import Lengths
from convkit.converters.tf2onnx_steps import Step


def fuse_recurrent(model: Any) -> list[str]:
    """Replaces loops in a ModelProto; sentences for the report."""
    if not any(node.op_type == "Loop" for node in model.graph.node):
        return []
    fused = []
    for name in [node.name for node in model.graph.node if node.op_type == "Loop"]:
        graph = _Graph(model)
        node = next(node for node in model.graph.node if node.name == name)
        try:
            loop = _Loop(graph, node)
            cell = loop.cell()
        except NoMatchError:
            continue
        loop.replace(cell)
        fused.append(cell.operator)
    if fused:
        _drop_unused(model.graph)
    return [
        f"{fused.count(kind)} loop{'s' if fused.count(kind) > 1 else ''} became ONNX {kind}"
        for kind in sorted(set(fused))
    ]


class _Graph:
    """The main graph: who makes a value, who reads it, what is constant."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.proto = model.graph
        self.makers = {out: node for node in model.graph.node for out in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in _read(node):
                self.readers.setdefault(name, []).append(node)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._to_array = numpy_helper.to_array
        self.outputs = {value.name for value in model.graph.output}
        self.lengths = Lengths(model, self.makers, self.constant)

    def constant(self, name: str) -> Array | None:
        """The elements of a value that is an initializer."""
        while name in self.makers and self.makers[name].op_type == "Identity":
            name = self.makers[name].input[0]
        tensor = self._tensors.get(name)
        return None if tensor is None else np.asarray(self._to_array(tensor))

    def is_read(self, name: str) -> bool:
        return name in self.readers or name in self.outputs


@dataclass
class _Ends:
    """Names at the ends of a loop: of its state and of the sequence it reads."""

    state_in: str
    state_out: str
    initial: str
    final: str
    sequence: str
    element: str


class _Loop:
    """A Loop node seen as a recurrent layer.

    Raises:
        NoMatchError: it is none.
    """

    def __init__(self, graph: _Graph, node: Any) -> None:
        self._graph, self._node = graph, node
        self._body = next(a.g for a in node.attribute if a.name == "body")
        self._makers = {out: n for n in self._body.node for out in n.output}
        self._invariant: dict[str, str] = {}
        self._counter = self._next = ""
        states = []
        count = len(node.input) - 2
        inner = [value.name for value in self._body.input][2:]
        outer = [value.name for value in self._body.output][1:]
        for index in range(count):
            taken, given = inner[index], self._resolved(outer[index])
            if taken == given:
                self._invariant[taken] = node.input[2 + index]
            elif self._is_counter(taken, given, node.input[2 + index]):
                if self._counter or graph.is_read(node.output[index]):
                    raise NoMatchError("two counters, or one that is read")
                self._counter, self._next = taken, given
            else:
                states.append((taken, given, node.input[2 + index], node.output[index]))
        if len(states) != 1:
            raise NoMatchError("not one state")
        self._scans = list(zip(outer[count:], node.output[count:], strict=True))
        sequence, element = self._sequence()
        self._ends = _Ends(*states[0], sequence, element)
        if any(self._resolved(name) != self._ends.state_out for name, _ in self._scans):
            raise NoMatchError("the loop gives more than its states")
        self._check_length()

    def cell(self) -> Cell:
        """The cell that a step computes."""
        graph, ends = self._graph, self._ends
        known: dict[str, Any] = {}
        for name in self._constants():
            value = graph.constant(self._invariant.get(name, name))
            if value is not None:
                known[name] = value
        from onnx import numpy_helper

        for tensor in self._body.initializer:
            known[tensor.name] = np.asarray(numpy_helper.to_array(tensor))
        hidden = _columns(self._body, ends.state_in) or _columns_of(graph, ends.final)
        width = graph.lengths.static(ends.sequence, 2)
        if not hidden or not width:
            raise NoMatchError("sizes are unknown")
        x, h = Leaf("x", width), Leaf("h", hidden)
        known |= {ends.element: Sum(((x, 1.0),)), ends.state_in: Sum(((h, 1.0),))}
        found = match(Step(self._body.node, known).sum(ends.state_out), x, h)
        if found.r.shape[1] != hidden or found.w.dtype != np.float32:
            raise NoMatchError("sizes differ")
        return found

    def replace(self, cell: Cell) -> None:
        """Puts ONNX's operator in the loop's place."""
        from onnx import helper, numpy_helper

        node, graph, ends = self._node, self._graph, self._ends
        base = node.name
        weights = {
            f"{base}/W": cell.w[np.newaxis],
            f"{base}/R": cell.r[np.newaxis],
            f"{base}/B": cell.b[np.newaxis],
            f"{base}/first": np.array([0], np.int64),
            f"{base}/second": np.array([1], np.int64),
        }
        for name, array in weights.items():
            dtype = np.int64 if array.dtype == np.int64 else np.float32
            tensor = numpy_helper.from_array(np.ascontiguousarray(array, dtype), name)
            graph.proto.initializer.append(tensor)
        first, second = f"{base}/first", f"{base}/second"
        made = []
        initial = ""
        if not self._starts_at_zero():
            initial = f"{base}/initial"
            made.append(helper.make_node("Unsqueeze", [ends.initial, first], [initial]))
        attributes: dict[str, Any] = {
            "hidden_size": cell.r.shape[1],
            "activations": list(cell.activations),
        }
        if cell.operator == "GRU":
            attributes["linear_before_reset"] = cell.linear_before_reset
        inputs = [ends.sequence, *list(weights)[:3], *(["", initial] if initial else [])]
        sequence, last = f"{base}/Y", f"{base}/Y_h"
        made.append(
            helper.make_node(
                cell.operator, inputs, [sequence, last], name=f"{base}/{cell.operator}",
                **attributes,
            )
        )  # fmt: skip
        made.append(helper.make_node("Squeeze", [last, first], [ends.final]))
        made += [
            helper.make_node("Squeeze", [sequence, second], [output]) for _, output in self._scans
        ]
        for index, extra in enumerate(made):
            extra.name = extra.name or f"{base}/{extra.op_type}_{index}"
        at = next(i for i, n in enumerate(graph.proto.node) if n.name == node.name)
        nodes = [*graph.proto.node[:at], *made, *graph.proto.node[at + 1 :]]
        del graph.proto.node[:]
        graph.proto.node.extend(nodes)
        _take_last(graph.proto, [output for _, output in self._scans], ends.final)

    def _resolved(self, name: str) -> str:
        """Past identities within the body."""
        while name in self._makers and self._makers[name].op_type == "Identity":
            name = self._makers[name].input[0]
        return name

    def _is_counter(self, taken: str, given: str, initial: str) -> bool:
        """Whether a value starts at zero and grows by one."""
        node = self._makers.get(given)
        if node is None or node.op_type != "Add" or taken not in node.input:
            return False
        step = next((name for name in node.input if name != taken), "")
        start, increment = self._graph.constant(initial), self._own_constant(step)
        return start is not None and increment is not None and start == 0 and increment == 1

    def _own_constant(self, name: str) -> Array | None:
        from onnx import numpy_helper

        for tensor in self._body.initializer:
            if tensor.name == name:
                return np.asarray(numpy_helper.to_array(tensor))
        return self._graph.constant(self._invariant.get(name, name))

    def _sequence(self) -> tuple[str, str]:
        """The outer sequence that a step reads its element from, and the element."""
        iteration = self._body.input[0].name
        found = []
        for node in self._body.node:
            if node.op_type == "Gather" and node.input[1] in (self._counter, iteration):
                axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                if axis == 0:
                    found.append((node.input[0], node.output[0]))
        if len(found) != 1 or self._inner(found[0][0]):
            raise NoMatchError("not one sequence")
        sequence, element = found[0]
        return self._invariant.get(sequence, sequence), element

    def _inner(self, name: str) -> bool:
        return name in self._makers

    def _constants(self) -> Iterator[str]:
        """Names from outside that the body reads."""
        for node in self._body.node:
            for name in node.input:
                if name and name not in self._makers:
                    yield name

    def _check_length(self) -> None:
        """Makes sure that the loop runs once for each element: nothing stops it earlier."""
        lengths = self._graph.lengths
        length = lengths.of_axis(self._ends.sequence, 0)
        count = lengths.of_number(self._node.input[0])
        if length is None or length != count:
            raise NoMatchError("the loop does not run over its sequence")
        condition = self._resolved(self._body.output[0].name)
        if not self._goes_on(condition, length):
            raise NoMatchError("the loop may stop early")

    def _goes_on(self, name: str, length: Any) -> bool:
        node = self._makers.get(name)
        if node is None:
            value = self._own_constant(name)
            return name == self._body.input[1].name or (value is not None and bool(value.all()))
        if node.op_type == "And":
            return all(self._goes_on(self._resolved(part), length) for part in node.input)
        if node.op_type != "Less":
            return False
        counted = self._uncast(node.input[0])
        limit = self._limit(node.input[1])
        return counted in (self._next, self._body.input[0].name) and limit == length

    def _limit(self, name: str) -> Any:
        name = self._uncast(name)
        value = self._own_constant(name)
        if value is not None and value.size == 1:
            return int(value.reshape(()))
        return self._graph.lengths.of_number(self._invariant.get(name, name))

    def _uncast(self, name: str) -> str:
        while name in self._makers and self._makers[name].op_type in ("Cast", "Identity"):
            name = self._makers[name].input[0]
        return name

    def _starts_at_zero(self) -> bool:
        """Whether the initial state is zeros, which the operator assumes anyway."""
        node = self._graph.makers.get(self._ends.initial)
        if node is None or node.op_type not in ("Expand", "ConstantOfShape"):
            return False
        if node.op_type == "ConstantOfShape":
            from onnx import numpy_helper

            value = [numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"]
            return not value or not np.any(value[0])
        filled = self._graph.constant(node.input[0])
        return filled is not None and not np.any(filled)


def _take_last(graph: Any, sequences: list[str], final: str) -> None:
    """The last element of a sequence of states is the final state."""
    from onnx import numpy_helper

    constants = {t.name: t for t in graph.initializer}

    def values(node: Any) -> list[list[int]]:
        tensors = [constants.get(name) for name in node.input[1:]]
        return [[] if t is None else numpy_helper.to_array(t).reshape(-1).tolist() for t in tensors]

    for cut in [n for n in graph.node if n.op_type == "Slice" and n.input[0] in sequences]:
        begin, end, axes = (*values(cut), [], [])[:3]
        readers = [n for n in graph.node if cut.output[0] in _read(n)]
        if begin != [-1] or not end or end[0] < _FAR or axes != [0] or len(cut.input) > 4:
            continue
        for reader in readers:
            if reader.op_type == "Squeeze" and values(reader) == [[0]]:
                reader.op_type = "Identity"
                del reader.input[:]
                reader.input.append(final)


_FAR = (1 << 31) - 1


def _columns(body: Any, name: str) -> int:
    value = next(v for v in body.input if v.name == name)
    dims = value.type.tensor_type.shape.dim
    return dims[1].dim_value if len(dims) == 2 else 0


def _columns_of(graph: _Graph, name: str) -> int:
    return graph.lengths.static(name, 1) or 0


def _read(node: Any) -> Iterator[str]:
    """Names that a node reads, those its bodies read from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {out for inner in body.node for out in inner.output}
            own |= {v.name for v in (*body.input, *body.initializer)}
            wanted = [name for inner in body.node for name in _read(inner)]
            wanted += [value.name for value in body.output]
            yield from (name for name in wanted if name not in own)


def _drop_unused(graph: Any) -> None:
    """Removes nodes and initializers that no output needs."""
    makers = {out: node for node in graph.node for out in node.output}
    waiting = [value.name for value in graph.output]
    used: set[str] = set()
    kept: set[int] = set()
    while waiting:
        name = waiting.pop()
        if name in used:
            continue
        used.add(name)
        node = makers.get(name)
        if node is not None and id(node) not in kept:
            kept.add(id(node))
            waiting += _read(node)
    nodes = [node for node in graph.node if any(out in used for out in node.output)]
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    if len(tensors) < len(graph.initializer):
        held = [type(t).FromString(t.SerializeToString()) for t in tensors]
        del graph.initializer[:]
        graph.initializer.extend(held)
