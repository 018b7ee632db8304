"""Weights of an ONNX file that are quantized: which they are, and what shares a scale.

Source of the positions of inputs: onnx, docs/Operators.md; onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from convkit.formats.onnx_tensor import TensorHeader

_PACKED: Mapping[str, int] = {
    "MatMulNBits": 1, "MatMulBnb4": 1, "MatMulFpQ4": 1, "GatherBlockQuantized": 0,
}  # fmt: skip
"""Operator -> its weight, which holds several values a byte; scales and their like follow it."""

_SCALED: Mapping[str, tuple[tuple[int, int], ...]] = {
    "DequantizeLinear": ((0, 1),), "QuantizeLinear": ((0, 1),), "QLinearConv": ((3, 4),),
    "QLinearMatMul": ((3, 4),), "QGemm": ((3, 4),), "MatMulInteger": ((1, 3),),
    "ConvInteger": ((1, 3),), "MatMulIntegerToFloat": ((1, 3),), "DynamicQuantizeMatMul": ((1, 2),),
    "DynamicQuantizeLSTM": ((1, 8), (2, 10)), "QAttention": ((1, 4),),
    **{name: ((weight, 2),) for name, weight in _PACKED.items()},
}  # fmt: skip
"""Operator -> its weights, each with the scale or, where it takes none, the zero point."""

_SCALES: Mapping[str, tuple[int, ...]] = {
    "DequantizeLinear": (1, 2), "QuantizeLinear": (1, 2), "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7), "QGemm": (1, 2, 4, 5, 7, 8), "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3), "MatMulIntegerToFloat": (2, 3, 4, 5), "DynamicQuantizeMatMul": (2, 3),
    "DynamicQuantizeLSTM": (8, 9, 10, 11), "QAttention": (3, 4, 6, 7),
    "MatMulNBits": (2, 3, 4, 5), "MatMulBnb4": (2,), "MatMulFpQ4": (2,),
    "GatherBlockQuantized": (2, 3),
}  # fmt: skip
"""Operator -> its scales and zero points, and what else of its inputs is no weight."""

_ZERO_OF_RESULT: Mapping[str, int] = {
    "QuantizeLinear": 2, "QLinearConv": 7, "QLinearMatMul": 7, "QGemm": 8,
}  # fmt: skip

_UNPACKING = ("Cast", "Gather")
"""Operators that integers go through which become weights only when the model is opened or run."""

READERS = frozenset((*_SCALED, *_UNPACKING, "Mul"))
"""Operators whose inputs `Reads.note` wants to see."""

_LEAST_UNPACKED = 1024
"""Elements from which on an integer constant is taken for a weight, not for indices."""


@dataclass
class Reads:
    """How the nodes of a file read what may be quantized weights.

    Attributes:
        packed: weight that holds several values a byte -> bits a value.
        scales: names of scales and zero points, which are no weights.
        scale_of: weight -> its scale or zero point.
        block_of: weight -> elements that share a scale, where the operator says it.
        rounded: float value that QuantizeLinear takes -> its zero point.
        zeros: zero points of activations.
        unpacked: (operator, its first input) of Cast and Gather.
    """

    packed: dict[str, int] = field(default_factory=dict)
    scales: set[str] = field(default_factory=set)
    scale_of: dict[str, str] = field(default_factory=dict)
    block_of: dict[str, int] = field(default_factory=dict)
    rounded: dict[str, str] = field(default_factory=dict)
    zeros: set[str] = field(default_factory=set)
    unpacked: list[tuple[str, str]] = field(default_factory=list)
    _cast: dict[str, str] = field(default_factory=dict)

    def note(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], ints: Mapping[str, int]
    ) -> None:
        """Takes a node into account; nodes come in the order of the graph."""
        if op_type in _UNPACKING:
            self.unpacked.append((op_type, inputs[0]))
            self._cast.update(dict.fromkeys(outputs, inputs[0]) if op_type == "Cast" else {})
        elif op_type == "Mul":
            if inputs[0] in self._cast:
                self.scale_of[self._cast[inputs[0]]] = inputs[1]
        else:
            self._note_scaled(op_type, inputs, ints)

    def _note_scaled(self, op_type: str, inputs: Sequence[str], ints: Mapping[str, int]) -> None:
        self.scales.update(inputs[at] for at in _SCALES[op_type] if at < len(inputs))
        for weight, scale in _SCALED[op_type]:
            if weight >= len(inputs):
                continue
            name = inputs[weight]
            if scale < len(inputs):
                self.scale_of[name] = inputs[scale]
            if op_type in _PACKED:
                self.packed[name] = ints.get("bits", 4)
            if ints.get("block_size"):
                self.block_of[name] = ints["block_size"]
        zero = _ZERO_OF_RESULT.get(op_type, len(inputs))
        if zero < len(inputs):
            self.zeros.add(inputs[zero])
        if op_type == "QuantizeLinear":
            self.rounded[inputs[0]] = inputs[2] if len(inputs) > 2 else ""


@dataclass(frozen=True)
class Weight:
    """A weight as it counts.

    Attributes:
        dtype: of its elements, not of the bytes that they are packed in.
        element_count: the same.
        sharing: what shares a scale: `per tensor`, `per channel`, `in blocks of 32`; empty where
            it is float, or nothing says it.
    """

    dtype: str
    element_count: int
    sharing: str = ""


def weights_of(tensors: Sequence[TensorHeader], reads: Reads) -> Iterator[Weight]:
    """The weights among a file's tensors, indices and shapes left in; no scales, no zero points."""
    known = {tensor.name: tensor for tensor in tensors}
    scales = reads.scales | _scales_of_unpacked(known, reads)
    for tensor in tensors:
        if tensor.name not in scales:
            yield _weight(tensor, known, reads)


def _weight(tensor: TensorHeader, known: Mapping[str, TensorHeader], reads: Reads) -> Weight:
    dtype, count = tensor.dtype, tensor.element_count
    bits = reads.packed.get(tensor.name)
    if bits:
        dtype = "uint8" if bits > 4 else "uint4"  # `q4` is the lowest precision with a name
        if tensor.dtype.endswith("int8"):
            count = tensor.dense_bytes * 8 // bits
    elif tensor.name in reads.rounded:
        zero = known.get(reads.rounded[tensor.name])
        dtype = zero.dtype if zero else "uint8"
    scale = known.get(reads.scale_of.get(tensor.name, ""))
    if dtype.startswith("float") or (scale is None and not bits):
        return Weight(dtype, count)
    block = reads.block_of.get(tensor.name)
    if not block and scale and (scale.element_count == 1 or _is_scaled_by_operator(tensor, reads)):
        sharing = "per tensor" if scale.element_count == 1 else "per channel"
    elif block or scale:
        block = block or count // max(1, scale.element_count if scale else 1)
        sharing = f"in blocks of {block}"
    else:
        sharing = ""
    return Weight(dtype, count, sharing)


def _is_scaled_by_operator(tensor: TensorHeader, reads: Reads) -> bool:
    """Whether an operator takes the scale with the weight; else Mul applies it to rows."""
    return reads.scale_of[tensor.name] in reads.scales


def _scales_of_unpacked(known: Mapping[str, TensorHeader], reads: Reads) -> set[str]:
    """What weights are multiplied with that are cast from integers."""
    cast = {name for kind, name in reads.unpacked if kind == "Cast"}
    return {
        scale
        for name, scale in reads.scale_of.items()
        if name in cast and name in known and known[name].dtype.endswith("int8")
    }


def unpacked_in(tensors: Sequence[TensorHeader], reads: Reads) -> Counter[str]:
    """Cast and Gather nodes that integer weights go through, counted."""
    weights = {
        tensor.name
        for tensor in tensors
        if tensor.dtype.endswith(("int8", "int4")) and tensor.element_count >= _LEAST_UNPACKED
    }
    return Counter(kind for kind, name in reads.unpacked if name in weights)


def activations_of(tensors: Sequence[TensorHeader], reads: Reads) -> list[str]:
    """What activations are quantized to beforehand, by dtype."""
    known = {tensor.name: tensor.dtype for tensor in tensors}
    weights = {zero for name, zero in reads.rounded.items() if name in known}
    return sorted({known[zero] for zero in reads.zeros - weights if zero in known})
