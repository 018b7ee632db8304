"""Operators written as one would write them by hand: `a + b`, `torch.relu(x)`, `x[:, 1:]`.

Only for dtypes and attributes for which PyTorch's operator means the same; the rest calls the
library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch.host import ATOM, Number
from convkit.converters.onnx_to_torch.scope import Scope, Variable, rank_of

if TYPE_CHECKING:
    import onnx_ir as ir

_FLOATS = frozenset(("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"))
_INTEGERS = frozenset(("INT64", "INT32", "INT16", "INT8", "UINT8"))
_PLAIN = _FLOATS | _INTEGERS | {"BOOL"}
_OPEN_END = 2**31 - 1

Emit = Callable[[Scope, "ir.Node"], str | None]


def emit_natural(scope: Scope, node: ir.Node) -> bool:
    """Writes a node as plain PyTorch, if it can be."""
    write = _OPERATORS.get(node.op_type) if node.domain == "" else None
    code = write(scope, node) if write is not None and len(node.outputs) == 1 else None
    if code is None:
        return False
    scope.assign(node, code)
    return True


def _attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _type(value: ir.Value | None) -> str:
    return value.dtype.name if value is not None and value.dtype is not None else ""


def _is_run_time(scope: Scope, value: ir.Value | None) -> bool:
    return value is not None and isinstance(scope.bound(value), Variable)


def _number(scope: Scope, value: ir.Value, other: ir.Value) -> Number | None:
    """A value as one Python number beside a tensor whose rank it does not raise."""
    host = scope.host(value)
    if host is None or len(host.numbers) != 1:
        return None
    if host.is_list and not rank_of(other):
        return None
    return host.numbers[0]


def _operand(scope: Scope, value: ir.Value, other: ir.Value) -> str:
    """A tensor expression, or a number beside a run-time tensor of the same type."""
    number = _number(scope, value, other) if _is_run_time(scope, other) else None
    return scope.tensor(value) if number is None else number.within(ATOM)


def _binary(sign: str, types: frozenset[str]) -> Emit:
    def write(scope: Scope, node: ir.Node) -> str | None:
        a, b = node.inputs
        if a is None or b is None or _type(a) not in types:
            return None
        left, right = _operand(scope, a, b), _operand(scope, b, a)
        return f"{left} {sign} {right}"

    return write


def _function(name: str, types: frozenset[str] = _FLOATS) -> Emit:
    def write(scope: Scope, node: ir.Node) -> str | None:
        return f"{name}({scope.tensor(node.inputs[0])})" if _type(node.inputs[0]) in types else None

    return write


def _neg(scope: Scope, node: ir.Node) -> str | None:
    signed = _FLOATS | (_INTEGERS - {"UINT8"})
    return f"-{scope.tensor(node.inputs[0])}" if _type(node.inputs[0]) in signed else None


def _not(scope: Scope, node: ir.Node) -> str | None:
    return f"~{scope.tensor(node.inputs[0])}"


def _pow(scope: Scope, node: ir.Node) -> str | None:
    base, exponent = node.inputs
    if base is None or exponent is None or _type(base) not in _FLOATS:
        return None
    number = _number(scope, exponent, base)
    if number is None:
        return None
    if isinstance(number.value, float) and number.value.is_integer():
        return f"{scope.tensor(base)} ** {int(number.value)}"
    return f"{scope.tensor(base)} ** {number.within(2)}"


def _softmax(name: str) -> Emit:
    def write(scope: Scope, node: ir.Node) -> str | None:
        if _type(node.inputs[0]) not in _FLOATS:
            return None
        axis = _attribute(node, "axis", -1)
        return f"{name}({scope.tensor(node.inputs[0])}, dim={axis})"

    return write


def _matmul(scope: Scope, node: ir.Node) -> str | None:
    a, b = node.inputs
    if _type(a) not in _FLOATS:
        return None
    return f"{scope.tensor(a)} @ {scope.tensor(b)}"


def _transpose(scope: Scope, node: ir.Node) -> str | None:
    rank = rank_of(node.inputs[0])
    order = _attribute(node, "perm") or (list(range(rank))[::-1] if rank else None)
    if not order or _type(node.inputs[0]) not in _PLAIN:
        return None
    return f"{scope.tensor(node.inputs[0])}.permute({', '.join(map(str, order))})"


def _reshape(scope: Scope, node: ir.Node) -> str | None:
    data, shape = node.inputs[0], scope.host(node.inputs[1])
    if data is None or shape is None or not _is_run_time(scope, data):
        return None
    variable, copies = scope.tensor(data), not _attribute(node, "allowzero", 0)
    rank = rank_of(data)
    sizes = []
    for axis, number in enumerate(shape.numbers):
        if copies and number.value == 0:
            if rank is None or axis >= rank:
                return None
            sizes.append(scope.size(data, axis).code)
        else:
            sizes.append(number.code)
    return f"{variable}.reshape({', '.join(sizes) or '()'})"


def _flatten(scope: Scope, node: ir.Node) -> str | None:
    data, rank = node.inputs[0], rank_of(node.inputs[0])
    axis = _attribute(node, "axis", 1)
    if data is None or not rank or rank < 2:
        return None
    axis = axis + rank if axis < 0 else axis
    return f"{scope.tensor(data)}.flatten(1)" if axis == 1 else None


def _unsqueeze(scope: Scope, node: ir.Node) -> str | None:
    axes, rank = scope.host(node.inputs[1]), rank_of(node.inputs[0])
    if axes is None or not axes.is_constant or rank is None:
        return None
    whole = rank + len(axes.numbers)
    places = sorted(int(a) % whole for a in axes.values)
    if len(set(places)) != len(places):
        return None
    return scope.tensor(node.inputs[0]) + "".join(f".unsqueeze({place})" for place in places)


def _squeeze(scope: Scope, node: ir.Node) -> str | None:
    axes = scope.host(node.inputs[1]) if len(node.inputs) > 1 else None
    rank = rank_of(node.inputs[0])
    if axes is None or not axes.is_constant or rank is None:
        return None
    places = sorted({int(a) % rank for a in axes.values})
    text = str(places[0]) if len(places) == 1 else f"({', '.join(map(str, places))})"
    return f"{scope.tensor(node.inputs[0])}.squeeze({text})" if places else None


def _concat(scope: Scope, node: ir.Node) -> str | None:
    if _type(node.inputs[0]) not in _PLAIN or any(v is None for v in node.inputs):
        return None
    parts = ", ".join(scope.tensor(value) for value in node.inputs)
    return f"torch.cat([{parts}], dim={_attribute(node, 'axis')})"


def _gather(scope: Scope, node: ir.Node) -> str | None:
    data, indices = node.inputs[0], scope.host(node.inputs[1])
    if data is None or indices is None or indices.is_list or not indices.is_constant:
        return None
    if _type(data) not in _PLAIN:
        return None
    axis, index = _attribute(node, "axis", 0), indices.values[0]
    if axis >= 0:
        return f"{scope.tensor(data)}[{':, ' * axis}{index}]"
    return f"{scope.tensor(data)}.select({axis}, {index})"


def _slice(scope: Scope, node: ir.Node) -> str | None:
    data, rank = node.inputs[0], rank_of(node.inputs[0])
    given = [scope.host(value) for value in node.inputs[1:]]
    if data is None or rank is None or _type(data) not in _PLAIN:
        return None
    if any(h is None and v is not None for h, v in zip(given, node.inputs[1:], strict=True)):
        return None
    starts, ends, axes, steps = [*given, None, None][:4]
    if starts is None or ends is None:
        return None
    places = [int(a) % rank for a in axes.values] if axes else list(range(len(starts.numbers)))
    every = [int(s) for s in steps.values] if steps else [1] * len(places)
    if any(step < 1 for step in every) or len(set(places)) != len(places):
        return None
    if axes is not None and not axes.is_constant:
        return None
    cuts = dict(zip(places, map(_cut, starts.numbers, ends.numbers, every), strict=True))
    text = ", ".join(cuts.get(axis, ":") for axis in range(max(places, default=-1) + 1))
    return f"{scope.tensor(data)}[{text}]" if text else scope.tensor(data)


def _cut(start: Number, end: Number, step: int) -> str:
    first = "" if start.value == 0 else start.code
    is_open = end.value is not None and end.value >= _OPEN_END
    last = "" if is_open else end.code
    return f"{first}:{last}" + (f":{step}" if step != 1 else "")


def _cast(scope: Scope, node: ir.Node) -> str | None:
    import onnx_ir as ir

    from convkit.converters.onnx_to_torch.dtypes import dtype_name

    source, target = _type(node.inputs[0]), ir.DataType(_attribute(node, "to"))
    is_wide = target.name in _FLOATS | {"INT64", "INT32"}
    if source not in _PLAIN or not (is_wide or target.name == "BOOL"):
        return None
    return f"{scope.tensor(node.inputs[0])}.to(torch.{dtype_name(target)})"


def _where(scope: Scope, node: ir.Node) -> str | None:
    condition, a, b = node.inputs
    if condition is None or a is None or b is None or _type(a) not in _PLAIN:
        return None
    left, right = scope.tensor(a), scope.tensor(b)
    return f"torch.where({scope.tensor(condition)}, {left}, {right})"


def _mean(scope: Scope, node: ir.Node) -> str | None:
    axes = scope.host(node.inputs[1]) if len(node.inputs) > 1 else None
    if (
        axes is None
        or not axes.is_constant
        or not axes.numbers
        or _type(node.inputs[0]) not in _FLOATS
    ):
        return None
    keep = ", keepdim=True" if _attribute(node, "keepdims", 1) else ""
    places = ", ".join(map(str, axes.values))
    places = f"({places})" if len(axes.numbers) > 1 else places
    name = "mean" if node.op_type == "ReduceMean" else "sum"
    return f"{scope.tensor(node.inputs[0])}.{name}({places}{keep})"


_SUMMABLE = _FLOATS | {"INT64", "INT32"}

_OPERATORS: dict[str, Emit] = {
    "Add": _binary("+", _FLOATS | _INTEGERS),
    "Sub": _binary("-", _FLOATS | _INTEGERS),
    "Mul": _binary("*", _FLOATS | _INTEGERS),
    "Div": _binary("/", _FLOATS),
    "Equal": _binary("==", _PLAIN),
    "Less": _binary("<", _FLOATS | _INTEGERS),
    "LessOrEqual": _binary("<=", _FLOATS | _INTEGERS),
    "Greater": _binary(">", _FLOATS | _INTEGERS),
    "GreaterOrEqual": _binary(">=", _FLOATS | _INTEGERS),
    "And": _binary("&", frozenset(("BOOL",))),
    "Or": _binary("|", frozenset(("BOOL",))),
    "Not": _not,
    "Neg": _neg,
    "Abs": _function("torch.abs", _FLOATS | (_INTEGERS - {"UINT8"})),
    "Exp": _function("torch.exp"),
    "Log": _function("torch.log"),
    "Sqrt": _function("torch.sqrt"),
    "Erf": _function("torch.erf"),
    "Floor": _function("torch.floor"),
    "Ceil": _function("torch.ceil"),
    "Sin": _function("torch.sin"),
    "Cos": _function("torch.cos"),
    "Tanh": _function("torch.tanh"),
    "Sigmoid": _function("torch.sigmoid"),
    "Relu": _function("torch.relu"),
    "HardSwish": _function("nn.functional.hardswish", frozenset(("FLOAT", "DOUBLE"))),
    "Pow": _pow,
    "Softmax": _softmax("torch.softmax"),
    "LogSoftmax": _softmax("torch.log_softmax"),
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Cast": _cast,
    "Where": _where,
    "ReduceMean": _mean,
}
