"""Typed metadata values of GGUF: decoded on demand, encoded as they were.

A value is a number, a bool, a string, or an array of one of them. Strings and arrays begin with a
count of eight bytes; everything is little-endian.

Source: ggml, `docs/gguf.md`, section "File structure" (`gguf_metadata_value_type`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL = range(8)
STRING, ARRAY, UINT64, INT64, FLOAT64 = 8, 9, 10, 11, 12

SCALARS: Mapping[int, np.dtype[Any]] = {
    UINT8: np.dtype("<u1"), INT8: np.dtype("<i1"), UINT16: np.dtype("<u2"),
    INT16: np.dtype("<i2"), UINT32: np.dtype("<u4"), INT32: np.dtype("<i4"),
    FLOAT32: np.dtype("<f4"), BOOL: np.dtype("?"), UINT64: np.dtype("<u8"),
    INT64: np.dtype("<i8"), FLOAT64: np.dtype("<f8"),
}  # fmt: skip
"""Kind of number -> how it is stored."""

_COUNT = struct.Struct("<Q")
_KIND = struct.Struct("<I")


def encoded_string(text: str) -> bytes:
    """A string as a file holds it, behind its length."""
    raw = text.encode("utf-8", "surrogateescape")
    return _COUNT.pack(len(raw)) + raw


class Strings(Sequence[str]):
    """An array of strings as it lies in a file; decoded when it is looked at.

    Args:
        content: the strings, each behind its length.
        count: how many they are.
    """

    def __init__(self, content: bytes, count: int) -> None:
        self.content = content
        self._count = count

    @classmethod
    def of(cls, texts: Sequence[str]) -> Strings:
        """Strings to be written."""
        return cls(b"".join(map(encoded_string, texts)), len(texts))

    @cached_property
    def _texts(self) -> list[str]:
        content, at, texts = self.content, 0, []
        read = _COUNT.unpack_from
        for _ in range(self._count):
            begin = at + 8
            at = begin + read(content, at)[0]
            texts.append(content[begin:at].decode("utf-8", "surrogateescape"))
        return texts

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._texts[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Strings) and other.content == self.content

    def __hash__(self) -> int:
        return hash(self.content)


@dataclass(frozen=True)
class Value:
    """A value with its kind.

    Attributes:
        kind: one of the numbers above.
        content: int, float, bool, str; for arrays `Strings`, a numpy array, or a tuple of arrays.
        element: the kind of an array's elements.
    """

    kind: int
    content: Any
    element: int = 0

    def encoded(self) -> bytes:
        """The value as a file holds it, behind its kind."""
        return _KIND.pack(self.kind) + self._payload()

    def plain(self) -> Any:
        """As Python has it: arrays as lists."""
        if isinstance(self.content, Strings):
            return list(self.content)
        if isinstance(self.content, np.ndarray):
            return self.content.tolist()
        if isinstance(self.content, tuple):
            return [value.plain() for value in self.content]
        return self.content

    def _payload(self) -> bytes:
        if self.kind == STRING:
            return encoded_string(self.content)
        if self.kind != ARRAY:
            return np.asarray(self.content, SCALARS[self.kind]).tobytes()
        head = _KIND.pack(self.element) + _COUNT.pack(len(self.content))
        if isinstance(self.content, Strings):
            return head + self.content.content
        if isinstance(self.content, tuple):  # arrays in an array: the kind is said once
            return head + b"".join(value._payload() for value in self.content)
        return head + np.asarray(self.content, SCALARS[self.element]).tobytes()


def typed(content: Any) -> Value:
    """A Python value as llama.cpp reads it.

    Whole numbers are uint32, or int32 where negative; in arrays int32; fractions are float32.

    Raises:
        TypeError: there is no such value in GGUF.
    """
    if isinstance(content, Value):
        return content
    if isinstance(content, bool):
        return Value(BOOL, content)
    if isinstance(content, int):
        return Value(UINT32 if content >= 0 else INT32, content)
    if isinstance(content, float):
        return Value(FLOAT32, content)
    if isinstance(content, str):
        return Value(STRING, content)
    if isinstance(content, Sequence | np.ndarray):
        return _array(content)
    raise TypeError(f"{type(content).__name__} is no value of GGUF")


def _array(content: Any) -> Value:
    if isinstance(content, Strings):
        return Value(ARRAY, content, STRING)
    if len(content) and isinstance(content[0], str):
        return Value(ARRAY, Strings.of(content), STRING)
    numbers = np.asarray(content)
    kinds = {"b": BOOL, "i": INT32, "u": INT32, "f": FLOAT32}
    if numbers.dtype.kind not in kinds:
        raise TypeError(f"an array of {numbers.dtype} is no value of GGUF")
    element = kinds[numbers.dtype.kind]
    return Value(ARRAY, numbers.astype(SCALARS[element]), element)
