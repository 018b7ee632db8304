"""GGUF files written by position: every offset is known before the first tensor is.

Source: ggml, `docs/gguf.md`.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from convkit.ggml.header import DEFAULT_ALIGNMENT, MAGIC
from convkit.ggml.types import GgmlType
from convkit.ggml.values import Value

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
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return rows * self.row_bytes


class Layout:
    """Where everything goes in a file.

    Attributes:
        head: the bytes before the tensors, padding included.
        offsets: tensor name -> where it begins in the file.
        byte_count: of the whole file.
    """

    def __init__(self, metadata: Mapping[str, Value], places: Sequence[Place]) -> None:
        self.places = {place.name: place for place in places}
        value = metadata.get("general.alignment")
        alignment = int(value.content) if value else DEFAULT_ALIGNMENT
        infos = []
        offset = 0
        relative: dict[str, int] = {}
        for place in places:
            relative[place.name] = offset
            infos.append(_info(place, offset))
            offset = _aligned(offset + place.byte_count, alignment)
        values = [_string(key) + value.encoded() for key, value in metadata.items()]
        counts = struct.pack("<IQQ", _VERSION, len(places), len(values))
        head = b"".join((MAGIC, counts, *values, *infos))
        self.head = head.ljust(_aligned(len(head), alignment), b"\0")
        self.offsets = {name: len(self.head) + offset for name, offset in relative.items()}
        self.byte_count = len(self.head) + offset


class GgufWriter:
    """A file of a layout, open for threads to write rows at their place. A context manager.

    The whole file is reserved at once, so that a full disk shows before the work begins.

    Raises:
        OSError: the file cannot be made, or the disk is too small.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._stream = path.open("xb", buffering=0)
        try:
            if hasattr(os, "posix_fallocate") and layout.byte_count:
                os.posix_fallocate(self._stream.fileno(), 0, layout.byte_count)
            else:
                self._stream.truncate(layout.byte_count)
            self._write_at(layout.head, 0)
        except BaseException:
            self._stream.close()
            raise

    def write_rows(self, name: str, begin: int, content: memoryview) -> None:
        """Writes rows of a tensor, from row `begin` on."""
        place = self._layout.places[name]
        self._write_at(content, self._layout.offsets[name] + begin * place.row_bytes)

    def _write_at(self, content: bytes | memoryview, at: int) -> None:
        left = memoryview(content).cast("B")
        while left:
            written = self._write_some(left, at)
            left, at = left[written:], at + written

    def _write_some(self, content: memoryview, at: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._stream.fileno(), content, at)
        with self._lock:
            self._stream.seek(at)
            return self._stream.write(content) or 0

    def __enter__(self) -> GgufWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()


def _info(place: Place, offset: int) -> bytes:
    sizes = tuple(reversed(place.shape))
    tail = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, place.kind.number, offset)
    return _string(place.name) + tail


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
