"""An ONNX graph in which every value has its type, and what operator schemas allow.

Types come from ONNX's shape inference, then from the operators' schemas (ONNX's own, else ONNX
Runtime's for its `com.microsoft` domain); nothing is guessed. The weights stay on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.errors import ModelError
from convkit.onnx_structure import read_structure

if TYPE_CHECKING:
    import onnx_ir as ir

_ANY_OPSET = 20
"""The opset for a model that imports none of the default domain, for the nodes that are added."""


def load_typed(path: Path, opset: int | None = None) -> ir.Model:
    """The model at `path` without its weights, functions inlined, names unique, types inferred.

    Functions are inlined because a body serves callers of different types. Initializers that are
    also inputs (IR version 3) are constants only.

    Args:
        path: the file.
        opset: raise the model to this opset with ONNX's version converter first.

    Raises:
        ModelError: the file is no complete ONNX model, its types contradict each other, or it
            cannot be raised to `opset`.
        UnsafeError: a weight lies outside the model's folder.
    """
    import onnx
    import onnx.inliner
    import onnx_ir as ir
    from onnx_ir.passes import common

    proto = read_structure(path)
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        if opset is not None:
            proto = onnx.version_converter.convert_version(proto, opset)
        proto = onnx.shape_inference.infer_shapes(proto)
        model = ir.from_proto(proto)
    except Exception as cause:  # three libraries, no common base
        lines = str(cause).splitlines() or [type(cause).__name__]
        raise ModelError(f"{path} is not a valid ONNX model.", why=lines[0][:400]) from cause
    if not model.graph.opset_imports.keys() & {"", "ai.onnx"}:
        model.graph.opset_imports[""] = _ANY_OPSET
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, 4)
    absent = [v for node in nodes_of(model.graph) for v in node.outputs if not v.name]
    common.NameFixPass()(model)
    for value in absent:
        value.name = ""  # an output left out; with a name it would be computed
    for node in nodes_of(model.graph):
        fill_types(node, opset_of(model, node.domain))
    return model


def nodes_of(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes of a graph and the bodies inside it, each body after the node that holds it."""
    for node in graph:
        yield node
        for _, body in bodies_of(node):
            yield from nodes_of(body)


def graphs_of(graph: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and every body inside it."""
    yield graph
    for node in graph:
        for _, body in bodies_of(node):
            yield from graphs_of(body)


def bodies_of(node: ir.Node) -> list[tuple[str, ir.Graph]]:
    """The graphs that a node holds, by attribute name."""
    import onnx_ir as ir

    found = []
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append((name, attribute.as_graph()))
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend((name, graph) for graph in attribute.as_graphs())
    return found


def opset_of(model: ir.Model, domain: str) -> int:
    """The version of a domain that the model imports; 1 where it names none."""
    imports = model.graph.opset_imports
    return imports.get(domain, imports.get("ai.onnx", 1) if domain == "" else 1)


@dataclass(frozen=True)
class Formal:
    """The formal parameters of an operator: names of types, and what each may be."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    variables: Mapping[str, frozenset[str]]

    def allowed(self, names: Sequence[str], index: int) -> frozenset[str]:
        """Types of the formal parameter at `index`; the last one may repeat."""
        if not names:
            return frozenset()
        name = names[min(index, len(names) - 1)]
        return self.variables.get(name, frozenset({name}))


@functools.cache
def schema_of(domain: str, op_type: str, opset: int) -> Formal | None:
    """What the operator takes and gives at this opset; None for an operator nobody knows."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return _runtime_schemas().get((domain, op_type))
    return Formal(
        tuple(parameter.type_str for parameter in schema.inputs),
        tuple(parameter.type_str for parameter in schema.outputs),
        {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
    )


@functools.cache
def _runtime_schemas() -> Mapping[tuple[str, str], Formal]:
    """Schemas of ONNX Runtime's own domains; empty where this build does not tell."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError:
        return {}
    if not hasattr(state, "get_all_operator_schema"):
        return {}
    return {(s.domain, s.name): _formal(s) for s in state.get_all_operator_schema() if s.domain}


def _formal(schema: Any) -> Formal:
    return Formal(
        tuple(parameter.typeStr for parameter in schema.inputs),
        tuple(parameter.typeStr for parameter in schema.outputs),
        {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
    )


def fill_types(node: ir.Node, opset: int) -> None:
    """Gives outputs that shape inference left open the type their schema binds them to."""
    import onnx_ir as ir

    formal = schema_of(node.domain, node.op_type, opset)
    if formal is None or all(value.type is not None for value in node.outputs):
        return
    bound = {
        formal.inputs[min(index, len(formal.inputs) - 1)]: value.type
        for index, value in enumerate(node.inputs)
        if value is not None and value.type is not None and formal.inputs
    }
    for index, value in enumerate(node.outputs):
        if value.type is not None or not formal.outputs:
            continue
        name = formal.outputs[min(index, len(formal.outputs) - 1)]
        if name in bound:
            value.type = bound[name]
        elif formal.allowed(formal.outputs, index) == {"tensor(float)"}:
            value.type = ir.TensorType(ir.DataType.FLOAT)
