"""The layers of a graph that quantization is about: products with constant weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convkit.quantization.targets import Target

if TYPE_CHECKING:
    import onnx_ir as ir

LAYER_TYPES = frozenset(("Conv", "Gemm", "MatMul"))
"""Operators with int8 kernels for constant weights.

Source: onnxruntime, docs/OperatorKernels.md: QLinearConv, QGemm, QLinearMatMul and
MatMulIntegerToFloat of the CPU; no QLinearConvTranspose.
"""


@dataclass(frozen=True)
class Layer:
    """A node whose second input is a constant weight.

    Attributes:
        name: of the node.
        op_type: Conv, Gemm or MatMul.
        parameter_count: elements of weight and bias.
        weight: name of the weight.
        inputs: names of the activations that it reads.
        outputs: names of what it computes.
    """

    name: str
    op_type: str
    parameter_count: int
    weight: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def layers_of(model: ir.Model, target: Target) -> list[Layer]:
    """The layers of the main graph that `target` computes in int8, in the graph's order."""
    found = []
    for node in model.graph:
        if refusal_of(node) is not None:
            continue
        weights = [value for value in node.inputs[1:] if value is not None]
        found.append(
            Layer(
                node.name or "",
                node.op_type,
                sum(element_count(value) for value in weights if is_constant(value)),
                weights[0].name or "",
                tuple(v.name or "" for v in node.inputs if v is not None and not is_constant(v)),
                tuple(value.name or "" for value in node.outputs),
            )
        )
    return found


def refusal_of(node: ir.Node) -> str | None:
    """Why a node is no layer that can be quantized, in words; None where it is one.

    The empty string: it is no layer at all, for nothing in it is a product with weights.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in LAYER_TYPES:
        return ""
    data, weight = node.inputs[0], node.inputs[1]
    if data is None or weight is None or not is_float32(weight):
        return ""
    if is_constant(data):
        return "its first factor is the constant one" if not is_constant(weight) else ""
    if not is_constant(weight):
        return "its weight is computed" if node.op_type == "Conv" else ""
    if node.op_type == "MatMul" and rank_of(weight) != 2:
        return "its weight is no matrix"
    if node.op_type == "Gemm":
        return _refusal_of_gemm(node)
    return _refusal_of_bias(node)


def _refusal_of_gemm(node: ir.Node) -> str | None:
    if int_attribute(node, "transA", 0):
        return "its data are transposed"
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        beta = node.attributes.get("beta")
        if beta is not None and beta.as_float() != 1.0:
            return "its bias is scaled"
        columns = 0 if int_attribute(node, "transB", 0) else 1
        shape = node.inputs[1].shape if node.inputs[1] is not None else None
        bias = node.inputs[2].shape
        if shape is None or bias is None or element_count(node.inputs[2]) != shape[columns]:
            return "its bias is not one number for each output"
    return _refusal_of_bias(node)


def _refusal_of_bias(node: ir.Node) -> str | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return "its bias is computed" if bias is not None and not is_constant(bias) else None


def output_axis(node: ir.Node) -> int:
    """The axis of the weight that runs over the outputs of a layer."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and int_attribute(node, "transB", 0) else 1


def channel_axis(node: ir.Node) -> int:
    """The axis of what a layer computes that runs over its outputs."""
    return 1 if node.op_type == "Conv" else -1


def is_constant(value: ir.Value) -> bool:
    """Whether the value is known before the graph runs."""
    return value.const_value is not None and not value.is_graph_input()


def is_float32(value: ir.Value | None) -> bool:
    """Whether the value is a tensor of float32."""
    import onnx_ir as ir

    return value is not None and value.dtype == ir.DataType.FLOAT


def element_count(value: ir.Value) -> int:
    """Elements of a constant."""
    tensor = value.const_value
    return 0 if tensor is None else math.prod(int(size) for size in tensor.shape.numpy())


def rank_of(value: ir.Value) -> int | None:
    """Number of dimensions; None where unknown."""
    return None if value.shape is None else len(value.shape)


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An attribute that is an integer, or its default."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()
