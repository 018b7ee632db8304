"""Inputs that language models make sense of: rows of real text, masks that end in padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_SEED_STEP, _ROW_STEP = 97, 61
"""How far apart in the text rows begin; odd, so that seeds and rows fall on different places."""


def text_rows(
    text: Sequence[int], beginning: Sequence[int], shape: tuple[int, int], seed: int
) -> np.ndarray[Any, Any]:
    """Token ids int64 (batch, sequence): rows begin as a text does and go on somewhere in it.

    Args:
        text: ids of a text, repeated where rows are longer.
        beginning: ids that stand before every text.
        shape: batch and sequence.
        seed: where in the text the rows begin.
    """
    import numpy as np

    batch, length = shape
    first = np.asarray(beginning[:length], np.int64)
    starts = _SEED_STEP * seed + _ROW_STEP * np.arange(batch)
    places = starts[:, None] + np.arange(length - len(first))[None, :]  # (batch, rest)
    rest = np.take(np.asarray(text, np.int64), places, mode="wrap")
    return np.concatenate([np.broadcast_to(first, (batch, len(first))), rest], axis=1)


def padding_mask(like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Ones; in a batch the last row ends in padding, so that a mask that is ignored shows."""
    import numpy as np

    mask = np.ones_like(like)
    if mask.shape[0] > 1 and mask.shape[-1] > 2:
        mask[-1, ..., -(mask.shape[-1] // 3) :] = 0
    return mask
