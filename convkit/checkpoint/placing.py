"""Files in which every byte has its place before the first is written, for threads to fill."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from convkit.checkpoint.rows import Array
from convkit.processors import usable_processors

CHUNK_ELEMENTS = 1 << 19
"""Rows are taken by about as many elements: 2 MiB of float32 stay in a core's cache."""

_JOBS_AHEAD = 2

Progress = Callable[[int, int], None]
"""Takes (bytes written, bytes in all)."""


class PlacedFile:
    """A file of a known size, open for writing at any place. A context manager.

    All of it is reserved at once, so that a full disk shows before the work begins.

    Args:
        path: of a file that does not exist yet.
        byte_count: its size.

    Raises:
        OSError: the file cannot be made, or the disk is too small.
    """

    def __init__(self, path: Path, byte_count: int) -> None:
        self._lock = threading.Lock()
        self._stream = path.open("xb", buffering=0)
        try:
            if hasattr(os, "posix_fallocate") and byte_count:
                os.posix_fallocate(self._stream.fileno(), 0, byte_count)
            else:
                self._stream.truncate(byte_count)
        except BaseException:
            self._stream.close()
            raise

    def write(self, content: bytes | memoryview, at: int) -> None:
        """Writes bytes at a place."""
        left = memoryview(content).cast("B")
        while left:
            written = self._write_some(left, at)
            left, at = left[written:], at + written

    def _write_some(self, content: memoryview, at: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._stream.fileno(), content, at)
        with self._lock:  # without writes by position, one thread at a time
            self._stream.seek(at)
            return self._stream.write(content) or 0

    def __enter__(self) -> PlacedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor and where they go.

    Attributes:
        file: that takes them.
        at: the place of their first byte.
        made: gives them as they are written: uint8.
        more: gives, once that is written, what else is known by then: places and contents.
    """

    file: PlacedFile
    at: int
    made: Callable[[], Array]
    more: Callable[[], Iterable[tuple[int, Array]]] | None = None


def write_pieces(pieces: Iterable[Piece], byte_count: int, progress: Progress | None) -> None:
    """Makes and writes pieces with as many threads as there are processors.

    Few are under way at a time, so memory holds a few. The first failure ends the work.

    Args:
        pieces: in any order.
        byte_count: of all of them, for `progress`.
        progress: hears how far it is.
    """
    threads = usable_processors()
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[int]] = deque()
        try:
            for piece in pieces:
                ahead.append(pool.submit(_write, piece))
                if len(ahead) > _JOBS_AHEAD * threads:
                    done += ahead.popleft().result()
                    if progress:
                        progress(done, byte_count)
            while ahead:
                done += ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
    if progress:
        progress(byte_count, byte_count)


def _write(piece: Piece) -> int:
    content = piece.made()
    piece.file.write(content.reshape(-1).data, piece.at)
    byte_count = int(content.nbytes)
    for at, further in piece.more() if piece.more else ():
        piece.file.write(further.reshape(-1).data, at)
        byte_count += int(further.nbytes)
    return byte_count
