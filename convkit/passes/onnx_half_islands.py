"""Decides which nodes become half and which stay in fp32 islands, and says why.

A node stays in fp32 when its schema knows no half, when a value it makes or reads would overflow
or lose its meaning in half, or when the user says so. Then islands grow over what lies between
them: an operator that only moves fp32 elements to another island is not worth two casts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convkit.onnx_typing import bodies_of, nodes_of, opset_of
from convkit.passes.onnx_half_constants import Constant, Half, tensor_of
from convkit.passes.onnx_half_groups import Group, groups_of
from convkit.passes.onnx_half_insides import largest_inside
from convkit.passes.onnx_half_logarithms import small_before_logarithms
from convkit.passes.onnx_half_masks import MASK, Masks, find_masks
from convkit.passes.onnx_half_origins import ANGLE_OPERATORS, Origins, trace
from convkit.passes.onnx_half_transposes import WHY, stops_loading
from convkit.passes.onnx_half_types import (
    CARRIERS,
    GENERATORS,
    QUANTIZERS,
    Slots,
    is_control_flow,
    is_float,
    reads_elements,
    slots_of,
)
from convkit.quantization.value_range import Ranges

if TYPE_CHECKING:
    import onnx_ir as ir

_BOUNDS = {"Clip": (1, 2), "Max": range(64), "Min": range(64)}
"""Inputs where a constant beyond the range of half may be saturated."""

_BEFORE_ROOT = frozenset({"Sqrt", "Reciprocal", "Pow", "Log"})

_CHEAP = frozenset((
    "Abs", "Add", "Clip", "Div", "Erf", "Exp", "Log", "Max", "Mean", "Min", "Mul", "Neg", "Pow",
    "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Sigmoid",
    "Softmax", "Sqrt", "Sub", "Sum", "Tanh",
))  # fmt: skip
"""Operators an island may swallow: their fp32 cost is small beside two casts."""

_EXPONENTIAL = frozenset({"Exp", "Softmax", "LogSoftmax", "ReduceLogSumExp"})
"""Operators that exponentiate; beyond 512 (fp16), 64 (bf16) their argument is off by up to 1/4."""

_ANGLE_LIMIT = 8.0
"""Beyond 8 rad an fp16 angle is off by up to 2^-8, a bf16 one by 2^-5."""


@dataclass
class Plan:
    """What becomes half.

    Attributes:
        half_nodes: these compute in half; all others keep their types.
        reasons: node in an island -> why; "" where it only connects islands.
        flagged: value that must not be rounded to half -> why.
        slots: node -> what of it can be half.
        groups: (node, input index) or value -> the group of values that share a type.
        masks: constants that take a smaller mask.
        carried: graph output -> the graph input that takes it at the next call.
    """

    half: Half
    keep_io: bool
    carried: Mapping[ir.Value, ir.Value] = field(default_factory=dict)
    half_nodes: set[ir.Node] = field(default_factory=set)
    reasons: dict[ir.Node, str] = field(default_factory=dict)
    flagged: dict[ir.Value, str] = field(default_factory=dict)
    slots: dict[ir.Node, Slots] = field(default_factory=dict)
    groups: dict[ir.Value, Group] = field(default_factory=dict)
    group_uses: dict[tuple[ir.Node, int], Group] = field(default_factory=dict)
    masks: Masks = field(default_factory=Masks)

    def is_stored_half(self, value: ir.Value) -> bool:
        """Whether a float value that is no constant will be half."""
        if value in self.groups and self.groups[value].owns(value):
            return self.groups[value].is_half
        node = value.producer()
        if node is None:
            return value.is_graph_input() and not self.keep_io and value not in self.flagged
        index = value.index() or 0
        return node in self.half_nodes and self.slots[node].outputs[index]

    def wants_half(self, node: ir.Node, index: int) -> bool | None:
        """The type a node reads a float input in: half, fp32, or None where either serves."""
        import onnx_ir as ir

        if (node, index) in self.group_uses:
            return self.group_uses[node, index].is_half
        if node.op_type == "Cast":
            text = node.attributes["to"].as_int() == ir.DataType.STRING
            return False if text else None
        if not reads_elements(node):
            return None if self.slots[node].inputs[index] else False
        return node in self.half_nodes and self.slots[node].inputs[index]

    def output_wants_half(self, value: ir.Value, graph: ir.Graph, main: ir.Graph) -> bool | None:
        """The type in which a graph hands out one of its outputs."""
        if graph is main and value not in self.carried:
            return not self.keep_io and value not in self.flagged
        group = self.groups.get(value)
        return group.is_half if group is not None else False


def is_bound(node: ir.Node, index: int) -> bool:
    """Whether a constant at this input is a bound, which may be saturated."""
    return node.domain == "" and index in _BOUNDS.get(node.op_type, ())


def plan_islands(
    model: ir.Model,
    half: Half,
    constants: Mapping[ir.Value, Constant],
    ranges: Ranges,
    *,
    keep_io: bool,
    headroom: float,
    keep: Iterable[str],
    carried: Mapping[ir.Value, ir.Value],
) -> Plan:
    """The plan for a typed model.

    Args:
        model: see `load_typed`.
        half: the target.
        constants: every float constant (see `examine`).
        ranges: measured on samples; may be empty.
        keep_io: graph inputs and outputs keep their types, except what is `carried`.
        headroom: values above the largest half number divided by this stay in fp32.
        keep: names of nodes or operators that stay in fp32.
        carried: graph output -> the graph input that takes it at the next call.
    """
    origins = trace(model.graph)
    plan = Plan(half, keep_io, carried)
    plan.groups, plan.group_uses = groups_of(model.graph, carried)
    plan.masks = find_masks(constants, ranges, origins.whole)
    if half.largest > -MASK * 1e3:  # bf16 holds every mask as it is
        plan.masks.constants.clear()
    judge = _Judge(plan, model, constants, ranges, origins, half.largest / headroom, set(keep))
    judge.flag_values()
    judge.flag_small_constants()
    judge.choose_nodes()
    _connect(plan, model)
    return plan


class _Judge:
    def __init__(
        self,
        plan: Plan,
        model: ir.Model,
        constants: Mapping[ir.Value, Constant],
        ranges: Ranges,
        origins: Origins,
        limit: float,
        keep: set[str],
    ) -> None:
        self._plan = plan
        self._model = model
        self._constants = constants
        self._ranges = ranges
        self._origins = origins
        self._limit = limit
        self._keep = keep
        self._nodes = list(nodes_of(model.graph))

    def flag_values(self) -> None:
        """Marks values that half would overflow, or whose whole numbers it would lose."""
        flagged = self._plan.flagged
        inputs = [value for value in self._model.graph.inputs if is_float(value)]
        made = [v for n in self._nodes for v in n.outputs if is_float(v) and tensor_of(v) is None]
        for value in (*inputs, *made):
            why = self._too_large(value) or self._uncountable(value)
            if why:
                flagged[value] = why
        flagged |= small_before_logarithms(self._nodes, self._ranges, self._plan.half)
        for node in self._nodes:
            if node.op_type in _EXPONENTIAL and is_float(node.inputs[0]):
                self._flag_exponent(node.inputs[0])
            if node.op_type in ANGLE_OPERATORS and is_float(node.inputs[0]):
                self._flag_angle(node.inputs[0])
            self._carry_fault(node)
        for group in {id(g): g for g in self._plan.groups.values()}.values():
            if group.is_fixed or any(self._is_unfit(member) for member in group.members):
                group.is_half = False

    def _is_unfit(self, value: ir.Value) -> bool:
        facts = self._constants.get(value)
        return value in self._plan.flagged or (facts is not None and bool(facts.fault))

    def _too_large(self, value: ir.Value) -> str:
        found = self._ranges.get(value.name or "")
        if found is None:
            return ""
        absmax = found.high if value in self._plan.masks.touched else found.absmax
        return f"|x| up to {absmax:.4g}" if absmax > self._limit else ""

    def _uncountable(self, value: ir.Value) -> str:
        found = self._ranges.get(value.name or "")
        exact = self._plan.half.exact_integer
        if value not in self._origins.whole or value in self._plan.masks.touched or found is None:
            return ""
        return f"whole numbers up to {found.absmax:.4g}" if found.absmax > exact else ""

    def _flag_exponent(self, value: ir.Value | None) -> None:
        """An exponent off by 1/4 is a result off by 28 %."""
        found = self._ranges.get(value.name or "") if value is not None else None
        if value is None or found is None:
            return
        absmax = found.high if value in self._plan.masks.touched else found.absmax
        if absmax > self._plan.half.exact_integer / 4:
            self._plan.flagged.setdefault(value, f"exponents up to {absmax:.4g}")

    def _flag_angle(self, value: ir.Value | None) -> None:
        """Angles from positions, or large ones, keep fp32 back to where they come from."""
        found = self._ranges.get(value.name or "") if value is not None else None
        if value is None or not (
            value in self._origins.positions or (found and found.absmax > _ANGLE_LIMIT)
        ):
            return
        waiting = [value]
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if value in self._plan.flagged and value.producer() is None:
                continue
            self._plan.flagged.setdefault(value, "an angle")
            moves = node is not None and (
                value in self._origins.positions or node.op_type in CARRIERS
            )
            if node is not None and moves:
                waiting += [
                    v
                    for v in node.inputs
                    if v is not None
                    and is_float(v)
                    and v not in self._plan.flagged
                    and tensor_of(v) is None
                    and v.producer() is not None
                ]

    def _carry_fault(self, node: ir.Node) -> None:
        """An operator that only moves elements hands on what half cannot hold."""
        if node.op_type not in CARRIERS:
            return
        for value in node.inputs:
            facts = self._constants.get(value) if value is not None else None
            fault = facts.fault if facts and value not in self._plan.masks.constants else ""
            for output in node.outputs if fault else ():
                if is_float(output) and (output.name or "") not in self._ranges:
                    self._plan.flagged.setdefault(output, fault)

    def flag_small_constants(self) -> None:
        """An epsilon below half's range protects a root or a quotient: that stays in fp32 too."""
        for value, facts in self._constants.items():
            if facts.is_too_small:
                for node, _ in value.uses():
                    self._flag_until_root(node, facts.fault)

    def _flag_until_root(self, node: ir.Node, why: str) -> None:
        for output in node.outputs:
            users = [use.node for use in output.uses()]
            divides = any(u.op_type == "Div" and u.inputs[1] is output for u in users)
            roots = [user for user in users if user.op_type in _BEFORE_ROOT]
            if is_float(output) and (roots or divides) and output not in self._plan.flagged:
                self._plan.flagged[output] = why
                for user in roots:
                    self._flag_until_root(user, why)

    def choose_nodes(self) -> None:
        """Fills half_nodes and reasons."""
        plan = self._plan
        frozen = _inside_foreign_bodies(self._model.graph)
        for node in self._nodes:
            if is_control_flow(node) or tensor_of(node.outputs[0]) is not None:
                continue
            floats = any(map(is_float, (*node.inputs, *node.outputs)))
            slots = slots_of(node, opset_of(self._model, node.domain), plan.half.dtype)
            plan.slots[node] = slots
            why = self._why_fp32(node, slots) if node not in frozen else "inside a foreign body"
            if floats and why:
                plan.reasons[node] = why
            elif floats:
                plan.half_nodes.add(node)

    def _why_fp32(self, node: ir.Node, slots: Slots) -> str:
        if node.op_type in GENERATORS and any(map(is_float, node.outputs)):
            return f"{node.op_type} has no {self._plan.half.name} in ONNX Runtime"
        if node.op_type in QUANTIZERS:
            return f"scales of {node.op_type} are not rounded"
        if not slots.is_possible:
            return f"{node.op_type} has no {self._plan.half.name}"
        if self._keep & {node.name or "", node.op_type}:
            return "kept on request"
        if any(value in self._origins.sizes and is_float(value) for value in node.outputs):
            return "computes with sizes"
        if stops_loading(node):
            return WHY
        why = self._why_values(node) or self._why_constants(node, slots)
        inside = largest_inside(node, self._ranges)
        return why or (f"|x| up to {inside:.4g} inside" if inside > self._limit else "")

    def _why_values(self, node: ir.Node) -> str:
        if not reads_elements(node):
            return ""
        flagged = self._plan.flagged
        if node.op_type == "Cast":  # reads either type
            return next((flagged[v] for v in node.outputs if v in flagged), "")
        for value in (*node.outputs, *node.inputs):
            if value is not None and value in flagged:
                why = flagged[value]
                return why if why.endswith("'") else f"{why} in '{value.name}'"
        return ""

    def _why_constants(self, node: ir.Node, slots: Slots) -> str:
        for index, value in enumerate(node.inputs):
            facts = self._constants.get(value) if value is not None else None
            if facts is None or not facts.fault or not slots.inputs[index]:
                continue
            assert value is not None
            saturates = is_bound(node, index) and not facts.is_too_small
            if not saturates and value not in self._plan.masks.constants:
                return f"{facts.fault} in '{value.name}'"
        return ""


def _inside_foreign_bodies(graph: ir.Graph) -> set[ir.Node]:
    """Nodes in bodies of operators other than If, Loop and Scan; their types are not ours."""
    found: set[ir.Node] = set()
    for node in nodes_of(graph):
        if not is_control_flow(node):
            for _, body in bodies_of(node):
                found.update(nodes_of(body))
    return found


def _connect(plan: Plan, model: ir.Model) -> None:
    """Lets islands grow over what lies between them, until nothing changes."""
    nodes = [node for node in nodes_of(model.graph) if node in plan.half_nodes]
    changed = True
    while changed:
        changed = False
        for node in (*reversed(nodes), *nodes):
            if node in plan.half_nodes and _connects(node, plan, model):
                plan.half_nodes.discard(node)
                plan.reasons[node] = ""
                changed = True


def _connects(node: ir.Node, plan: Plan, model: ir.Model) -> bool:
    sources = [v for v in node.inputs if v is not None and is_float(v) and tensor_of(v) is None]
    if any(plan.is_stored_half(value) for value in sources):
        return False
    wanted = [
        plan.wants_half(use.node, use.idx) for v in node.outputs if is_float(v) for use in v.uses()
    ]
    handed_out = [v for v in node.outputs if is_float(v) and v.is_graph_output()]
    if node.op_type in CARRIERS:
        wanted += [plan.output_wants_half(v, _owner(v), model.graph) for v in handed_out]
        is_moving = bool(sources) or node.op_type == "Cast"
        return is_moving and False in wanted
    made = [value.producer() for value in sources]
    between = bool(made) and all(producer in plan.reasons for producer in made)
    is_cheap = node.op_type in _CHEAP and not handed_out and bool(wanted)
    return between and is_cheap and all(want is False for want in wanted)


def _owner(value: ir.Value) -> ir.Graph:
    graph = value.graph
    assert graph is not None
    return graph
