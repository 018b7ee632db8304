"""The tensors of a checkpoint, of which every one has to be used."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from convkit.checkpoint.rows import Rows, Selected, widened
from convkit.checkpoint.writing import narrowed
from convkit.converters.decoder_graph.graph import BFLOAT16, FLOAT, FLOAT16
from convkit.converters.onnx_stream import Streamed
from convkit.errors import ModelError, UnsupportedError
from convkit.safetensors_file import ITEM_BYTES

DTYPES = {FLOAT: "F32", FLOAT16: "F16", BFLOAT16: "BF16"}
"""Element type of an initializer -> dtype of `Rows`."""

_PIECE_ELEMENTS = 1 << 20

CHANGED = "from "
"""Stands before the dtype that a tensor has in the checkpoint, where it was changed."""


class Weights:
    """Finds tensors by the names that the network gives them, and remembers which were asked for.

    A checkpoint of the network without its head has names without their first part (`model.`).

    Args:
        tensors: float tensors of the checkpoint, by name.
        unused: patterns for names that the network does not use.
        others: names of what else the checkpoint holds.
    """

    def __init__(
        self,
        tensors: Mapping[str, Rows],
        unused: Sequence[str] = (),
        others: Collection[str] = (),
    ) -> None:
        self._tensors = tensors
        self._unused = unused
        self._others = others
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._found(name) is not None

    def take(self, name: str, shape: Sequence[int]) -> tuple[str, Rows]:
        """A tensor and its name in the checkpoint.

        Raises:
            ModelError: it is missing, or of another shape.
        """
        found = self._found(name)
        if found is None:
            raise ModelError(
                f"The checkpoint has no tensor '{name}'.",
                why="The network that config.json describes needs it.",
                hint="Does config.json belong to these weights? Copy both from where they come "
                "from.",
                missing=name,
            )
        self._used.add(found)
        rows = self._tensors[found]
        if tuple(rows.shape) != tuple(shape):
            raise ModelError(
                f"Tensor '{found}' does not fit the network: it is {_by(rows.shape)}, "
                f"{_by(shape)} is needed.",
                hint="Does config.json belong to these weights? Copy both from where they come "
                "from.",
            )
        return found, rows

    def check_all_used(self) -> None:
        """Sees to it that nothing of the checkpoint was left out.

        Raises:
            UnsupportedError: tensors are left that the network does not know.
        """
        left = [
            name
            for name in (*self._tensors, *self._others)
            if name not in self._used
            and not any(fnmatchcase(f".{name}", pattern) for pattern in self._unused)
        ]
        if left:
            raise UnsupportedError(
                f"{len(left)} of the checkpoint's tensors have no place in the network: {left[0]}",
                why=[f"also: {name}" for name in left[1:5]],
                tensors=left,
            )

    def _found(self, name: str) -> str | None:
        bare = name.partition(".")[2]
        return next((key for key in (name, bare) if key in self._tensors), None)


def streamed(
    name: str, rows: Rows, float_type: int, note_loss: Callable[[str], None]
) -> tuple[Streamed, str]:
    """A tensor as an initializer of a float type, and what had to be done to it.

    That is nothing where it is stored so. Float32 becomes a half type as PyTorch rounds it;
    `note_loss` hears the name, while it is written, if numbers do not survive that.
    """

    def pieces() -> Iterator[Any]:
        for begin, end in rows.spans(_PIECE_ELEMENTS):
            if is_same:
                yield np.ascontiguousarray(rows.stored(begin, end)).data
                continue
            values = rows.read(begin, end)
            stored = narrowed(values, dtype)
            if dtype != "F32" and not np.array_equal(widened(stored, dtype), values):
                note_loss(name)
            yield np.ascontiguousarray(stored).data

    dtype = DTYPES[float_type]
    is_same = rows.dtype == dtype
    byte_count = rows.element_count * ITEM_BYTES[dtype]
    weight = Streamed(name, float_type, tuple(rows.shape), byte_count, pieces)
    return weight, "" if is_same else f"{CHANGED}{rows.dtype}"


def are_equal(first: Rows, second: Rows) -> bool:
    """Whether two tensors hold the same numbers."""
    if first is second or first.shape != second.shape:
        return first is second
    return all(
        np.array_equal(first.read(*span), second.read(*span))
        for span in first.spans(_PIECE_ELEMENTS)
    )


def slab(rows: Rows, begin: int, end: int) -> Rows:
    """Rows of one matrix among those stacked in a tensor, all leading axes counted as one."""
    return Selected(rows, np.arange(begin, end))


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
