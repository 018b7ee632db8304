"""An open GGUF model: its tensors read by rows."""

from __future__ import annotations

import mmap
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from convkit.checkpoint.ranges import RangeReader
from convkit.checkpoint.rows import Array, Rows
from convkit.ggml.dequantize import dequantize
from convkit.ggml.header import TensorHeader, read_header


class GgufTensor(Rows):
    """A tensor in a GGUF file. Its `dtype` is the name of a ggml type.

    Attributes:
        header: name, type and place.
    """

    def __init__(self, header: TensorHeader, reader: RangeReader) -> None:
        self.header = header
        self.shape, self.dtype = header.shape, header.kind.name
        self._reader = reader
        self._row_bytes = header.kind.row_bytes(self.row_length)

    def stored(self, begin: int, end: int) -> Array:
        """Rows as stored."""
        at, size = self.header.begin + begin * self._row_bytes, (end - begin) * self._row_bytes
        raw = self._reader.read(at, size)
        rows: Array = np.frombuffer(raw, np.uint8).reshape(end - begin, self._row_bytes)
        return rows

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        return dequantize(self.stored(begin, end), self.header.kind)


class GgufFile:
    """A model's files, open. A context manager.

    Tensors are read by position, so that memory holds what is being worked on; `mapped` gives a
    view without reading.

    Attributes:
        header: what its headers say.
        tensors: name -> tensor, in the order of the file.

    Raises:
        ModelError, UnsupportedError: see `read_header`.
    """

    def __init__(self, path: Path) -> None:
        self.header = read_header(path)
        self._open = ExitStack()
        self._maps: dict[Path, mmap.mmap] = {}
        readers = {p: self._open.enter_context(RangeReader(p)) for p in self.header.parts}
        self.tensors = {t.name: GgufTensor(t, readers[t.path]) for t in self.header.tensors}

    def mapped(self, name: str) -> Array:
        """A tensor's bytes, uint8 (rows, bytes of a row), mapped into memory and read-only."""
        header = self.tensors[name].header
        if header.path not in self._maps:
            with header.path.open("rb") as stream:
                self._maps[header.path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        content = np.frombuffer(self._maps[header.path], np.uint8)
        row_bytes = header.kind.row_bytes(header.shape[-1])
        return content[header.begin : header.begin + header.byte_count].reshape(-1, row_bytes)

    def close(self) -> None:
        """Closes the files; views stay valid as long as they are held."""
        self._open.close()
        self._maps.clear()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
