"""Models that are quantized already: told by their operators, and never quantized twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convkit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir

    from convkit.artifact import Artifact
    from convkit.step import Work

SIGNS: Mapping[str, str] = {
    "QuantizeLinear": "qdq", "DequantizeLinear": "qdq",
    "DynamicQuantizeLinear": "dynamic", "DynamicQuantizeMatMul": "dynamic",
    "DynamicQuantizeLSTM": "dynamic", "ConvInteger": "dynamic", "MatMulInteger": "dynamic",
    "MatMulIntegerToFloat": "dynamic",
    "QLinearConv": "qoperator", "QLinearMatMul": "qoperator", "QLinearAdd": "qoperator",
    "QLinearMul": "qoperator", "QLinearSigmoid": "qoperator", "QLinearSoftmax": "qoperator",
    "QLinearConcat": "qoperator", "QLinearAveragePool": "qoperator", "QGemm": "qoperator",
    "QLinearGlobalAveragePool": "qoperator", "QLinearLeakyRelu": "qoperator",
    "QLinearReduceMean": "qoperator", "QLinearWhere": "qoperator",
    "QAttention": "qoperator", "QEmbedLayerNormalization": "qoperator",
    "MatMulNBits": "block", "MatMulBnb4": "block", "MatMulFpQ4": "block", "QMoE": "block",
    "GatherBlockQuantized": "block",
}  # fmt: skip
"""Operator -> the kind of quantization it is a sign of.

Source: onnxruntime, docs/ContribOperators.md, and the quantization page of its documentation.
"""

_IN_WORDS = {
    "qdq": "values held in integers (QDQ)",
    "dynamic": "products quantized as they run (dynamic)",
    "qoperator": "operators on integers (QOperator)",
    "block": "weights in blocks",
}


@dataclass(frozen=True)
class Recognised:
    """Signs of quantization in a graph.

    Attributes:
        operators: operator -> count, of those that are a sign.
    """

    operators: Mapping[str, int]

    @property
    def kinds(self) -> tuple[str, ...]:
        """`qdq`, `dynamic`, `qoperator` or `block`, sorted."""
        return tuple(sorted({SIGNS[name] for name in self.operators}))

    def __str__(self) -> str:
        kinds = ", ".join(_IN_WORDS[kind] for kind in self.kinds)
        counts = ", ".join(f"{name} {count}" for name, count in self.operators.items())
        return f"It has {kinds}: {counts}"


def recognised_in(operators: Mapping[str, int]) -> Recognised | None:
    """Signs among operators, domain left out, with their counts; None where there are none."""
    found = {name: count for name, count in operators.items() if name in SIGNS}
    return Recognised(dict(sorted(found.items(), key=lambda item: -item[1]))) if found else None


def recognised(model: ir.Model) -> Recognised | None:
    """Signs in a graph and the bodies inside it; None where there are none."""
    from convkit.onnx_typing import nodes_of

    counts: dict[str, int] = {}
    for node in nodes_of(model.graph):
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return recognised_in(counts)


def refuse_quantized(model: ir.Model, source: Artifact, work: Work) -> None:
    """Sees to it that a model is quantized once only; the user may insist.

    Raises:
        UnsupportedError: it is quantized, in part at least.
    """
    found = recognised(model)
    if found is None:
        return
    if work.is_forced:
        work.note(f"The model is quantized already, in part. {found}.")
        return
    raise UnsupportedError(
        f"{source.path} is quantized already, and quantizing it again would lose more.",
        why=str(found),
        hint="Start from the model in floating point, or quantize what is left:  --force",
    )
