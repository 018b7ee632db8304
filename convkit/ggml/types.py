"""The tensor types of ggml: how many elements a block holds, and in how many bytes.

A quantized row is a sequence of blocks; a block's elements share scales. Rows are a whole number of
blocks, so any range of rows is a range of bytes.

Source: ggml, `include/ggml.h` (`enum ggml_type`) and `src/ggml-common.h` (`block_*` structures);
`include/llama.h` (`enum llama_ftype`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convkit.artifact import Precision


@dataclass(frozen=True)
class GgmlType:
    """A tensor type.

    Attributes:
        name: in ggml's spelling, `Q4_K`.
        number: as files hold it.
        block_length: elements in a block.
        block_bytes: bytes of a block.
    """

    name: str
    number: int
    block_length: int
    block_bytes: int

    @property
    def is_quantized(self) -> bool:
        """Whether elements share scales."""
        return self.block_length > 1

    @property
    def bits(self) -> float:
        """Bits per element, scales included."""
        return 8 * self.block_bytes / self.block_length

    def row_bytes(self, length: int) -> int:
        """Bytes of a row of `length` elements, a multiple of the block's."""
        return length // self.block_length * self.block_bytes

    def __str__(self) -> str:
        return self.name


_TABLE = (
    ("F32", 0, 1, 4), ("F16", 1, 1, 2), ("Q4_0", 2, 32, 18), ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22), ("Q5_1", 7, 32, 24), ("Q8_0", 8, 32, 34), ("Q8_1", 9, 32, 36),
    ("Q2_K", 10, 256, 84), ("Q3_K", 11, 256, 110), ("Q4_K", 12, 256, 144), ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210), ("Q8_K", 15, 256, 292), ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74), ("IQ3_XXS", 18, 256, 98), ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18), ("IQ3_S", 21, 256, 110), ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136), ("I8", 24, 1, 1), ("I16", 25, 1, 2), ("I32", 26, 1, 4),
    ("I64", 27, 1, 8), ("F64", 28, 1, 8), ("IQ1_M", 29, 256, 56), ("BF16", 30, 1, 2),
    ("TQ1_0", 34, 256, 54), ("TQ2_0", 35, 256, 66), ("MXFP4", 39, 32, 17),
)  # fmt: skip

TYPES: Mapping[str, GgmlType] = {row[0]: GgmlType(*row) for row in _TABLE}
"""Name -> type."""

NO_WEIGHTS = frozenset(("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"))
"""Types of activations and of tables: nothing is quantized to them."""

BY_NUMBER: Mapping[int, GgmlType] = {kind.number: kind for kind in TYPES.values()}
"""Number in a file -> type."""


@dataclass(frozen=True)
class Scheme:
    """A way of quantizing a whole model, as users name it.

    Attributes:
        name: `q4_k_m`.
        file_type: the number in `general.file_type`.
        default: the type of most tensors.
        precision: the class it belongs to.
    """

    name: str
    file_type: int
    default: GgmlType
    precision: Precision


_SCHEMES = (
    ("f32", 0, "F32", Precision.FP32), ("f16", 1, "F16", Precision.FP16),
    ("bf16", 32, "BF16", Precision.BF16), ("q8_0", 7, "Q8_0", Precision.INT8),
    ("q4_0", 2, "Q4_0", Precision.Q4), ("q4_1", 3, "Q4_1", Precision.Q4),
    ("q5_0", 8, "Q5_0", Precision.Q4), ("q5_1", 9, "Q5_1", Precision.Q4),
    ("q2_k", 10, "Q2_K", Precision.Q4), ("q3_k_s", 11, "Q3_K", Precision.Q4),
    ("q3_k_m", 12, "Q3_K", Precision.Q4), ("q4_k_s", 14, "Q4_K", Precision.Q4),
    ("q4_k_m", 15, "Q4_K", Precision.Q4), ("q5_k_s", 16, "Q5_K", Precision.Q4),
    ("q5_k_m", 17, "Q5_K", Precision.Q4), ("q6_k", 18, "Q6_K", Precision.Q4),
    ("iq4_nl", 25, "IQ4_NL", Precision.Q4), ("iq4_xs", 30, "IQ4_XS", Precision.Q4),
)  # fmt: skip

SCHEMES: Mapping[str, Scheme] = {
    name: Scheme(name, number, TYPES[kind], precision) for name, number, kind, precision in _SCHEMES
}
"""Name -> scheme. `q4` stands for every scheme of fewer than 8 bits."""

DEFAULT_SCHEMES: Mapping[Precision, str] = {
    Precision.FP32: "f32",
    Precision.FP16: "f16",
    Precision.BF16: "bf16",
    Precision.INT8: "q8_0",
    Precision.Q4: "q4_k_m",
}
"""The scheme that a precision alone means."""
