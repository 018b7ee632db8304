"""A record of a ZIP archive as a file that can be sought in.

`zipfile` seeks backwards by reading from the record's beginning again, which takes minutes where a
reader of HDF5 jumps about in weights.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_LOCAL_HEADER_BYTES = 30
_NAME_LENGTH_AT, _EXTRA_LENGTH_AT = 26, 28


class _Window(io.RawIOBase):
    """The bytes [start, start + size) of a file."""

    def __init__(self, stream: IO[bytes], start: int, size: int) -> None:
        self._stream, self._start, self._size, self._at = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._at))
        self._stream.seek(self._start + self._at)
        content = self._stream.read(wanted)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


@contextmanager
def opened_record(path: Path, archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes] | _Window]:
    """The record of that name: in its place where it is stored plainly, else unpacked.

    Source: PKWARE APPNOTE 4.3.7, the local file header before a record's bytes.

    Raises:
        zipfile.BadZipFile: the archive is damaged.
        OSError: it cannot be read.
    """
    record = archive.getinfo(name)
    if record.compress_type != zipfile.ZIP_STORED:
        with tempfile.TemporaryFile() as unpacked, archive.open(record) as source:
            shutil.copyfileobj(source, unpacked)
            yield unpacked
        return
    with path.open("rb") as stream:
        stream.seek(record.header_offset)
        header = stream.read(_LOCAL_HEADER_BYTES)
        lengths = (header[at : at + 2] for at in (_NAME_LENGTH_AT, _EXTRA_LENGTH_AT))
        skipped = sum(int.from_bytes(length, "little") for length in lengths)
        start = record.header_offset + _LOCAL_HEADER_BYTES + skipped
        yield _Window(stream, start, record.file_size)
