"""The layout of a GGUF file: every offset is known before the first tensor is.

Source: ggml, `docs/gguf.md`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convkit.ggml.header import DEFAULT_ALIGNMENT
from convkit.ggml.magic import MAGIC
from convkit.ggml.types import GgmlType
from convkit.ggml.values import Value, encoded_string

_VERSION = 3


@dataclass(frozen=True)
class Place:
    """A tensor to be written.

    Attributes:
        name: its name.
        shape: row-major, as in PyTorch.
        kind: its type; the last size is a multiple of its block.
    """

    name: str
    shape: tuple[int, ...]
    kind: GgmlType

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.kind.row_bytes(self.shape[-1])

    @property
    def byte_count(self) -> int:
        """Bytes it fills."""
        return math.prod(self.shape[:-1]) * self.row_bytes


class Layout:
    """Where everything goes in a file.

    Attributes:
        head: the bytes before the tensors, padding included.
        offsets: tensor name -> where it begins in the file.
        byte_count: of the whole file.
    """

    def __init__(self, metadata: Mapping[str, Value], places: Sequence[Place]) -> None:
        value = metadata.get("general.alignment")
        alignment = int(value.content) if value else DEFAULT_ALIGNMENT
        infos = []
        offset = 0
        relative: dict[str, int] = {}
        for place in places:
            relative[place.name] = offset
            infos.append(_info(place, offset))
            offset = _aligned(offset + place.byte_count, alignment)
        values = [encoded_string(key) + value.encoded() for key, value in metadata.items()]
        counts = struct.pack("<IQQ", _VERSION, len(places), len(values))
        head = b"".join((MAGIC, counts, *values, *infos))
        self.head = head.ljust(_aligned(len(head), alignment), b"\0")
        self.offsets = {name: len(self.head) + offset for name, offset in relative.items()}
        self.byte_count = len(self.head) + offset


def _info(place: Place, offset: int) -> bytes:
    sizes = tuple(reversed(place.shape))
    tail = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, place.kind.number, offset)
    return encoded_string(place.name) + tail


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
