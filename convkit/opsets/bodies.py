"""Operators spelled out with the function body that ONNX's schema gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convkit.opsets.meaning import STANDARD
from convkit.opsets.scope import CannotLower, Scope


def bodies_of(node: Any, schema: Any, target: int, scope: Scope) -> Iterator[tuple[int, list[Any]]]:
    """(opset, nodes) for each body the schema has: the newest that fits the target first."""
    static = set(schema.function_opset_versions)
    dynamic = set(schema.context_dependent_function_opset_versions)
    versions = sorted(static | dynamic)
    fitting = [v for v in reversed(versions) if v <= target]
    for version in (*fitting, *(v for v in versions if v > target)):
        function = _function(node, schema, version, scope, version in static)
        if function is None:
            continue
        opset = max(
            (e.version for e in function.opset_import if e.domain in STANDARD), default=version
        )
        yield opset, _spelled_out(node, function, schema, opset, scope)


def _function(node: Any, schema: Any, version: int, scope: Scope, is_static: bool) -> Any | None:
    import onnx

    if is_static:
        static = schema.get_function_with_opset_version(version)
        return onnx.FunctionProto.FromString(static) if isinstance(static, bytes) else static
    types = []
    for name in node.input:
        known = scope.type_of(name) if name else onnx.TypeProto()
        if known is None:
            raise CannotLower(f"the type of '{name}' is not known")
        types.append(known.SerializeToString())
    built = schema.get_context_dependent_function_with_opset_version(
        version, node.SerializeToString(), types
    )
    return onnx.FunctionProto.FromString(built) if built else None


def _spelled_out(node: Any, function: Any, schema: Any, opset: int, scope: Scope) -> list[Any]:
    """The body's nodes on the caller's values, every inner name fresh."""
    names: dict[str, str] = {}
    for formal, actual in zip(function.input, _padded(node.input, function.input), strict=False):
        names[formal] = actual
    for formal, actual in zip(function.output, node.output, strict=False):
        if actual:
            names[formal] = actual
    prefix = scope.fresh(node.name or node.op_type.lower())
    settings = _settings(node, function, schema)
    nodes = _renamed(function.node, names, prefix, settings, scope)
    _learn_types(nodes, node, opset, scope)
    return nodes


def _padded(values: Sequence[str], formals: Sequence[str]) -> list[str]:
    return [*values, *[""] * (len(formals) - len(values))]


def _settings(node: Any, function: Any, schema: Any) -> dict[str, Any]:
    """Attributes that a body may refer to: the node's, else the defaults."""
    from onnx import AttributeProto

    defaults = {entry.name: entry for entry in function.attribute_proto}
    for name, formal in schema.attributes.items():
        if formal.default_value.type != AttributeProto.UNDEFINED:
            defaults.setdefault(name, formal.default_value)
    return {**defaults, **{entry.name: entry for entry in node.attribute}}


def _renamed(
    nodes: Sequence[Any],
    names: Mapping[str, str],
    prefix: str,
    settings: Mapping[str, Any],
    scope: Scope,
) -> list[Any]:
    from onnx import NodeProto

    mine = dict(names)

    def renamed(name: str) -> str:
        if name and name not in mine:
            mine[name] = scope.fresh(f"{prefix}_{name}")
        return mine[name] if name else ""

    made = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = scope.fresh(f"{prefix}_{node.name or node.op_type}")
        copy.input[:] = [renamed(name) for name in node.input]
        copy.output[:] = [renamed(name) for name in node.output]
        del copy.attribute[:]
        for entry in node.attribute:
            filled = _filled(entry, settings)
            if filled is None:
                continue
            if filled.HasField("g"):
                _rename_graph(filled.g, mine, prefix, settings, scope)
            copy.attribute.append(filled)
        made.append(copy)
    return made


def _filled(entry: Any, settings: Mapping[str, Any]) -> Any | None:
    """An attribute of a body's node, with what the caller set where it refers to that."""
    from onnx import AttributeProto

    filled = AttributeProto()
    if not entry.ref_attr_name:
        filled.CopyFrom(entry)
        return filled
    if entry.ref_attr_name not in settings:
        return None
    filled.CopyFrom(settings[entry.ref_attr_name])
    filled.name = entry.name
    return filled


def _rename_graph(
    graph: Any, names: Mapping[str, str], prefix: str, settings: Mapping[str, Any], scope: Scope
) -> None:
    """Renames what a branch or loop body reads from around it, and its own names."""
    mine = dict(names)
    own = [*graph.input, *graph.initializer]
    for value in own:
        mine[value.name] = scope.fresh(f"{prefix}_{value.name}")
        value.name = mine[value.name]
    for node in graph.node:
        for name in filter(None, node.output):
            mine[name] = scope.fresh(f"{prefix}_{name}")
    nodes = _renamed(graph.node, mine, prefix, settings, scope)
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.output:
        value.name = mine.get(value.name, value.name)
    del graph.value_info[:]


def _learn_types(nodes: Sequence[Any], node: Any, opset: int, scope: Scope) -> None:
    """Infers the types of a body's values and tells the scope."""
    import onnx
    from onnx import helper

    inputs = []
    for name in dict.fromkeys(filter(None, node.input)):
        known = scope.type_of(name)
        if known is not None:
            inputs.append(helper.make_value_info(name, known))
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph(list(nodes), "body", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # types stay unknown; adapters that need them say so
        return
    _collect_types(inferred.graph, scope.types)


def _collect_types(graph: Any, into: dict[str, Any]) -> None:
    """Types of a graph and all inside it; the names in a body are fresh, so none clash."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.WhichOneof("value"):
            into.setdefault(value.name, value.type)
    for node in graph.node:
        for entry in node.attribute:
            if entry.HasField("g"):
                _collect_types(entry.g, into)
