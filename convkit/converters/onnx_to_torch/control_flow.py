"""If, Loop, Scan and SequenceMap: their bodies become methods of the module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch import control
from convkit.converters.onnx_to_torch.dtypes import carrier_name
from convkit.converters.onnx_to_torch.host import Host, Number
from convkit.converters.onnx_to_torch.releasing import with_releases
from convkit.converters.onnx_to_torch.scope import Scope, is_used
from convkit.converters.onnx_to_torch.trip_count import constant_states, only_counts

if TYPE_CHECKING:
    import onnx_ir as ir

EmitNodes = Callable[[Scope, "ir.Graph"], None]


def emit_control(scope: Scope, node: ir.Node, emit_nodes: EmitNodes) -> bool:
    """Writes a node that holds graphs."""
    write = _CONTROL.get(node.op_type) if node.domain == "" else None
    if write is None:
        return False
    write(scope, node, emit_nodes)
    return True


def _attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value


def _if(scope: Scope, node: ir.Node, emit_nodes: EmitNodes) -> None:
    condition = scope.host(node.inputs[0])
    if condition is not None and condition.is_constant:
        body = _attribute(node, "then_branch" if condition.values[0] else "else_branch")
        _inline(scope, node, body, emit_nodes)
        return
    is_known = condition is not None and len(condition.numbers) == 1
    test = condition.numbers[0].code if is_known and condition else scope.tensor(node.inputs[0])
    bodies = [_attribute(node, name) for name in ("then_branch", "else_branch")]
    scopes = [
        _body(scope, node, body, emit_nodes, name)
        for body, name in zip(bodies, ("then", "else"), strict=True)
    ]
    captured = list(dict.fromkeys([*scopes[0].captured, *scopes[1].captured]))
    methods = [
        _method(scope, each, node, body, name, captured)
        for each, body, name in zip(scopes, bodies, ("then", "else"), strict=True)
    ]
    operands = _tuple(captured)
    call = scope.context.function(control.branch)
    _assign(scope, node, f"{call}({test}, {methods[0]}, {methods[1]}, {operands})")


def _inline(scope: Scope, node: ir.Node, body: ir.Graph, emit_nodes: EmitNodes) -> None:
    """A branch that is always taken becomes part of the function around it."""
    scope.add_initializers(body)
    emit_nodes(scope, body)
    for outer, inner in zip(node.outputs, body.outputs, strict=True):
        scope.bind(outer, scope.bound(inner))


def _body(scope: Scope, node: ir.Node, body: ir.Graph, emit_nodes: EmitNodes, name: str) -> Scope:
    """The statements of a branch; what it captures is known then."""
    inner = Scope(scope.context, scope.names, scope)
    inner.add_initializers(body)
    emit_nodes(inner, body)
    results = [inner.tensor(value) for value in body.outputs]
    inner.statement(f"return {_tuple(results)}")
    return inner


def _tuple(codes: Sequence[str]) -> str:
    return f"({', '.join(codes)}{',' if len(codes) == 1 else ''})"


def _assign(
    scope: Scope, node: ir.Node, code: str, outputs: Sequence[ir.Value] | None = None
) -> None:
    outputs = node.outputs if outputs is None else outputs
    if len(outputs) == 1:
        name = scope.declare(outputs[0])
        scope.statement(f"({name},) = {code}")
        scope.note_made(node)
    else:
        names = [scope.declare(v) if is_used(v) else "_" for v in outputs]
        scope.statement(f"{', '.join(names)} = {code}" if names else code)
        scope.note_made(node)


def _method(
    scope: Scope, inner: Scope, node: ir.Node, body: ir.Graph, name: str, parameters: list[str]
) -> str:
    """Adds a finished body as a method; how it is called."""
    title = scope.context.table.names.claim(f"{node.name or node.outputs[0].name}_{name}")
    head = f"def {title}({', '.join(['self', *parameters])}):"
    lines = with_releases(inner.lines, inner.variables.keys() - set(parameters))
    scope.context.methods.append([head, *(f"    {line}" for line in lines)])
    return f"self.{title}"


def _loop(scope: Scope, node: ir.Node, emit_nodes: EmitNodes) -> None:
    import onnx_ir as ir

    body: ir.Graph = _attribute(node, "body")
    limit, condition, *carried = node.inputs
    inner = Scope(scope.context, scope.names, scope)
    inner.repeats = True
    inner.add_initializers(body)
    iteration, goes_on, *states = body.inputs
    is_counted = only_counts(scope, node, body)
    unchanged = constant_states(node, body)
    for place, value in unchanged.items():
        inner.alias(states[place], value)
        scope.bind(node.outputs[place], scope.bound(value))
    varying = [place for place in range(len(states)) if place not in unchanged]
    parameters = [scope.names.claim(iteration.name or "iteration")]
    counter = Number(parameters[0], None, frozenset(parameters), is_natural=True)
    inner.bind(iteration, Host((counter,), False, ir.DataType.INT64))
    changing = [states[place] for place in varying]
    parameters += [inner.declare(value) for value in (goes_on, *changing)]
    emit_nodes(inner, body)
    result, *rest = body.outputs
    always = is_counted or _is_always(scope, inner, condition, goes_on, result)
    rows = rest[len(states) :]
    kept = [*(rest[place] for place in varying), *rows]
    results = ["True" if always else inner.tensor(result), *(inner.tensor(v) for v in kept)]
    inner.statement(f"return {_tuple(results)}")
    captured = [name for name in inner.captured if name not in parameters]
    method = _method(scope, inner, node, body, "body", [*parameters, *captured])
    arguments = [
        method,
        _trip_count(scope, limit),
        "True" if always else _begin(scope, condition),
        _tuple([scope.tensor(carried[place]) for place in varying]),
        f"captured={_tuple(captured)}" if captured else "",
        f"empty={_tuple([_empty(value) for value in rows])}" if rows else "",
    ]
    call = scope.context.function(control.loop)
    outputs = [v for place, v in enumerate(node.outputs) if place not in unchanged]
    _assign(scope, node, f"{call}({', '.join(filter(None, arguments))})", outputs)


def _is_always(
    scope: Scope, inner: Scope, begin: ir.Value | None, given: ir.Value, result: ir.Value
) -> bool:
    """Whether only the trip count ends a loop."""
    first = scope.host(begin)
    if begin is not None and (first is None or not first.is_constant or not first.values[0]):
        return False
    made_by = result.producer()
    while made_by is not None and made_by.op_type == "Identity" and made_by.inputs[0] is not None:
        result = made_by.inputs[0]
        made_by = result.producer()
    if result is given:
        return True
    last = inner.host(result)
    return last is not None and last.is_constant and bool(last.values[0])


def _begin(scope: Scope, condition: ir.Value | None) -> str:
    return "True" if condition is None else scope.tensor(condition)


def _trip_count(scope: Scope, limit: ir.Value | None) -> str:
    known = scope.host(limit)
    if known is not None and len(known.numbers) == 1:
        number = known.numbers[0]
        is_endless = number.value is not None and number.value >= 2**31
        return "None" if is_endless else number.code
    return scope.tensor(limit)


def _empty(row: ir.Value) -> str:
    """What a stacked output is without an iteration: no rows."""
    sizes = [0, *(n if isinstance(n, int) else 0 for n in (row.shape or ()))]
    return f"torch.zeros({sizes}, dtype=torch.{carrier_name(row.dtype) or 'float32'})"


def _scan(scope: Scope, node: ir.Node, emit_nodes: EmitNodes) -> None:
    body: ir.Graph = _attribute(node, "body")
    count = len(node.inputs) - _attribute(node, "num_scan_inputs")
    inner = Scope(scope.context, scope.names, scope)
    inner.repeats = True
    inner.add_initializers(body)
    parameters = [inner.declare(value) for value in body.inputs]
    emit_nodes(inner, body)
    inner.statement(f"return {_tuple([inner.tensor(value) for value in body.outputs])}")
    captured = [name for name in inner.captured if name not in parameters]
    method = _method(scope, inner, node, body, "body", [*parameters, *captured])
    arguments = [
        method,
        _tuple([scope.tensor(value) for value in node.inputs[:count]]),
        _tuple([scope.tensor(value) for value in node.inputs[count:]]),
        f"captured={_tuple(captured)}" if captured else "",
    ]
    for name, keyword in _SCAN_SETTINGS.items():
        numbers = list(_attribute(node, name) or [])
        arguments.append(f"{keyword}={numbers}" if any(numbers) else "")
    call = scope.context.function(control.scan_axes)
    _assign(scope, node, f"{call}({', '.join(filter(None, arguments))})")


_SCAN_SETTINGS = {
    "scan_input_axes": "input_axes",
    "scan_input_directions": "input_directions",
    "scan_output_axes": "output_axes",
    "scan_output_directions": "output_directions",
}


def _sequence_map(scope: Scope, node: ir.Node, emit_nodes: EmitNodes) -> None:
    import onnx_ir as ir

    body: ir.Graph = _attribute(node, "body")
    inner = Scope(scope.context, scope.names, scope)
    inner.repeats = True
    inner.add_initializers(body)
    parameters = [inner.declare(value) for value in body.inputs]
    emit_nodes(inner, body)
    inner.statement(f"return {_tuple([inner.tensor(value) for value in body.outputs])}")
    captured = [name for name in inner.captured if name not in parameters]
    method = _method(scope, inner, node, body, "body", [*parameters, *captured])
    lists = [value is not None and isinstance(value.type, ir.SequenceType) for value in node.inputs]
    values = _tuple([scope.tensor(value) for value in node.inputs])
    more = f", {_tuple(captured)}" if captured else ""
    call = scope.context.function(control.sequence_map)
    _assign(scope, node, f"{call}({method}, {values}, {lists}{more})")


_CONTROL: dict[str, Callable[[Scope, Any, EmitNodes], None]] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
    "SequenceMap": _sequence_map,
}
