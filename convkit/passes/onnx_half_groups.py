"""Values that must share a type: across the border of If, Loop and Scan bodies, and across calls.

What a loop carries has one type outside, going in, coming out and handed back. Both branches of
an If hand out the same types. What a language model keeps for its next call comes out as it goes
in. A group gathers such values; one that must stay fp32 keeps them all.

Source: ONNX operator specifications of If, Loop and Scan (order of inputs and outputs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convkit.onnx_typing import bodies_of, nodes_of
from convkit.passes.onnx_half_types import is_control_flow, is_float

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(eq=False)
class Group:
    """Values of one type.

    Attributes:
        members: everything whose range matters to the group.
        owned: body inputs and node outputs: they take the group's type, no node computes them.
        is_half: the type; fp32 otherwise.
        is_fixed: it cannot be half.
    """

    members: set[ir.Value] = field(default_factory=set)
    owned: set[ir.Value] = field(default_factory=set)
    is_half: bool = True
    is_fixed: bool = False

    def owns(self, value: ir.Value) -> bool:
        """Whether the value's type is the group's, rather than its producer's."""
        return value in self.owned


Groups = tuple[dict["ir.Value", Group], dict[tuple["ir.Node", int], Group]]
"""By value, and by (node, input index)."""


def groups_of(graph: ir.Graph, carried: Mapping[ir.Value, ir.Value]) -> Groups:
    """The groups of a graph and its bodies.

    Args:
        graph: the main graph.
        carried: its outputs that are its inputs at the next call -> that input.
    """
    values: dict[ir.Value, Group] = {}
    uses: dict[tuple[ir.Node, int], Group] = {}
    for node in nodes_of(graph):
        for slots in _shared(node):
            _add(node, slots, values, uses)
        if not is_control_flow(node):
            for _, body in bodies_of(node):
                for value in filter(is_float, body.inputs):
                    values[value] = Group({value}, {value}, is_half=False, is_fixed=True)
    for given, taken in carried.items():
        if is_float(given) and is_float(taken):
            _joined((given, taken), (taken,), values, uses)
    return values, uses


@dataclass
class _Shared:
    """One group before it is built: input index of the node, and values by role."""

    index: int | None
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)
    results: list[ir.Value] = field(default_factory=list)


def _add(
    node: ir.Node,
    shared: _Shared,
    values: dict[ir.Value, Group],
    uses: dict[tuple[ir.Node, int], Group],
) -> None:
    everything = [*shared.inputs, *shared.outputs, *shared.results]
    given = node.inputs[shared.index] if shared.index is not None else None
    if not any(map(is_float, everything)):
        return
    group = _joined(everything, [*shared.inputs, *shared.results], values, uses)
    if given is not None and shared.index is not None:
        group.members.add(given)
        uses[node, shared.index] = group


def _joined(
    members: Iterable[ir.Value],
    owned: Iterable[ir.Value],
    values: dict[ir.Value, Group],
    uses: dict[tuple[ir.Node, int], Group],
) -> Group:
    """The group of these values; groups that some of them are in already become one."""
    group = Group(set(members), set(owned))
    for value in list(group.members):
        known = values.get(value)
        if known is not None:
            group = _merged(known, group, values, uses)
        values[value] = group
    return group


def _merged(
    known: Group,
    fresh: Group,
    values: dict[ir.Value, Group],
    uses: dict[tuple[ir.Node, int], Group],
) -> Group:
    if known is fresh:
        return known
    known.members |= fresh.members
    known.owned |= fresh.owned
    known.is_fixed |= fresh.is_fixed
    for value in fresh.members:
        if values.get(value) is fresh:
            values[value] = known
    for key, group in list(uses.items()):
        if group is fresh:
            uses[key] = known
    return known


def _shared(node: ir.Node) -> list[_Shared]:
    if not is_control_flow(node):
        return []
    bodies = dict(bodies_of(node))
    if node.op_type == "If":
        branches = list(bodies.values())
        return [
            _Shared(None, [], [branch.outputs[k] for branch in branches], [result])
            for k, result in enumerate(node.outputs)
        ]
    if node.op_type == "Loop":
        return _carried(node, bodies["body"], first=2, offset=1, state=len(node.inputs) - 2)
    if node.op_type == "Scan":
        scanned = node.attributes["num_scan_inputs"].as_int()
        return _carried(node, bodies["body"], 0, 0, len(node.inputs) - scanned)
    return []


def _carried(node: ir.Node, body: ir.Graph, first: int, offset: int, state: int) -> list[_Shared]:
    """Loop and Scan: states, then (Scan) slices going in, then slices coming out.

    Args:
        node: the node.
        body: its body.
        first: index of the first state among the node's inputs and the body's inputs.
        offset: index of the first state among the body's outputs; the node's begin at 0.
        state: number of states.
    """
    found = []
    for k in range(len(node.inputs) - first):
        shared = _Shared(first + k, [body.inputs[first + k]])
        if k < state:
            shared.outputs = [body.outputs[offset + k]]
            shared.results = [node.outputs[k]]
        found.append(shared)
    for k in range(state, len(node.outputs)):
        found.append(_Shared(None, [], [body.outputs[offset + k]], [node.outputs[k]]))
    return found
