"""Weights that AWQ quantized, version GEMM: integers of 4 bits, packed along the outputs.

Of a linear layer with `inputs` and `outputs` there are

- `qweight` int32 (inputs, outputs / 8): of the eight outputs in a word, output 0 is in the lowest
  four bits, then come 2, 4, 6, 1, 3, 5, 7;
- `qzeros` int32 (groups, outputs / 8): zero points, packed alike;
- `scales` float (groups, outputs). A group is as many neighbouring inputs.

Source: AutoAWQ, `awq/utils/packing_utils.py` and `awq/modules/linear/gemm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from convkit.checkpoint.grouped import scaled
from convkit.checkpoint.rows import Array, Computed
from convkit.checkpoint.stored import RecentArrays, misfit, turned_words, whole
from convkit.safetensors_file import StoredTensor

_SHIFTS = 4 * np.array([0, 4, 1, 5, 2, 6, 3, 7], np.int32)
"""Where in a word each of its eight outputs begins."""


class AwqRows(Computed):
    """A matrix (outputs, inputs); while it is read, its packed form is held turned around.

    Args:
        name: of the original tensor.
        parts: `qweight`, `qzeros`, `scales`.
        recent: holds the packed form.

    Raises:
        ModelError: the parts do not fit each other.
    """

    def __init__(self, name: str, parts: Mapping[str, StoredTensor], recent: RecentArrays) -> None:
        self._parts, self._recent = parts, recent
        inputs, words = parts["qweight"].shape
        group_count = parts["scales"].shape[0]
        self.shape = (8 * words, inputs)
        fits = (
            parts["qzeros"].shape == (group_count, words)
            and parts["scales"].shape == (group_count, 8 * words)
            and group_count
            and inputs % group_count == 0
        )
        if not fits:
            shapes = (f"{part} {list(tensor.shape)}" for part, tensor in parts.items())
            raise misfit(name, ", ".join(shapes))

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        words, zeros, scales = self._recent.get(self, self._turn)
        first, last = begin // 8, -(-end // 8)
        rows = slice(begin - 8 * first, end - 8 * first)
        integers = _outputs(words[first:last])[rows]
        return scaled(integers, _outputs(zeros[first:last])[rows], scales[begin:end], None)

    def _turn(self) -> tuple[Array, ...]:
        """Words (outputs / 8, inputs), their zero points and scales (outputs, groups)."""
        scales = np.ascontiguousarray(whole(self._parts["scales"]).T)
        return turned_words(self._parts["qweight"]), turned_words(self._parts["qzeros"]), scales


def _outputs(words: Array) -> Array:
    """Words (n, m) as integers of their outputs: uint8 (8 n, m)."""
    integers = (words[:, None, :] >> _SHIFTS[:, None] & 15).astype(np.uint8)
    return integers.reshape(-1, words.shape[1])
