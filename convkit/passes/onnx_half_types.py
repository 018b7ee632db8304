"""What operator schemas allow: which inputs and outputs of a node may be half precision.

The answer comes from the schema of the operator at the model's opset (ONNX's own, else ONNX
Runtime's for its `com.microsoft` domain), never from a list of names. An operator nobody has a
schema for keeps its types.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.errors import ModelError, UnsupportedError
from convkit.passes.onnx_half_files import read_structure

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

DTYPE_ATTRIBUTES: Mapping[str, str] = {
    "Cast": "to",
    "EyeLike": "dtype",
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniformLike": "dtype",
    "Bernoulli": "dtype",
    "HannWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "BlackmanWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
}
"""Operators whose output type is an attribute, and that attribute."""

CARRIERS = frozenset(
    "Cast CastLike Identity Reshape Flatten Squeeze Unsqueeze Transpose Concat Split Slice Gather "
    "GatherElements GatherND Expand Tile DepthToSpace SpaceToDepth ReverseSequence Compress "
    "Trilu Where".split()
)
"""Operators that only move elements: their output holds elements of their inputs, unrounded."""

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Kept in fp32: a rounded scale would move every code it belongs to."""

_READS_NO_ELEMENTS = frozenset({"Shape", "Size"})
_STASH_OUTPUTS = {"LayerNormalization": (1, 2), "SimplifiedLayerNormalization": (1,)}
"""Outputs in the type that the norm computes in (`stash_type`, fp32)."""

_OLDEST_OPSET = {"float16": 7, "bfloat16": 13}
"""Before opset 7 Cast and broadcasting were other operators; Cast knows bfloat16 from 13 on."""


@dataclass(frozen=True)
class Slots:
    """Which inputs and outputs of a node become half when the node does; fp32 ones only."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]

    @property
    def is_possible(self) -> bool:
        """Whether anything of the node can be half."""
        return any(self.inputs) or any(self.outputs)


def load_typed(path: Path, target: ir.DataType) -> ir.Model:
    """The model at `path` without its weights, functions inlined, names unique, types inferred.

    Functions are inlined because a body serves callers of different types.

    Raises:
        ModelError: the file is no complete ONNX model, or its types contradict each other.
        UnsupportedError: its opset is older than half precision.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import common

    proto = read_structure(path)
    _check_opset(path, proto, target)
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        proto = onnx.shape_inference.infer_shapes(proto)
        model = ir.from_proto(proto)
    except (RuntimeError, ValueError, TypeError, KeyError, onnx.shape_inference.InferenceError) as e:
        raise ModelError(
            f"{path} is not a valid ONNX model.", why=str(e).splitlines()[0] if str(e) else ()
        ) from e
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, 4)
    common.NameFixPass()(model)
    for node in nodes_of(model.graph):
        _fill_types(node, opset_of(model, node.domain))
    return model


def _check_opset(path: Path, proto: onnx.ModelProto, target: ir.DataType) -> None:
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    name = str(target.numpy())
    oldest = _OLDEST_OPSET[name]
    if 0 < opset < oldest:
        raise UnsupportedError(
            f"{path} has ONNX opset {opset}; {name} needs {oldest} or newer.",
            hint="Export the model again with a newer opset:  --opset 18",
            opset=opset,
        )
    if opset == 0:
        proto.opset_import.add(domain="", version=20)


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


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a float32 or float64 tensor, the types that become half."""
    import onnx_ir as ir

    if value is None or not isinstance(value.type, ir.TensorType):
        return False
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def slots_of(node: ir.Node, opset: int, target: ir.DataType) -> Slots:
    """Which of a node's float inputs and outputs may be `target`, by its schema."""
    import onnx_ir as ir

    none = Slots((False,) * len(node.inputs), (False,) * len(node.outputs))
    formal = _schema(node.domain, node.op_type, opset)
    tensors = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name]
    if formal is None or node.op_type in _QUANTIZERS:
        return none
    if any(v.type is None or not isinstance(v.type, ir.TensorType) for v in tensors):
        return none
    name = f"tensor({'float16' if target == ir.DataType.FLOAT16 else 'bfloat16'})"
    inputs = [
        is_float(value) and name in formal.allowed(formal.inputs, index)
        for index, value in enumerate(node.inputs)
    ]
    outputs = [
        is_float(value) and name in formal.allowed(formal.outputs, index)
        for index, value in enumerate(node.outputs)
    ]
    for index in _STASH_OUTPUTS.get(node.op_type, ()):
        if index < len(outputs):
            outputs[index] = False
    return Slots(tuple(inputs), tuple(outputs))


def reads_elements(node: ir.Node) -> bool:
    """Whether the type of a node's input matters to it; Shape only asks for sizes."""
    return node.op_type not in _READS_NO_ELEMENTS


@dataclass(frozen=True)
class _Formal:
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
def _schema(domain: str, op_type: str, opset: int) -> _Formal | None:
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return _runtime_schemas().get((domain, op_type))
    return _Formal(
        tuple(parameter.type_str for parameter in schema.inputs),
        tuple(parameter.type_str for parameter in schema.outputs),
        {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
    )


@functools.cache
def _runtime_schemas() -> Mapping[tuple[str, str], _Formal]:
    """Schemas of ONNX Runtime's own domains; empty where this build does not tell."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError:
        return {}
    if not hasattr(state, "get_all_operator_schema"):
        return {}
    return {(s.domain, s.name): _formal(s) for s in state.get_all_operator_schema() if s.domain}


def _formal(schema: Any) -> _Formal:
    return _Formal(
        tuple(parameter.typeStr for parameter in schema.inputs),
        tuple(parameter.typeStr for parameter in schema.outputs),
        {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
    )


def _fill_types(node: ir.Node, opset: int) -> None:
    """Gives outputs that shape inference left open the type their schema binds them to."""
    import onnx_ir as ir

    formal = _schema(node.domain, node.op_type, opset)
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
        elif name == "tensor(float)":
            value.type = ir.TensorType(ir.DataType.FLOAT)
