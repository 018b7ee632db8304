"""Models that are quantized already: told by their operators, and never quantized twice."""

from __future__ import annotations

from collections import Counter
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
    "QGemm": "qoperator", "QAttention": "qoperator", "QEmbedLayerNormalization": "qoperator",
    "MatMulNBits": "block", "MatMulBnb4": "block", "MatMulFpQ4": "block", "QMoE": "block",
    "GatherBlockQuantized": "block",
}  # fmt: skip
"""Operator -> the kind of quantization it is a sign of; all that begin with QLinear are too.

Source: onnxruntime, docs/ContribOperators.md, and the quantization page of its documentation.
"""

_IN_WORDS = {
    "qdq": "values held in integers (QDQ)",
    "dynamic": "products quantized as they run (dynamic)",
    "qoperator": "operators on integers (QOperator)",
    "block": "weights in blocks",
    "packed": "weights kept in integers that become float (packed)",
}

_UNPACKING = ("Cast", "Gather")
_LEAST_UNPACKED = 1024
"""Elements from which on an integer constant that is cast is taken for a weight."""


def _kind_of(operator: str) -> str | None:
    """The kind of quantization that an operator is a sign of."""
    if operator.startswith("QLinear"):
        return "qoperator"
    return "packed" if operator in _UNPACKING else SIGNS.get(operator)


@dataclass(frozen=True)
class Recognised:
    """Signs of quantization in a graph.

    Attributes:
        operators: operator -> count, of those that are a sign; Cast and Gather are those of
            integer weights.
    """

    operators: Mapping[str, int]

    @property
    def kinds(self) -> tuple[str, ...]:
        """`qdq`, `dynamic`, `qoperator`, `block` or `packed`, sorted."""
        found = {kind for name in self.operators if (kind := _kind_of(name))}
        if "dynamic" in found and "DequantizeLinear" not in self.operators:
            found.discard("qdq")  # QuantizeLinear alone rounds rows by scales as they come
        return tuple(sorted(found))

    def __str__(self) -> str:
        kinds = ", ".join(_IN_WORDS[kind] for kind in self.kinds)
        counts = ", ".join(f"{name} {count}" for name, count in self.operators.items())
        return f"It has {kinds}: {counts}"


def recognised_in(
    operators: Mapping[str, int], unpacked: Mapping[str, int] | None = None
) -> Recognised | None:
    """Signs among operators; None where there are none.

    Args:
        operators: with their counts, domains left out.
        unpacked: Cast and Gather that integer weights go through, with their counts.
    """
    found = {
        name: count
        for name, count in operators.items()
        if name not in _UNPACKING and _kind_of(name) is not None
    }
    found.update(unpacked or {})
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return Recognised(dict(ranked)) if found else None


def recognised(model: ir.Model) -> Recognised | None:
    """Signs in a graph and the bodies inside it; None where there are none."""
    from convkit.onnx_typing import nodes_of

    operators, unpacked = Counter[str](), Counter[str]()
    for node in nodes_of(model.graph):
        operators[node.op_type] += 1
        if node.op_type in _UNPACKING and _reads_integer_weight(node):
            unpacked[node.op_type] += 1
    return recognised_in(operators, unpacked)


def _reads_integer_weight(node: ir.Node) -> bool:
    from convkit.quantization.layers import element_count

    value = node.inputs[0]
    if value is None or value.const_value is None:
        return False
    dtype = value.const_value.dtype.name
    return dtype.endswith(("INT8", "INT4")) and element_count(value) >= _LEAST_UNPACKED


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
