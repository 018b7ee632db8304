"""Weights as 8-bit floats (e4m3) with a scale per block of a matrix, as DeepSeek has them.

`NAME` F8_E4M3 (..., outputs, inputs); `NAME_scale_inv` (..., outputs / 128, inputs / 128), rounded
up, is what a block is multiplied with, or one number for the whole tensor.

Source: `weight_dequant` in deepseek-ai/DeepSeek-V3, `inference/kernel.py`; transformers,
`integrations/finegrained_fp8.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, cached_property

import numpy as np

from convkit.checkpoint.rows import Array, Computed
from convkit.checkpoint.stored import misfit, whole
from convkit.errors import UnsupportedError
from convkit.safetensors_file import StoredTensor


class Fp8Rows(Computed):
    """A tensor of 8-bit floats.

    Args:
        name: of the original tensor.
        parts: `weight`, `scale_inv`.
        block: (outputs, inputs) of a block; None where one scale is for all.

    Raises:
        ModelError: the parts do not fit each other.
        UnsupportedError: it has other elements.
    """

    def __init__(
        self, name: str, parts: Mapping[str, StoredTensor], block: Sequence[int] | None
    ) -> None:
        self._weight, self._scale = parts["weight"], parts["scale_inv"]
        self.shape = self._weight.shape
        if self._weight.dtype not in ("F8_E4M3", "F8_E5M2") or len(self.shape) < 2:
            raise UnsupportedError(
                f"The quantized tensor '{name}' is no matrix of 8-bit floats.",
                why=f"It is {self._weight.dtype}{list(self.shape)}.",
            )
        self._block = tuple(block) if block and math.prod(self._scale.shape) > 1 else None
        if self._block:
            wanted = (
                *self.shape[:-2],
                *(-(-n // size) for n, size in zip(self.shape[-2:], self._block, strict=True)),
            )
            if self._scale.shape != wanted:
                raise misfit(
                    name,
                    f"{list(self.shape)} in blocks of {list(self._block)} takes scales "
                    f"{list(wanted)}; there are {list(self._scale.shape)}.",
                )

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        width = self.row_length
        octets = np.frombuffer(self._weight.read(begin * width, end * width), np.uint8)
        rows: Array = _values(self._weight.dtype)[octets].reshape(end - begin, width)
        if self._block is None:
            rows *= self._scales
            return rows
        height, columns = self._block
        number, row = np.divmod(np.arange(begin, end), self.shape[-2])
        blocks = number * self._scale.shape[-2] + row // height
        rows *= np.repeat(self._scales[blocks], columns, axis=1)[:, :width]
        return rows

    @cached_property
    def _scales(self) -> Array:
        """Scales (all rows of blocks, blocks of a row), or one: float32."""
        content = self._scale.read(0, self._scale.byte_count)
        if self._scale.dtype == "F8_E8M0":
            scales = _values("F8_E8M0")[np.frombuffer(content, np.uint8)]
        else:
            scales = whole(self._scale)
        columns = self._scale.shape[-1] if self._block else 1
        table: Array = scales.reshape(-1, columns)
        return table


@cache
def _values(dtype: str) -> Array:
    """What each byte stands for: float32 (256)."""
    import ml_dtypes

    kind = {
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }[dtype]
    values: Array = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
    return values
