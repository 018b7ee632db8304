"""Casts around operators whose older form takes fewer element types.

bfloat16 addition, for example, came with opset 13, boolean ReduceMax with 20. Where a wider type
carries every value exactly, the operator runs in that type and its results are cast back; for
arithmetic on small floats this rounds once per operator, as native kernels do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convkit.opsets.meaning import STANDARD, schema_of

_CARRIERS: Mapping[str, tuple[str, ...]] = {
    "bfloat16": ("float",),
    "float16": ("float",),
    "bool": ("uint8", "int32", "int64"),
    "uint8": ("int32", "int64"),
    "int8": ("int32", "int64"),
    "int16": ("int32", "int64"),
    "uint16": ("int32", "int64"),
    "uint32": ("int64",),
    "int32": ("int64", "double"),
}
"""Element type -> wider ones that hold all its values exactly."""


def typed(model: Any) -> Any:
    """The model with the types that ONNX infers; without them where inference fails."""
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # onnx raises errors of several kinds; without types no cast is put in
        return model


def narrowed(model: Any, opset: int) -> list[tuple[str, Any, str]]:
    """Puts casts in place; gives (place, node, why) of nodes that no cast can help."""
    failures: list[tuple[str, Any, str]] = []
    names = _Names(model)
    _narrow(model.graph, typed(model).graph, {}, opset, names, "", failures)
    return failures


def is_narrow(model: Any, opset: int) -> bool:
    """Whether a node has element types that its operator did not take in that opset."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    before = sum(1 for _ in _names_in(copy.graph))
    return bool(narrowed(copy, opset)) or sum(1 for _ in _names_in(copy.graph)) != before


class _Names:
    def __init__(self, model: Any) -> None:
        self._taken = set(_names_in(model.graph))

    def fresh(self, hint: str) -> str:
        number = 0
        while (name := f"{hint}_{number}") in self._taken:
            number += 1
        self._taken.add(name)
        return name


def _names_in(graph: Any) -> Iterator[str]:
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in _graphs_of(node):
            yield from _names_in(inner)


def _graphs_of(node: Any) -> Iterator[Any]:
    for entry in node.attribute:
        yield from (*entry.graphs, *([entry.g] if entry.HasField("g") else []))


def _narrow(
    graph: Any,
    with_types: Any,
    around: Mapping[str, str],
    opset: int,
    names: _Names,
    place: str,
    failures: list[tuple[str, Any, str]],
) -> None:
    types = {**around, **_types_of(with_types)}
    made: list[Any] = []
    for node, twin in zip(graph.node, with_types.node, strict=True):
        for inner, inner_twin in zip(_graphs_of(node), _graphs_of(twin), strict=True):
            name = f"{node.op_type} {node.name}".strip()
            _narrow(inner, inner_twin, types, opset, names, name, failures)
        carried, why = _carriers_for(node, types, opset)
        if why:
            failures.append((place, node, why))
        made += _with_casts(node, carried, names)
    del graph.node[:]
    graph.node.extend(made)


def _types_of(graph: Any) -> dict[str, str]:
    """Value name -> its type as schemas spell it, `tensor(float)`."""
    import onnx

    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
            found[value.name] = _spelled(value.type.tensor_type.elem_type)
    for tensor in graph.initializer:
        found[tensor.name] = _spelled(tensor.data_type)
    for node in graph.node:
        if node.op_type == "Constant":
            for entry in node.attribute:
                if entry.type == onnx.AttributeProto.TENSOR:
                    found[node.output[0]] = _spelled(entry.t.data_type)
    return found


def _spelled(dtype: int) -> str:
    from onnx import TensorProto

    return f"tensor({TensorProto.DataType.Name(dtype).lower()})"


def _carriers_for(
    node: Any, types: Mapping[str, str], opset: int
) -> tuple[dict[str, tuple[str, str]], str]:
    """Value name -> (its type, the type to cast to) for one node; or why it cannot be."""
    schema = schema_of(node.op_type, opset) if node.domain in STANDARD else None
    if schema is None:
        return {}, ""
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    bound: dict[str, dict[str, str]] = {}
    for name, formal in (
        *_paired(node.input, schema.inputs),
        *_paired(node.output, schema.outputs),
    ):
        if name in types and formal.is_homogeneous:
            allowed.setdefault(formal.type_str, {formal.type_str})  # one type, no parameter
            bound.setdefault(formal.type_str, {})[name] = types[name]
    carried: dict[str, tuple[str, str]] = {}
    for parameter, values in bound.items():
        wrong = {kind for kind in values.values() if kind not in allowed[parameter]}
        if not wrong:
            continue
        wider = _wider(wrong, allowed[parameter], opset)
        if wider is None or node.op_type in ("Cast", "Constant", "ConstantOfShape"):
            return {}, f"{sorted(wrong)[0]} is not for {node.op_type} of opset {opset}"
        carried |= {name: (kind, wider) for name, kind in values.items()}
    return carried, ""


def _paired(names: Sequence[str], formals: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for index, name in enumerate(names):
        if name and formals:
            yield name, formals[min(index, len(formals) - 1)]


def _wider(wrong: set[str], allowed: set[str], opset: int) -> str | None:
    cast = schema_of("Cast", opset)
    castable = {kind for c in cast.type_constraints for kind in c.allowed_type_strs} if cast else ()
    if len(wrong) != 1 or not wrong <= set(castable):
        return None
    kind = next(iter(wrong))
    candidates = (f"tensor({wide})" for wide in _CARRIERS.get(kind[7:-1], ()))
    return next((wide for wide in candidates if wide in allowed), None)


def _with_casts(node: Any, carried: Mapping[str, tuple[str, str]], names: _Names) -> list[Any]:
    if not carried:
        return [node]
    before, after = [], []
    cast_inputs: dict[str, str] = {}
    for index, name in enumerate(node.input):
        if name in carried:
            if name not in cast_inputs:
                cast_inputs[name] = names.fresh(f"{name}_wide")
                before.append(_cast(name, cast_inputs[name], carried[name][1]))
            node.input[index] = cast_inputs[name]
    for index, name in enumerate(node.output):
        if name in carried:
            wide = names.fresh(f"{name}_wide")
            after.append(_cast(wide, name, carried[name][0]))
            node.output[index] = wide
    return [*before, node, *after]


def _cast(source: str, out: str, kind: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_node(
        "Cast", [source], [out], to=TensorProto.DataType.Value(kind[7:-1].upper())
    )
