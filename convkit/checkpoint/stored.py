"""Tensors of a weights file as rows, also turned around, and what has to be held for that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np

from convkit.checkpoint.rows import FLOATS, Array, Rows, widened
from convkit.errors import ModelError
from convkit.safetensors_file import ITEM_BYTES, StoredTensor

_STRIP_BYTES = 4 << 20

FLOAT_DTYPES = frozenset((*FLOATS, "BF16"))
"""Dtypes of files that `Rows` have too."""


class Stored(Rows):
    """A float tensor of a weights file, read by position.

    Attributes:
        is_scalar: whether its shape in the file is `()`; as rows it is (1,).
    """

    def __init__(self, tensor: StoredTensor) -> None:
        self._tensor = tensor
        self.is_scalar = not tensor.shape
        self.shape = tensor.shape or (1,)
        self.dtype = tensor.dtype
        self._row_bytes = ITEM_BYTES[tensor.dtype] * self.row_length

    def stored(self, begin: int, end: int) -> Array:
        """Rows as stored."""
        piece = self._tensor.read(begin * self._row_bytes, end * self._row_bytes)
        return np.frombuffer(piece, np.uint8).reshape(end - begin, self._row_bytes)


class RecentArrays:
    """Arrays that several reads of one tensor need: those used last, within a limit of memory.

    Whatever their size, those that a thread used last are kept; none outlives its tensor.

    Args:
        byte_limit: the limit.
    """

    def __init__(self, byte_limit: int) -> None:
        self._byte_limit = byte_limit
        self._kept: WeakKeyDictionary[object, tuple[Array, ...]] = WeakKeyDictionary()
        self._latest: WeakKeyDictionary[threading.Thread, ref[object]] = WeakKeyDictionary()
        self._turns: WeakKeyDictionary[object, threading.Lock] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def get(self, owner: object, make: Callable[[], tuple[Array, ...]]) -> tuple[Array, ...]:
        """The arrays of `owner`, made if they are not there. Threads that want the same wait."""
        with self._lock:
            self._latest[threading.current_thread()] = ref(owner)
            turn = self._turns.setdefault(owner, threading.Lock())
        with turn:
            with self._lock:
                if owner in self._kept:
                    self._kept[owner] = self._kept.pop(owner)  # behind all others
                    return self._kept[owner]
                self._forget()
            made = make()
            with self._lock:
                self._kept[owner] = made
            return made

    def _forget(self) -> None:
        in_use = {latest() for latest in self._latest.values()}
        excess = sum(map(_byte_count, self._kept.values())) - self._byte_limit
        for owner in list(self._kept):
            if excess > 0 and owner not in in_use:
                excess -= _byte_count(self._kept.pop(owner))


def _byte_count(arrays: tuple[Array, ...]) -> int:
    return sum(array.nbytes for array in arrays)


class TurnedAround(Rows):
    """A matrix turned around, held whole as it is stored while it is being read.

    Args:
        rows: the matrix, of a dtype that files have.
        recent: holds it.

    Raises:
        ValueError: it is no matrix.
    """

    def __init__(self, rows: Rows, recent: RecentArrays) -> None:
        if len(rows.shape) != 2:
            raise ValueError(f"{rows.dtype}{rows.shape} cannot be turned around")
        self._rows, self._recent = rows, recent
        self.shape, self.dtype = rows.shape[::-1], rows.dtype

    def stored(self, begin: int, end: int) -> Array:
        """Rows as stored."""
        (turned,) = self._recent.get(self, self._turn)
        return turned[begin:end].view(np.uint8)

    def _turn(self) -> tuple[Array, ...]:
        kind = FLOATS.get(self.dtype, np.dtype(np.uint16))
        return (_turned(self._rows.stored, self._rows.shape, kind),)


def turned_words(tensor: StoredTensor) -> Array:
    """A matrix of 32-bit words (n, m), turned around: int32 (m, n)."""
    row_bytes = 4 * tensor.shape[1]

    def rows(begin: int, end: int) -> Array:
        return np.frombuffer(tensor.read(begin * row_bytes, end * row_bytes), np.int32)

    return _turned(rows, tensor.shape, np.dtype(np.int32))


def _turned(
    rows: Callable[[int, int], Array], shape: tuple[int, ...], kind: np.dtype[Any]
) -> Array:
    """A matrix turned around strip by strip, so that it is in memory once."""
    height, width = shape
    turned = np.empty((width, height), kind)
    step = max(1, _STRIP_BYTES // max(1, width * kind.itemsize))
    for begin in range(0, height, step):
        end = min(begin + step, height)
        turned[:, begin:end] = rows(begin, end).view(kind).reshape(-1, width).T
    return turned


def misfit(name: str, why: str) -> ModelError:
    """The error for parts that make no quantized tensor together."""
    return ModelError(f"The parts of the quantized tensor '{name}' do not fit each other.", why=why)


def whole(tensor: StoredTensor) -> Array:
    """A small part of a quantized tensor: an array of its shape; floats in float32.

    Raises:
        ModelError: it is neither of floats of 16 bits and more nor of integers.
    """
    content = tensor.read(0, tensor.byte_count)
    if tensor.dtype in FLOAT_DTYPES:
        return widened(np.frombuffer(content, np.uint8), tensor.dtype).reshape(tensor.shape)
    if tensor.dtype not in ITEM_BYTES or tensor.dtype[0] not in "IUB":
        raise ModelError(f"The tensor '{tensor.name}' is {tensor.dtype}, which it cannot be.")
    kind = np.dtype(f"{'u' if tensor.dtype[0] == 'U' else 'i'}{ITEM_BYTES[tensor.dtype]}")
    return np.frombuffer(content, kind.newbyteorder("<")).reshape(tensor.shape)
