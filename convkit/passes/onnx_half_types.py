"""What operator schemas allow: which inputs and outputs of a node may be half precision.

The answer comes from the schema of the operator at the model's opset (ONNX's own, else ONNX
Runtime's for its `com.microsoft` domain), never from a list of names. An operator nobody has a
schema for keeps its types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convkit.errors import UnsupportedError
from convkit.onnx_typing import bodies_of, opset_of, schema_of

if TYPE_CHECKING:
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

CARRIERS = frozenset((
    "Cast", "CastLike", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose",
    "Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND", "Expand", "Tile",
    "DepthToSpace", "SpaceToDepth", "ReverseSequence", "Compress", "Trilu", "Where",
))  # fmt: skip
"""Operators that only move elements: their output holds elements of their inputs, unrounded."""

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})

_TREES = "ai.onnx.ml"
"""Thresholds of trees and tables: rounded features take other branches."""

_FIXED = frozenset({"BitCast"})
"""Operators about the bits of a type."""

QUANTIZERS = frozenset((
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
    "MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "GatherBlockQuantized", "QMoE",
))  # fmt: skip
"""Kept in fp32: a rounded scale would move every code it belongs to.

Source: onnxruntime, docs/ContribOperators.md, for those of its own.
"""

GENERATORS = frozenset(DTYPE_ATTRIBUTES) - {"Cast"}
"""Operators that make values from no float input. ONNX Runtime has fp32 kernels for them only, and
casts around an operator only where one of its inputs is half; so they stay fp32, a Cast follows."""

_READS_NO_ELEMENTS = frozenset(
    {"Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"}
)
_STASH_OUTPUTS = {"LayerNormalization": (1, 2), "SimplifiedLayerNormalization": (1,)}
"""Outputs in the type that the norm computes in (`stash_type`, fp32)."""

OLDEST_OPSET = {"fp16": 7, "bf16": 13}
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
    formal = schema_of(node.domain, node.op_type, opset)
    tensors = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name]
    if (
        formal is None
        or bodies_of(node)
        or node.domain == _TREES
        or node.op_type in QUANTIZERS | _FIXED
    ):
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
    if node.op_type in GENERATORS:
        outputs = [False] * len(outputs)
    for index in _STASH_OUTPUTS.get(node.op_type, ()):
        if index < len(outputs):
            outputs[index] = False
    return Slots(tuple(inputs), tuple(outputs))


def is_control_flow(node: ir.Node) -> bool:
    """Whether a node is an If, Loop or Scan whose bodies share values with it as today.

    Scan of opset 8 has one more input, and a batch dimension.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in _CONTROL_FLOW:
        return False
    return node.op_type != "Scan" or len(node.inputs) == len(
        node.attributes["body"].as_graph().inputs
    )


def reads_elements(node: ir.Node) -> bool:
    """Whether the type of a node's input matters to it; Shape only asks for sizes."""
    return node.op_type not in _READS_NO_ELEMENTS


def check_opset(model: ir.Model, name: str) -> None:
    """Raises UnsupportedError where the model's opset is older than `fp16` or `bf16` in it."""
    opset = opset_of(model, "")
    oldest = OLDEST_OPSET[name]
    if opset < oldest:
        raise UnsupportedError(
            f"The model has ONNX opset {opset}; {name} needs {oldest} or newer.",
            hint="Export the model again with a newer opset:  --opset 18",
            opset=opset,
        )
