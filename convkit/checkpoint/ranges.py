"""Ranges of bytes read from a file by several threads at once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from convkit.errors import ModelError


class RangeReader:
    """An open file of which any range can be read at any time. A context manager.

    Files are read, not mapped: pages of a mapping count as memory of the process.

    Raises:
        ModelError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._stream = path.open("rb", buffering=0)
        except OSError as cause:
            raise ModelError(f"{path} cannot be read.", why=cause.strerror or str(cause)) from cause

    def read(self, begin: int, byte_count: int) -> bytearray:
        """That many bytes from `begin` on.

        Raises:
            ModelError: the file ends before.
        """
        content = bytearray(byte_count)
        left = memoryview(content)
        while left:
            got = self._read_into(left, begin)
            if not got:
                raise ModelError(f"{self._path} ended in the middle: it has become shorter.")
            left, begin = left[got:], begin + got
        return content

    def _read_into(self, buffer: memoryview, begin: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._stream.fileno(), [buffer], begin)
        with self._lock:  # without reads by position, one thread at a time
            self._stream.seek(begin)
            return self._stream.readinto(buffer) or 0

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
