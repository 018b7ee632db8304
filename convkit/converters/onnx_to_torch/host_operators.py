"""ONNX operators on numbers that Python knows."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch import host as h
from convkit.converters.onnx_to_torch.host import Host, Number
from convkit.converters.onnx_to_torch.scope import Scope, Variable, rank_of

if TYPE_CHECKING:
    import onnx_ir as ir

_COUNT_LIMIT = 256
"""Longest list that is written out."""

Inputs = Sequence[Host | None]
Compute = Callable[["ir.Node", Inputs], Host | None]


def emit_host(scope: Scope, node: ir.Node) -> bool:
    """Makes the output of `node` a host value where all its inputs are, or it asks for a shape."""
    if node.domain != "" or len(node.outputs) != 1:
        return False
    made: Host | None
    if node.op_type in ("Shape", "Size"):
        made = _shape(scope, node)
    elif _unranked(scope, node) is not None:
        made = _one_size(scope, node)
    else:
        compute = _OPERATORS.get(node.op_type)
        if compute is None or not node.inputs:
            return False
        inputs = [scope.host(value) for value in node.inputs]
        pairs = zip(inputs, node.inputs, strict=True)
        if any(known is None and value is not None for known, value in pairs):
            return False
        made = compute(node, inputs)
    if made is None or len(made.numbers) > _COUNT_LIMIT:
        return False
    scope.bind(node.outputs[0], made)
    return True


def _attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _shape(scope: Scope, node: ir.Node) -> Host | None:
    import onnx_ir as ir

    value = node.inputs[0]
    assert value is not None
    bound = scope.bound(value)
    if isinstance(bound, Host):
        count = h.constant(len(bound.numbers))
        if node.op_type == "Shape":
            return Host((count,) if bound.is_list else (), True, ir.DataType.INT64)
        return Host((count,), False, ir.DataType.INT64)
    source = _unranked(scope, value.producer())
    if source is not None:
        count = h.Number(f"{source}.dim()", reads=frozenset({source}), is_natural=True)
        return Host((count,), node.op_type == "Shape", ir.DataType.INT64)
    rank = len(bound.shape) if not isinstance(bound, Variable) else rank_of(value)
    if rank is None:
        return None
    sizes = [scope.size(value, axis) for axis in range(rank)]
    if node.op_type == "Size":
        return Host((h.total(sizes, h.multiplied, 1),), False, ir.DataType.INT64)
    start, end = _attribute(node, "start", 0), _attribute(node, "end")
    return Host(tuple(sizes[start:end]), True, ir.DataType.INT64)


def _unranked(scope: Scope, node: ir.Node | None) -> str | None:
    """The tensor of unknown rank whose whole shape a node asks for, or gathers from."""
    if node is not None and node.op_type == "Gather" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Shape" or node.inputs[0] is None:
        return None
    if rank_of(node.inputs[0]) is not None or {"start", "end"} & set(node.attributes):
        return None
    bound = scope.bound(node.inputs[0])
    return bound.code if isinstance(bound, Variable) else None


def _one_size(scope: Scope, node: ir.Node) -> Host | None:
    """Dimensions picked from the shape of a tensor whose rank is not known."""
    import onnx_ir as ir

    source, picked = _unranked(scope, node), scope.host(node.inputs[1])
    if source is None or picked is None or not picked.is_constant:
        return None
    sizes = tuple(h.size(source, int(axis)) for axis in picked.values)
    return Host(sizes, picked.is_list, ir.DataType.INT64)


def _is_integer(host: Host) -> bool:
    return str(host.dtype.name).startswith(("INT", "UINT"))


def _elementwise(step: Callable[..., Number | None], dtype: Any = None) -> Compute:
    """An operator on each number; lists of one number are repeated."""

    def compute(node: ir.Node, inputs: Inputs) -> Host | None:
        known = [host for host in inputs if host is not None]
        count = max(len(host.numbers) for host in known)
        if any(len(host.numbers) not in (1, count) for host in known):
            return None
        if any(len(host.numbers) == 0 for host in known):
            count = 0
        columns = [h_.numbers * count if len(h_.numbers) == 1 else h_.numbers for h_ in known]
        made = [step(node, known, *row) for row in zip(*columns, strict=True)] if count else []
        if any(number is None for number in made):
            return None
        kind = dtype or known[-1].dtype
        is_list = any(host.is_list for host in known)
        return Host(tuple(n for n in made if n is not None), is_list, kind)

    return compute


def _two(step: Callable[[Number, Number], Number]) -> Compute:
    return _elementwise(lambda node, known, a, b: step(a, b))


def _bool() -> Any:
    import onnx_ir as ir

    return ir.DataType.BOOL


def _comparison(sign: str, compute: Callable[[Any, Any], bool]) -> Compute:
    def run(node: ir.Node, inputs: Inputs) -> Host | None:
        step = _elementwise(lambda n, k, a, b: h.compared(a, sign, b, compute), _bool())
        return step(node, inputs)

    return run


def _one(function: str, compute: Callable[[Any], Any], keeps: bool = False) -> Compute:
    """A function of one float whose result stays a float of the same type."""

    def step(node: ir.Node, known: list[Host], a: Number) -> Number:
        made = h.called(function, compute, [a], a.is_natural)
        if made.value is not None and not _is_integer(known[0]):
            return h.constant(float(made.value))
        return made

    return _elementwise(step)


def _div(node: ir.Node, known: list[Host], a: Number, b: Number) -> Number | None:
    return h.divided(a, b, _is_integer(known[0]))


def _mod(node: ir.Node, known: list[Host], a: Number, b: Number) -> Number | None:
    is_plain = _is_integer(known[0]) and not _attribute(node, "fmod", 0)
    return h.modulo(a, b) if is_plain else None


def _not(node: ir.Node, known: list[Host], a: Number) -> Number:
    if a.value is not None:
        return h.constant(not a.value)
    return h.computed(f"not {a.within(h.SUM)}", (a,), h.OTHER)


def _and(node: ir.Node, known: list[Host], a: Number, b: Number) -> Number:
    for one, other in ((a, b), (b, a)):
        if one.value is not None:
            return other if one.value else one
    return h.computed(f"{a.within(h.SUM)} and {b.within(h.SUM)}", (a, b), h.OTHER)


def _or(node: ir.Node, known: list[Host], a: Number, b: Number) -> Number:
    for one, other in ((a, b), (b, a)):
        if one.value is not None:
            return one if one.value else other
    return h.computed(f"{a.within(h.SUM)} or {b.within(h.SUM)}", (a, b), h.OTHER)


def _where(node: ir.Node, inputs: Inputs) -> Host | None:
    step = _elementwise(lambda n, k, condition, a, b: h.chosen(condition, a, b))
    return step(node, inputs)


def _cast(node: ir.Node, inputs: Inputs) -> Host | None:
    import onnx_ir as ir

    host = inputs[0]
    target = ir.DataType(_attribute(node, "to"))
    if host is None or target.name not in ("INT64", "INT32", "FLOAT", "DOUBLE", "BOOL"):
        return None
    made = [_cast_one(number, host, target) for number in host.numbers]
    if any(number is None for number in made):
        return None
    return Host(tuple(n for n in made if n is not None), host.is_list, target)


def _cast_one(number: Number, host: Host, target: Any) -> Number | None:
    if target.name == "BOOL":
        if number.value is not None:
            return h.constant(bool(number.value))
        return h.compared(number, "!=", h.constant(0), operator.ne)
    if target.name in ("FLOAT", "DOUBLE"):
        if number.value is not None:
            return h.constant(float(number.value))
        if host.dtype.name == "BOOL":
            return h.chosen(number, h.constant(1.0), h.constant(0.0))
        return h.multiplied(number, h.constant(1.0)) if _is_integer(host) else number
    if number.value is not None:
        return h.constant(int(number.value)) if math.isfinite(number.value) else None
    if host.dtype.name == "BOOL":
        return h.chosen(number, h.constant(1), h.constant(0))
    return _truncated(number) if not _is_integer(host) else number


def _truncated(number: Number) -> Number:
    """A float cut towards zero; after floor or ceil, and for exact sizes, nothing is cut."""
    text = number.code
    if text.startswith(("math.floor(", "math.ceil(")) and text.endswith(")"):
        return number
    if text.endswith(" * 1.0") and " " not in text.removesuffix(" * 1.0"):
        return h.computed(text.removesuffix(" * 1.0"), (number,), h.ATOM, number.is_natural)
    name = "math.floor" if number.is_natural else "math.trunc"
    return h.computed(f"{name}({text})", (number,), h.ATOM, number.is_natural)


def _identity(node: ir.Node, inputs: Inputs) -> Host | None:
    return inputs[0]


def _gather(node: ir.Node, inputs: Inputs) -> Host | None:
    data, indices = inputs[0], inputs[1]
    if data is None or indices is None or not data.is_list or not indices.is_constant:
        return None
    count = len(data.numbers)
    picked = [int(i) for i in indices.values]
    if any(not -count <= i < count for i in picked):
        return None
    return Host(tuple(data.numbers[i] for i in picked), indices.is_list, data.dtype)


def _slice(node: ir.Node, inputs: Inputs) -> Host | None:
    data, *bounds = [*inputs, None, None, None][:5]
    if data is None or any(b is not None and not b.is_constant for b in bounds):
        return None
    start, end, axis, step = ([int(v) for v in b.values] if b else None for b in bounds)
    if start is None or end is None or len(start) != 1 or axis not in (None, [0], [-1]):
        return None
    every = step[0] if step else 1
    stop: int | None = end[0]
    if every < 0 and stop is not None and stop < -len(data.numbers):
        stop = None
    return Host(data.numbers[start[0] : stop : every], True, data.dtype)


def _concat(node: ir.Node, inputs: Inputs) -> Host | None:
    known = [host for host in inputs if host is not None]
    if any(not host.is_list for host in known):
        return None
    return Host(tuple(n for host in known for n in host.numbers), True, known[0].dtype)


def _squeeze(node: ir.Node, inputs: Inputs) -> Host | None:
    data = inputs[0]
    if data is None or not data.is_list or len(data.numbers) != 1:
        return None
    return Host(data.numbers, False, data.dtype)


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Host | None:
    data = inputs[0]
    if data is None or data.is_list or len(inputs) < 2 or inputs[1] is None:
        return None
    return Host(data.numbers, True, data.dtype) if len(inputs[1].numbers) == 1 else None


def _reshape(node: ir.Node, inputs: Inputs) -> Host | None:
    data, shape = inputs[0], inputs[1]
    if data is None or shape is None or len(shape.numbers) > 1:
        return None
    if not shape.numbers:
        return Host(data.numbers, False, data.dtype) if len(data.numbers) == 1 else None
    return Host(data.numbers, True, data.dtype) if data.numbers else None


def _reduction(step: Callable[[Number, Number], Number] | None, first: int) -> Compute:
    def compute(node: ir.Node, inputs: Inputs) -> Host | None:
        data = inputs[0]
        if data is None or not data.is_list or not data.numbers:
            return None
        if step is None:
            made = _extreme_of(node.op_type == "ReduceMax", data.numbers)
        else:
            made = h.total(data.numbers, step, first)
        return Host((made,), bool(_attribute(node, "keepdims", 1)), data.dtype)

    return compute


def _extreme_of(is_max: bool, numbers: Sequence[Number]) -> Number:
    """The largest or smallest; `torch.sym_max` compares sizes without fixing them."""
    result = numbers[0]
    for number in numbers[1:]:
        natural = (result.is_natural, number.is_natural)
        result = h.called(
            "torch.sym_max" if is_max else "torch.sym_min",
            max if is_max else min,
            [result, number],
            any(natural) if is_max else all(natural),
        )
    return result


def _extreme(is_max: bool) -> Compute:
    return _elementwise(lambda node, known, *numbers: _extreme_of(is_max, numbers))


def _range(node: ir.Node, inputs: Inputs) -> Host | None:
    known = [host for host in inputs if host is not None]
    if len(known) != 3 or any(not host.is_constant or not _is_integer(host) for host in known):
        return None
    start, limit, delta = (int(host.values[0]) for host in known)
    numbers = range(start, limit, delta)
    if len(numbers) > _COUNT_LIMIT:
        return None
    return Host(tuple(h.constant(n) for n in numbers), True, known[0].dtype)


def _power(node: ir.Node, known: list[Host], a: Number, b: Number) -> Number | None:
    if a.value is not None and b.value is not None:
        return h.constant(type(a.value)(a.value**b.value))
    if b.value == 0.5:
        return h.computed(f"{a.within(h.ATOM)} ** 0.5", (a,), h.OTHER, a.is_natural)
    return None


def _sqrt(node: ir.Node, known: list[Host], a: Number) -> Number:
    if a.value is not None:
        return h.constant(math.sqrt(a.value))
    return h.computed(f"{a.within(h.ATOM)} ** 0.5", (a,), h.OTHER, a.is_natural)


_OPERATORS: dict[str, Compute] = {
    "Add": _two(h.added),
    "Sub": _two(h.subtracted),
    "Mul": _two(h.multiplied),
    "Div": _elementwise(_div),
    "Mod": _elementwise(_mod),
    "Neg": _elementwise(lambda node, known, a: h.negated(a)),
    "Abs": _one("abs", abs),
    "Floor": _one("math.floor", math.floor),
    "Ceil": _one("math.ceil", math.ceil),
    "Sqrt": _elementwise(_sqrt),
    "Pow": _elementwise(_power),
    "Min": _extreme(False),
    "Max": _extreme(True),
    "Not": _elementwise(_not),
    "And": _elementwise(_and),
    "Or": _elementwise(_or),
    "Equal": _comparison("==", operator.eq),
    "Less": _comparison("<", operator.lt),
    "LessOrEqual": _comparison("<=", operator.le),
    "Greater": _comparison(">", operator.gt),
    "GreaterOrEqual": _comparison(">=", operator.ge),
    "Where": _where,
    "Cast": _cast,
    "Identity": _identity,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "ReduceProd": _reduction(h.multiplied, 1),
    "ReduceSum": _reduction(h.added, 0),
    "ReduceMax": _reduction(None, 0),
    "ReduceMin": _reduction(None, 0),
    "Range": _range,
}
