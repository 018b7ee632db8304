"""Mends and lowers graphs that mobius built, so that they compute what the network computes.

mobius 0.1.0 writes opset 24, gives BERT's integer padding mask to Attention as if it were a bias to
add, and leaves out the pooler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convkit.converters.torch_to_onnx.folder_weights import FolderWeights
from convkit.errors import RungSkipped

if TYPE_CHECKING:
    import onnx_ir

_MASKED = -10000.0
"""Added to a masked score: exp(-10000) is 0 in every float type, and float16 still holds it."""

_MASK = 3  # Source: ONNX operator Attention-23: Q, K, V, attn_mask, ...


def mask_padding(graph: onnx_ir.Graph) -> None:
    """Makes an integer (batch, keys) mask what it means: True where a key may be looked at.

    Each Attention gets a boolean (batch, 1, 1, keys) instead.
    """
    import onnx_ir

    made: dict[int, onnx_ir.Value] = {}
    for node in list(graph):
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        if node.op_type != "Attention" or mask is None or mask.dtype != onnx_ir.DataType.INT64:
            continue
        if id(mask) not in made:
            axes = _constant(graph, "mask_axes", [1, 2], "int64")
            wide = _before(graph, node, "Unsqueeze", [mask, axes], name="mask_4d")
            is_kept = _before(
                graph, node, "Cast", [wide], {"to": int(onnx_ir.DataType.BOOL)}, "mask_bool"
            )
            is_kept.type = onnx_ir.TensorType(onnx_ir.DataType.BOOL)
            made[id(mask)] = is_kept
        node.replace_input_with(_MASK, made[id(mask)])


def lower_attention(graph: onnx_ir.Graph) -> None:
    """Writes Attention (opset 23) as the operators it stands for.

    Also where opset 23 is allowed: ONNX Runtime 1.31 does not broadcast its mask over queries.

    Inputs are (batch, length, heads x size); the mask is boolean or absent.

    Raises:
        RungSkipped: an Attention uses a feature beyond that.
    """
    biases: dict[int, onnx_ir.Value] = {}
    for node in [node for node in graph if node.op_type == "Attention"]:
        mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        heads = attributes.pop("q_num_heads", None)
        if (
            heads is None
            or attributes.pop("kv_num_heads", None) != heads
            or set(attributes) - {"scale"}
            or any(value is not None for value in node.inputs[_MASK + 1 :])
            or sum(bool(value.uses()) for value in node.outputs) != 1
        ):
            raise RungSkipped("its attention has features without a form at this opset")
        if mask is not None and id(mask) not in biases:
            biases[id(mask)] = _bias(graph, node, mask, _float_of(node))
        bias = biases[id(mask)] if mask is not None else None
        _lower_one(graph, node, heads, attributes.get("scale"), bias)


def add_pooler(graph: onnx_ir.Graph, weights: FolderWeights) -> None:
    """Appends BERT's pooler as a second output: tanh of a dense layer on the first token.

    Source: `transformers.models.bert.modeling_bert.BertPooler`.

    Raises:
        RungSkipped: the folder has no weights for it.
    """
    import onnx_ir

    hidden = graph.outputs[0]
    values = []
    for name in ("pooler.dense.weight", "pooler.dense.bias"):
        tensor = weights.lazy(name, hidden.dtype or onnx_ir.DataType.FLOAT)
        value = onnx_ir.Value(
            name=name,
            shape=tensor.shape,
            type=onnx_ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
        values.append(value)
    first = _constant(graph, "pooler_first", 0, "int64")
    token = _append(graph, "Gather", [hidden, first], {"axis": 1})
    dense = _append(graph, "Gemm", [token, *values], {"transB": 1})
    pooled = _append(graph, "Tanh", [dense], {})
    pooled.type = hidden.type
    width = hidden.shape[2] if hidden.shape is not None else None
    batch = hidden.shape[0] if hidden.shape is not None else None
    pooled.shape = onnx_ir.Shape([batch, width])
    graph.outputs.append(pooled)


def drop_unused_outputs(graph: onnx_ir.Graph) -> None:
    """Takes off trailing outputs of nodes that nothing reads, as mean and deviation of a norm."""
    outputs = set(map(id, graph.outputs))
    for node in graph:
        used = [bool(v.uses()) or id(v) in outputs for v in node.outputs]
        if len(used) > 1 and any(used):
            node.resize_outputs(max(index for index, is_used in enumerate(used) if is_used) + 1)


def check_operators(model: onnx_ir.Model, opset: int) -> None:
    """Sees to it that every operator, with its attributes, exists at `opset`.

    Raises:
        RungSkipped: one does not.
    """
    import onnx

    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            raise RungSkipped(f"mobius uses {node.domain}::{node.op_type}, which is not plain ONNX")
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError as cause:
            raise RungSkipped(f"{node.op_type} does not exist at opset {opset}") from cause
        unknown = set(node.attributes) - set(schema.attributes)
        if unknown:
            raise RungSkipped(f"{node.op_type} has no {unknown.pop()} at opset {opset}")


def _lower_one(
    graph: onnx_ir.Graph,
    node: onnx_ir.Node,
    heads: int,
    scale: float | None,
    bias: onnx_ir.Value | None,
) -> None:
    if scale is None:
        raise RungSkipped("its attention leaves the scale to the runtime")
    dtype = _float_of(node)
    split = _constant(graph, f"split_{heads}", [0, 0, heads, -1], "int64")
    merge = _constant(graph, "merge", [0, 0, -1], "int64")
    by_head = []
    for value, order in zip(
        node.inputs[:3], ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True
    ):
        parted = _before(graph, node, "Reshape", [value, split])
        by_head.append(_before(graph, node, "Transpose", [parted], {"perm": order}))
    query, key, value = by_head
    factor = _constant(graph, f"scale_{scale:.6g}", scale, dtype)
    query = _before(graph, node, "Mul", [query, factor])
    scores = _before(graph, node, "MatMul", [query, key])  # (batch, heads, queries, keys)
    if bias is not None:
        scores = _before(graph, node, "Add", [scores, bias])
    weights = _before(graph, node, "Softmax", [scores], {"axis": -1})
    mixed = _before(graph, node, "MatMul", [weights, value])
    mixed = _before(graph, node, "Transpose", [mixed], {"perm": [0, 2, 1, 3]})
    mixed = _before(graph, node, "Reshape", [mixed, merge])  # (batch, queries, heads x size)
    old = node.outputs[0]
    mixed.type, mixed.shape = old.type, old.shape
    old.replace_all_uses_with(mixed, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _float_of(node: onnx_ir.Node) -> Any:
    query = node.inputs[0]
    return (query.dtype if query is not None else None) or node.outputs[0].dtype


def _bias(graph: onnx_ir.Graph, node: onnx_ir.Node, mask: onnx_ir.Value, dtype: Any) -> Any:
    zero = _constant(graph, "mask_keep", 0.0, dtype)
    masked = _constant(graph, "mask_drop", _MASKED, dtype)
    bias = _before(graph, node, "Where", [mask, zero, masked], name="mask_bias")
    return bias


def _constant(graph: onnx_ir.Graph, name: str, content: Any, dtype: Any) -> onnx_ir.Value:
    """An initializer; one of that name that is there already is shared."""
    import numpy as np
    import onnx_ir

    name = f"convkit.{name}"
    if name in graph.initializers:
        return graph.initializers[name]
    kind = onnx_ir.DataType.INT64 if dtype == "int64" else dtype or onnx_ir.DataType.FLOAT
    tensor = onnx_ir.tensor(np.asarray(content).astype(kind.numpy()), dtype=kind, name=name)
    value = onnx_ir.Value(
        name=name,
        shape=onnx_ir.Shape(np.asarray(content).shape),
        type=onnx_ir.TensorType(kind),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _before(
    graph: onnx_ir.Graph,
    node: onnx_ir.Node,
    operator: str,
    inputs: Sequence[onnx_ir.Value | None],
    attributes: dict[str, Any] | None = None,
    name: str = "",
) -> Any:
    import onnx_ir

    made = onnx_ir.node(operator, inputs=inputs, attributes=attributes or {})
    made.outputs[0].name = f"convkit.{name}" if name else None
    graph.insert_before(node, made)
    return made.outputs[0]


def _append(
    graph: onnx_ir.Graph,
    operator: str,
    inputs: Sequence[onnx_ir.Value],
    attributes: dict[str, Any],
) -> Any:
    import onnx_ir

    made = onnx_ir.node(operator, inputs=inputs, attributes=attributes)
    graph.append(made)
    return made.outputs[0]
