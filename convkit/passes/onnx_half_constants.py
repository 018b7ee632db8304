"""Constants in half precision: what fits, what does not, and the arrays that replace them.

A weight is never clamped in silence. One that half precision cannot hold keeps fp32 together with
the operators that read it. The single exception is a bound (Clip, Min, Max): no half value lies
beyond the largest one, so saturating the bound changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.onnx_structure import array_of
from convkit.onnx_typing import graphs_of
from convkit.passes.onnx_half_types import is_float

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]

_COARSE = 0.05
"""A constant whose rounding moves it by more than 5 % in the L2 norm keeps fp32. Ordinary weights
move by 2^-12 (fp16) and 2^-9 (bf16); only subnormal ones, an epsilon of 1e-7 say, come near."""


@dataclass(frozen=True)
class Half:
    """A half precision: its name, and where its numbers end.

    Attributes:
        name: as in convkit, `fp16` or `bf16`.
        onnx_dtype: TensorProto.DataType.
        largest: largest finite number.
        reach: largest magnitude of a constant that becomes `largest`: fp16 rounds 65519 to 65504;
            in bf16 the largest fp32 number, a usual mask, is one unit in the last place above
            bf16's largest and takes it, an error of the size that any rounding has.
        spacing: distance between subnormal numbers.
        exact_integer: every integer up to here is a number of this type.

    Source: IEEE 754-2019 binary16; "BFLOAT16 - Hardware Numerics Definition", Intel 2018.
    """

    name: str
    onnx_dtype: int
    largest: float
    reach: float
    spacing: float
    exact_integer: int

    @property
    def smallest_normal(self) -> float:
        """The smallest number with all digits: 2^-14 in fp16, 2^-126 in bf16."""
        return self.spacing * self.exact_integer / 2

    @property
    def dtype(self) -> ir.DataType:
        """The type in onnx-ir."""
        import onnx_ir as ir

        return ir.DataType(self.onnx_dtype)

    def rounded(self, array: Array) -> Array:
        """`array` in this precision, to nearest even; finite numbers beyond the largest take it."""
        import numpy as np

        if array.size and max(-array.min(), array.max()) > self.largest:
            inside = np.clip(array, -self.largest, self.largest)
            array = np.where(np.isinf(array), array, inside)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.asarray(array.astype(self.dtype.numpy()))


FP16 = Half("fp16", 10, 65504.0, 65519.0, 2.0**-24, 2048)
BF16 = Half("bf16", 16, (2 - 2.0**-7) * 2.0**127, (2 - 2.0**-23) * 2.0**127, 2.0**-133, 256)


@dataclass(frozen=True)
class Constant:
    """What is known of a constant before it is converted.

    Attributes:
        low, high: smallest and largest element.
        fault: why half precision cannot hold it; "" where it can.
        is_too_small: the fault is at the lower end of the range.
    """

    low: float
    high: float
    fault: str = ""
    is_too_small: bool = False


def tensor_of(value: ir.Value | None) -> Any:
    """The tensor behind an initializer or a Constant node's output; None for anything else."""
    import onnx_ir as ir

    if value is None or value.is_graph_input():
        return None
    node = value.producer()
    if node is None:
        return value.const_value if value.is_initializer() else None
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for name in ("value", "value_float", "value_floats"):
        if name in node.attributes:
            content = node.attributes[name].value
            return content if name == "value" else ir.tensor(content, dtype=ir.DataType.FLOAT)
    return None


def constants_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every float constant of a graph and its bodies."""
    for each in graphs_of(graph):
        for value in each.initializers.values():
            if is_float(value) and tensor_of(value) is not None:
                yield value
        for node in each:
            if node.op_type == "Constant" and is_float(node.outputs[0]):
                yield node.outputs[0]


def examine(graph: ir.Graph, folder: Path, half: Half) -> dict[ir.Value, Constant]:
    """Looks at every float constant once, one at a time."""
    return {
        value: _examine(array_of(tensor_of(value), folder), half)
        for value in constants_of(graph)
        if tensor_of(value) is not None
    }


def _examine(array: Array, half: Half) -> Constant:
    import numpy as np

    if array.size == 0:
        return Constant(0.0, 0.0)
    low, high = float(array.min()), float(array.max())
    absmax = max(abs(low), abs(high))
    if not np.isfinite(absmax):
        finite = array[np.isfinite(array)]
        inner = _examine(finite, half)
        return Constant(low, high, inner.fault, inner.is_too_small)
    if absmax > half.reach:
        return Constant(low, high, f"|w| up to {absmax:.4g}")
    if absmax == 0:
        return Constant(low, high)
    if half.spacing / 2 * np.sqrt(array.size) <= _COARSE * absmax:
        return Constant(low, high)  # even if every element were subnormal
    return Constant(low, high, *_too_small(array, half))


def _too_small(array: Array, half: Half) -> tuple[str, bool]:
    import numpy as np

    flat = array.reshape(-1)
    wide = flat.astype(np.float64)
    rounded = half.rounded(flat).astype(np.float64)
    largest = float(np.abs(wide).max())
    if not rounded.any():
        return f"{largest:.3g} would become 0", True
    error = float(np.linalg.norm(rounded - wide) / np.linalg.norm(wide))
    return (f"{largest:.3g} would be off by {error:.0%}", True) if error > _COARSE else ("", False)
