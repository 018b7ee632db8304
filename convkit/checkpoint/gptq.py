"""Weights that GPTQ quantized: integers of 2, 3, 4 or 8 bits, packed along the inputs.

Of a linear layer with `inputs` and `outputs` there are

- `qweight` int32 (inputs * bits / 32, outputs): integer i of an output takes the bits from
  `bits * i` on of its column of words;
- `scales` float (groups, outputs);
- `qzeros` int32 (groups, outputs * bits / 32): zero points, packed along the outputs;
- `g_idx` int32 (inputs): the group of each input; with `desc_act` neighbours are in different ones.

In checkpoint format `gptq` a zero point is stored less one, in `gptq_v2` as it is. The one is taken
off whole words, so that a zero borrows from its neighbour, and put on again in the same way; off
integers of three bits, which cross the ends of words, it is taken one by one.

Source: AutoGPTQ, `auto_gptq/nn_modules/qlinear`; GPTQModel 7.7, `gptqmodel/nn_modules/qlinear`, and
`convert_gptq_v1_to_v2_format_module` in `gptqmodel/utils/model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convkit.checkpoint.grouped import scaled, unpacked
from convkit.checkpoint.quantization import gptq_format
from convkit.checkpoint.rows import Array, Computed
from convkit.checkpoint.stored import RecentArrays, misfit, turned_words, whole
from convkit.safetensors_file import StoredTensor

_BITS = (2, 3, 4, 8)
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""A one in every integer of a word."""


class GptqRows(Computed):
    """A matrix (outputs, inputs); while it is read, its packed form is held turned around.

    Args:
        name: of the original tensor.
        parts: `qweight`, `qzeros`, `scales`, maybe `g_idx`.
        settings: the checkpoint's `quantization_config`.
        recent: holds the packed form.

    Raises:
        ModelError: the parts do not fit each other.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[str, StoredTensor],
        settings: Mapping[str, Any],
        recent: RecentArrays,
    ) -> None:
        self._name, self._parts, self._settings, self._recent = name, parts, settings, recent
        words, outputs = parts["qweight"].shape
        order = parts.get("g_idx")
        self._bits = _bits_of(parts, settings)
        inputs = order.shape[0] if order else words * 32 // self._bits
        self.shape = (outputs, inputs)
        fitting = {
            "qweight": (-(-inputs * self._bits // 32), outputs),
            "qzeros": (parts["scales"].shape[0], -(-outputs * self._bits // 32)),
            "scales": (parts["scales"].shape[0], outputs),
        }
        if any(parts[part].shape != shape for part, shape in fitting.items()):
            raise misfit(name, ", ".join(f"{k} {list(v.shape)}" for k, v in parts.items()))

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        words, zeros, scales, *groups = self._recent.get(self, self._turn)
        integers = unpacked(words[begin:end], self._bits)[:, : self.row_length]
        return scaled(integers, zeros[begin:end], scales[begin:end], *groups or (None,))

    def _turn(self) -> tuple[Array, ...]:
        """Words (outputs, words), zero points and scales (outputs, groups), groups if irregular."""
        words = turned_words(self._parts["qweight"])
        zeros = np.ascontiguousarray(self._zero_points().T)
        scales = np.ascontiguousarray(whole(self._parts["scales"]).T)
        groups = self._groups(scales.shape[1])
        return (words, zeros, scales) if groups is None else (words, zeros, scales, groups)

    def _groups(self, group_count: int) -> Array | None:
        """The group of each input; None where each is as many neighbours."""
        inputs = self.row_length
        size = int(self._settings.get("group_size") or -1)
        if size < 1 or -(-inputs // size) != group_count:  # `dynamic`: a layer may have its own
            size = -(-inputs // group_count)
        regular = np.arange(inputs) // size
        order = self._parts.get("g_idx")
        groups = regular if order is None else whole(order)
        if not groups.any():  # an empty order means none
            groups = regular
        if groups.min() < 0 or groups.max() >= group_count:
            raise misfit(
                self._name, f"Inputs are in {groups.max() + 1} groups, scales for {group_count}."
            )
        is_even = inputs % group_count == 0 and np.array_equal(
            groups, np.arange(inputs) // (inputs // group_count)
        )
        return None if is_even else groups

    def _zero_points(self) -> Array:
        """Zero points (groups, outputs), as they are meant: uint8."""
        words = whole(self._parts["qzeros"]).astype(np.uint32)
        bits, outputs = self._bits, self.shape[0]
        middle = np.uint8(1 << (bits - 1))
        stored: Array = unpacked(words, bits)[:, :outputs]
        # The middle everywhere is what symmetric quantization means; files of several programs say
        # that their format is the one that stores it less one, and do not.
        # Source: vllm-project/vllm, pull request 38966.
        if gptq_format(self._settings) == "gptq_v2" or (stored == middle).all():
            return stored
        if bits in _ONES:
            return unpacked(words + np.uint32(_ONES[bits]), bits)[:, :outputs]
        if self._settings.get("sym") is True:
            return np.full_like(stored, middle)  # gptqmodel before 7 took off other than ones
        stored = (stored + 1) % np.uint8(1 << bits)
        return stored


def _bits_of(parts: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> int:
    """Bits of this tensor; some checkpoints have more for some layers (`dynamic`)."""
    packed, outputs = parts["qzeros"].shape[-1], parts["scales"].shape[-1]
    found = packed * 32 // outputs if outputs else 0
    return found if found in _BITS else int(settings["bits"])
