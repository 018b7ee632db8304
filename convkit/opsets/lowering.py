"""Brings every node of a model down to an opset: as it is, through an adapter, or spelled out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from convkit.opsets.bodies import bodies_of
from convkit.opsets.meaning import STANDARD, means_the_same, schema_of
from convkit.opsets.narrow_types import narrowed, typed
from convkit.opsets.scope import CannotLower, Scope

_MAX_DEPTH = 40
"""How often a node may be rewritten into others before it is called hopeless."""


class NoOlderForm(Exception):
    """Nodes without an equal in the older opset.

    Attributes:
        nodes: (place, node, why); the main graph's place is "".
    """

    def __init__(self, nodes: Sequence[tuple[str, Any, str]]) -> None:
        super().__init__(f"{len(nodes)} nodes have no older form")
        self.nodes = tuple(nodes)


def lowered(model: Any, target: int) -> Any:
    """A copy of a ModelProto with its standard operators at opset `target`.

    The model has no functions of its own (inline them before). Weights may lie in other files.
    Reshape with `allowzero` whose shape is computed at run time keeps its meaning for all but
    empty tensors.

    Raises:
        NoOlderForm: nodes mean something there that no combination of older operators means.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(typed(model))
    opset = max((e.version for e in model.opset_import if e.domain in STANDARD), default=target)
    scope = _scope_of(result.graph, opset, None)
    _collect_names(result.graph, scope.taken)
    failures: list[tuple[str, Any, str]] = []
    _lower_graph(result.graph, scope, target, "", failures)
    if failures:
        raise NoOlderForm(failures)
    for entry in result.opset_import:
        if entry.domain in STANDARD:
            entry.version = min(entry.version, target)
    _forget_types(result.graph, {value.name for value in model.graph.value_info})
    failures = narrowed(result, target)
    if failures:
        raise NoOlderForm(failures)
    return result


def _forget_types(graph: Any, kept: set[str]) -> None:
    """Takes out what type inference wrote, but for values that had a type in the file."""
    made = {name for node in graph.node for name in node.output}
    values = [value for value in graph.value_info if value.name in kept & made]
    del graph.value_info[:]
    graph.value_info.extend(values)
    for node in graph.node:
        for entry in node.attribute:
            for inner in (*entry.graphs, *([entry.g] if entry.HasField("g") else [])):
                _forget_types(inner, kept)


def _scope_of(graph: Any, opset: int, outer: Scope | None) -> Scope:
    scope = Scope(opset, outer=outer, taken=outer.taken if outer else set())
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.WhichOneof("value"):
            scope.types[value.name] = value.type
    for tensor in graph.initializer:
        scope.constants[tensor.name] = tensor
        scope.types.setdefault(tensor.name, _type_of(tensor))
    for value in graph.input:  # a default that the caller may replace is no constant
        scope.constants.pop(value.name, None)
    for node in graph.node:
        _learn(node, scope)
    return scope


def _learn(node: Any, scope: Scope) -> None:
    if node.op_type == "Constant" and node.domain in STANDARD:
        tensor = _constant_of(node)
        if tensor is not None:
            scope.constants[node.output[0]] = tensor
            scope.types.setdefault(node.output[0], _type_of(tensor))
        return
    for name in filter(None, node.output):
        scope.makers[name] = node


def _constant_of(node: Any) -> Any | None:
    import numpy as np
    from onnx import numpy_helper

    for entry in node.attribute:
        if entry.name == "value":
            return entry.t
        plain = {"value_int": entry.i, "value_ints": list(entry.ints)}
        if entry.name in plain:
            return numpy_helper.from_array(np.asarray(plain[entry.name], np.int64))
        plain = {"value_float": entry.f, "value_floats": list(entry.floats)}
        if entry.name in plain:
            return numpy_helper.from_array(np.asarray(plain[entry.name], np.float32))
    return None


def _type_of(tensor: Any) -> Any:
    from onnx import helper

    return helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))


def _collect_names(graph: Any, into: set[str]) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer):
        into.add(value.name)
    for node in graph.node:
        into.update((node.name, *node.input, *node.output))
        for entry in node.attribute:
            for inner in (*entry.graphs, *([entry.g] if entry.HasField("g") else [])):
                _collect_names(inner, into)


def _lower_graph(
    graph: Any, scope: Scope, target: int, place: str, failures: list[tuple[str, Any, str]]
) -> None:
    made: list[Any] = []
    for node in graph.node:
        _lower_branches(node, scope, target, failures)
        try:
            made += _lowered(node, scope.opset, target, scope, 0)
        except CannotLower as cannot:
            failures.append((place, node, str(cannot)))
    del graph.node[:]
    graph.node.extend(made)


def _lower_branches(
    node: Any, scope: Scope, target: int, failures: list[tuple[str, Any, str]]
) -> None:
    for entry in node.attribute:
        for inner in (*entry.graphs, *([entry.g] if entry.HasField("g") else [])):
            inner_scope = _scope_of(inner, scope.opset, scope)
            name = f"{node.op_type} {node.name}".strip()
            _lower_graph(inner, inner_scope, target, name, failures)


def _lowered(node: Any, opset: int, target: int, scope: Scope, depth: int) -> list[Any]:
    """Nodes at `target` that compute what `node` does at `opset`."""
    if node.domain not in STANDARD:
        return [node]
    if depth > _MAX_DEPTH:
        raise CannotLower("rewriting it does not end")
    schema = schema_of(node.op_type, opset)
    if schema is None:
        raise CannotLower(f"opset {opset} has no such operator")
    since = schema.since_version
    if opset <= target:
        if means_the_same(node, target, opset):
            return [node]
        raise CannotLower(f"its form of opset {opset} is not that of opset {target}")
    if since <= target:
        return [node]
    adapter = _adapters().get((node.op_type, since))
    why = ""
    if adapter is not None:
        try:
            return _all_lowered(adapter(node, scope), since - 1, target, scope, depth)
        except CannotLower as cannot:
            why = str(cannot)
    elif means_the_same(node, since, since - 1):
        return _lowered(node, since - 1, target, scope, depth + 1)
    return _spelled_out(node, schema, target, scope, depth, why)


def _all_lowered(
    nodes: Sequence[Any], opset: int, target: int, scope: Scope, depth: int
) -> list[Any]:
    made = []
    for node in nodes:
        _learn(node, scope)
        made += _lowered(node, opset, target, scope, depth + 1)
    return made


def _spelled_out(
    node: Any, schema: Any, target: int, scope: Scope, depth: int, why: str
) -> list[Any]:
    for opset, nodes in bodies_of(node, schema, target, scope):
        try:
            for inner in nodes:
                failures: list[tuple[str, Any, str]] = []
                _lower_inner(inner, scope, opset, target, failures)
                if failures:
                    raise CannotLower(f"{failures[0][1].op_type} in its body: {failures[0][2]}")
            return _all_lowered(nodes, opset, target, scope, depth)
        except CannotLower as cannot:
            why = why or str(cannot)
    raise CannotLower(why or f"opset {schema.since_version} defined it anew")


def _lower_inner(
    node: Any, scope: Scope, opset: int, target: int, failures: list[tuple[str, Any, str]]
) -> None:
    """Bodies of Loop and If inside a function body, which are written in its opset."""
    inner = Scope(opset, outer=scope, taken=scope.taken)
    if opset > target:
        _lower_branches(node, inner, target, failures)


@cache
def _adapters() -> Mapping[tuple[str, int], Any]:
    """(operator, version) -> a function that gives nodes of the version before."""
    from convkit.opsets import (
        adapters_attributes,
        adapters_numbers,
        adapters_recurrent,
        adapters_reduce,
        adapters_shapes,
    )

    modules = (
        adapters_attributes,
        adapters_numbers,
        adapters_recurrent,
        adapters_reduce,
        adapters_shapes,
    )
    return {key: adapter for module in modules for key, adapter in module.ADAPTERS.items()}
