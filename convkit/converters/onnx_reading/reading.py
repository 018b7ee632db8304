"""Reads an ONNX file for an importer: structure only, newest operators, every value typed."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_reading.modern import NEWEST, modernise
from convkit.converters.onnx_reading.whole_text import to_whole_text
from convkit.errors import ConvkitError, ModelError, UnsupportedError
from convkit.naming import listed
from convkit.onnx_folder import text_folder
from convkit.onnx_structure import read_structure
from convkit.onnx_typing import fill_types, nodes_of, opset_of

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from convkit.converters.onnx_reading.calls import Operator

CORE = frozenset({("", name) for name in ("Constant", "If", "Loop", "Scan", "SequenceMap")})
"""Operators that an importer's core handles itself."""

_SHOWN_NODES = 5


def read_graph(
    path: Path, known: Collection[Operator], note: Callable[[str], None] = lambda text: None
) -> ir.Model:
    """The model at `path` in the newest opset, made of `known` operators and `CORE` only.

    A language model takes whole texts (see `whole_text`). Weights stay on disk as
    `ir.ExternalTensor` (see `convkit.onnx_structure.array_of`). Functions are inlined, operators
    that are not known are replaced by the function that defines them, constants are initializers,
    and shapes are inferred as far as inference goes.

    Args:
        path: the file.
        known: operators that the importer has.
        note: takes what is lost on the way, a sentence.

    Raises:
        ModelError: the file is no complete ONNX model, or its types contradict each other.
        UnsafeError: a weight lies outside the model's folder.
        UnsupportedError: operators that are neither known nor defined by others, by name; strings.
    """
    import onnx.inliner
    import onnx_ir as ir

    proto = read_structure(path)
    lost = to_whole_text(proto, text_folder(path))
    if lost:
        note(lost)
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        model = ir.from_proto(_inferred(proto))
        _prepare(model)
        opset = opset_of(model, "")
        for node in list(nodes_of(model.graph)):
            _modernise(node, opset)
        model.graph.opset_imports[""] = NEWEST
        model = _expanded(model, set(known) | CORE)
        _tidy(model)
        typed = ir.from_proto(_inferred(ir.to_proto(model)))
    except ConvkitError:
        raise
    except Exception as cause:  # three libraries, no common base
        lines = str(cause).splitlines() or [type(cause).__name__]
        raise ModelError(f"{path} is not a valid ONNX model.", why=lines[0][:400]) from cause
    for node in nodes_of(typed.graph):
        fill_types(node, opset_of(typed, node.domain))
        _spell_narrow_type(node)
    return typed


def _spell_narrow_type(node: ir.Node) -> None:
    """Writes down the type that a zero point gives a QuantizeLinear, where it is below a byte.

    Frameworks carry such tensors in wider types, from which the range could not be told.
    """
    import onnx_ir as ir

    if node.op_type != "QuantizeLinear" or node.domain != "" or "output_dtype" in node.attributes:
        return
    dtype = node.outputs[0].dtype
    if dtype is not None and dtype.bitwidth < 8:
        node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(dtype))


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Types and shapes by ONNX's inference; constants that shapes depend on are followed."""
    import onnx.shape_inference

    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except onnx.shape_inference.InferenceError:  # following them stumbles over some operators
        return onnx.shape_inference.infer_shapes(proto)


def _prepare(model: ir.Model) -> None:
    from onnx_ir.passes import common

    imports = model.graph.opset_imports
    if "ai.onnx" in imports:
        imports[""] = imports.pop("ai.onnx")
    imports.setdefault("", NEWEST)
    for node in nodes_of(model.graph):
        node.domain = "" if node.domain == "ai.onnx" else node.domain
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, 10)
    common.NameFixPass()(model)


def _modernise(node: ir.Node, opset: int) -> None:
    if node.domain == "":
        modernise(node, opset)


def _expanded(model: ir.Model, known: Collection[Operator]) -> ir.Model:
    """The model with the functions that ONNX defines in place of operators that are not known."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    for _ in range(8):  # a function may call others; their nesting is shallow
        unknown: dict[Operator, list[ir.Node]] = defaultdict(list)
        for node in nodes_of(model.graph):
            if (node.domain, node.op_type) not in known:
                unknown[node.domain, node.op_type].append(node)
        if not unknown:
            return model
        for operator, nodes in unknown.items():
            for node in nodes:
                if not _define(model, node):
                    raise _unknown(operator, nodes)
        common.InlinePass()(model)
        common.NameFixPass()(model)
        # The body that defines an operator may depend on the types of its inputs.
        model = ir.from_proto(_inferred(ir.to_proto(model)))
    raise ModelError("Functions of the model call one another without an end.")


_numbers = itertools.count()


def _define(model: ir.Model, node: ir.Node) -> bool:
    """Adds the function that defines `node` to the model, under an overload of its own."""
    import onnx_ir as ir

    proto = _function(node)
    if proto is None:
        return False
    node.overload = proto.overload = f"expanded_{next(_numbers)}"
    function: Any = ir.from_proto(proto)
    _drop_bodies(node)
    opset = function.opset_imports.get("", NEWEST)
    for inner in list(function.all_nodes()):
        _modernise(inner, opset)
    function.opset_imports.clear()
    function.opset_imports[""] = NEWEST
    model.functions[function.identifier()] = function
    return True


def _drop_bodies(node: ir.Node) -> None:
    """Forgets graph attributes: ONNX wrote them into the function that it built for the node."""
    import onnx_ir as ir

    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.GRAPH:
            del node.attributes[name]


def _function(node: ir.Node) -> onnx.FunctionProto | None:
    """The body that defines an operator, as ONNX's schema builds it for these inputs."""
    import onnx
    import onnx_ir as ir

    try:
        schema: Any = onnx.defs.get_schema(node.op_type, NEWEST, node.domain)
    except onnx.defs.SchemaError:
        return None
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.type:
            default: Any = ir.from_proto(attribute.default_value)
            node.attributes[name] = default
    if schema.has_function:
        body = schema.function_body
    elif schema.has_context_dependent_function:
        types = [_type_of(value) for value in node.inputs]
        encoded = schema.get_context_dependent_function(
            ir.to_proto(node).SerializeToString(), types
        )
        body = onnx.FunctionProto.FromString(encoded)
        if not body.node:
            return None
    else:
        return None
    copy = onnx.FunctionProto()
    copy.CopyFrom(body)
    copy.name, copy.domain = node.op_type, node.domain
    _match_outputs(copy, node)
    return copy


def _match_outputs(function: onnx.FunctionProto, node: ir.Node) -> None:
    """Leaves the outputs that the node uses and the body gives; schemas name optional ones too."""
    given = {name for inner in function.node for name in inner.output}
    names = [name for name in function.output if name in given][: len(node.outputs)]
    node.resize_outputs(len(names))
    del function.output[:]
    function.output.extend(names)


def _type_of(value: ir.Value | None) -> bytes:
    """The serialized TypeProto of a value; empty where it is absent."""
    import onnx_ir as ir

    if value is None or value.type is None:
        return b""
    encoded: bytes = ir.to_proto(value).type.SerializeToString()
    return encoded


def _tidy(model: ir.Model) -> None:
    from onnx_ir.passes import common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)


def _unknown(operator: Operator, nodes: list[ir.Node]) -> UnsupportedError:
    domain, op_type = operator
    names = [node.name or str(node.outputs[0].name) for node in nodes]
    return UnsupportedError(
        f"The operator {domain or 'ai.onnx'}.{op_type} has no translation.",
        why=f"Used by {listed(names, _SHOWN_NODES)}.",
        hint=_advice(domain),
    )


def _advice(domain: str) -> str:
    if domain in ("", "ai.onnx.ml", "com.microsoft"):
        return "Export the model without it, or keep it in ONNX."
    return f"'{domain}' is a custom domain; express it with standard operators or an ONNX function."
