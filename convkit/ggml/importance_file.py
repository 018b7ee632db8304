"""llama.cpp's files of importance data: GGUF, and the older kind that ends in .dat.

The GGUF kind holds per weight `NAME.in_sum2`, sums of squares, and `NAME.counts`. The older kind is
a count of entries, then per entry a name, the number of calls, the number of values and the values,
which are means times calls; then the number of chunks and the name of the text. Its numbers are
int32 and float32, names and text stand behind their length.

Source: llama.cpp, `tools/imatrix/imatrix.cpp` (`save_imatrix`, `save_imatrix_legacy`) and
`tools/quantize/quantize.cpp` (`load_imatrix`, `load_legacy_imatrix`).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from convkit.checkpoint.rows import Held
from convkit.errors import ModelError
from convkit.ggml.header import TensorHeader, read_header
from convkit.ggml.importance import Floats, Importance, SquaredInputs
from convkit.ggml.magic import is_gguf
from convkit.ggml.model import GgufModel, Output, write
from convkit.ggml.types import TYPES
from convkit.ggml.values import ARRAY, STRING, Strings, Value, typed

_SUMS, _COUNTS = ".in_sum2", ".counts"
_LEAST_ENTRY_BYTES = 4 * 4
_INT = struct.Struct("<i")


def read_importance(path: Path) -> Importance:
    """Reads a file of either kind.

    Raises:
        ModelError: missing, truncated, damaged, or something else.
    """
    importance = _read_gguf(path) if is_gguf(path) else _read_legacy(path)
    if not importance.entries:
        raise ModelError(f"{path} holds no importance data.")
    for name, inputs in importance.entries.items():
        if not np.isfinite(inputs.means).all():
            raise ModelError(f"{path}: the importance data of '{name}' are not finite.")
    return importance


def write_importance(importance: Importance, path: Path) -> None:
    """Writes a new GGUF file, as llama-imatrix does."""
    metadata = {
        "general.type": typed("imatrix"),
        "imatrix.datasets": Value(ARRAY, Strings.of(importance.datasets), STRING),
        "imatrix.chunk_count": typed(importance.chunk_count),
        "imatrix.chunk_size": typed(importance.chunk_size),
    }
    arrays: dict[str, Floats] = {}
    for name, inputs in sorted(importance.entries.items()):
        arrays[name + _SUMS] = inputs.sums
        arrays[name + _COUNTS] = inputs.counts[:, None]
    outputs = (Output(name, Held(array), TYPES["F32"]) for name, array in arrays.items())
    write(GgufModel(metadata, tuple(outputs)), path)


def write_legacy_importance(importance: Importance, path: Path) -> None:
    """Writes the older kind, which has one count for all experts of a weight.

    Means are kept to the last bits; weights without any input are left out.
    """
    entries = {n: one for n, one in sorted(importance.entries.items()) if one.counts.any()}
    with path.open("xb") as stream:
        stream.write(_INT.pack(len(entries)))
        for name, inputs in entries.items():
            # Rounded up, so that there is at least one.
            calls = -(-int(inputs.counts.max()) // max(1, importance.chunk_size))
            stream.write(_text(name) + struct.pack("<ii", calls, inputs.sums.size))
            stream.write((inputs.means * np.float32(calls)).tobytes())
        stream.write(_INT.pack(importance.chunk_count))
        stream.write(_text(importance.datasets[-1] if importance.datasets else ""))


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return _INT.pack(len(raw)) + raw


def _read_gguf(path: Path) -> Importance:
    header = read_header(path)
    kind = header.get("general.type", "imatrix")
    if kind != "imatrix" or header.architecture:
        raise ModelError(
            f"{path} holds no importance data.",
            why=f"It is a GGUF file of the kind '{header.architecture or kind}'.",
            hint="llama.cpp's llama-imatrix writes such files, as GGUF or .dat.",
        )
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
    lone = [n for n in tensors if n.endswith(_COUNTS) and n.removesuffix(_COUNTS) not in names]
    if lone:
        raise ModelError(f"{path}: '{lone[0]}' has no sums.")
    return Importance(
        {name: _entry(path, name, tensors) for name in names},
        tuple(map(str, header.get("imatrix.datasets", ()))),
        header.whole("imatrix.chunk_count"),
        header.whole("imatrix.chunk_size", 1),
    )


def _entry(path: Path, name: str, tensors: dict[str, TensorHeader]) -> SquaredInputs:
    sums, counts = tensors[name + _SUMS], tensors.get(name + _COUNTS)
    if counts is None:
        raise ModelError(f"{path}: '{name}' has sums but no counts.")
    row_count = sums.element_count // sums.shape[-1]
    if counts.element_count != row_count:
        raise ModelError(f"{path}: '{name}' has {row_count} sums, {counts.element_count} counts.")
    return SquaredInputs(_floats(sums).reshape(row_count, -1), _floats(counts))


def _floats(tensor: TensorHeader) -> Floats:
    if tensor.kind.name != "F32":
        raise ModelError(f"{tensor.path}: '{tensor.name}' is {tensor.kind}, not F32.")
    return np.fromfile(tensor.path, "<f4", tensor.element_count, offset=tensor.begin)


def _read_legacy(path: Path) -> Importance:
    try:
        with path.open("rb") as stream:
            return _Legacy(path, stream).importance()
    except OSError as cause:
        raise ModelError(f"{path} cannot be read.", why=cause.strerror or str(cause)) from cause


class _Legacy:
    """Walks a file of the older kind; no count is believed that passes its end."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._byte_count = stream.seek(0, 2)
        stream.seek(0)

    def importance(self) -> Importance:
        entries = dict(self._entry() for _ in range(self._count("entries", _LEAST_ENTRY_BYTES)))
        if not self._left():  # as the first files of this kind end
            return Importance(entries)
        chunk_count = self._int()
        return Importance(entries, (self._text(),), chunk_count)

    def _entry(self) -> tuple[str, SquaredInputs]:
        name, calls = self._text().split("\0", 1)[0], self._int()
        values = np.frombuffer(self._take(4 * self._count("values", 4)), "<f4")
        # Without calls the values are means already.
        return name, SquaredInputs(values[None], [max(calls, 1)])

    def _text(self) -> str:
        return self._take(self._count("letters", 1)).decode("utf-8", "surrogateescape")

    def _count(self, what: str, item_bytes: int) -> int:
        count = self._int()
        if not 0 <= count <= self._left() // item_bytes:
            raise self._damaged(f"it announces {count} {what}")
        return count

    def _int(self) -> int:
        return int(_INT.unpack(self._take(4))[0])

    def _take(self, byte_count: int) -> bytes:
        if byte_count > self._left():
            raise self._damaged("it ends too early")
        return self._stream.read(byte_count)

    def _left(self) -> int:
        return self._byte_count - self._stream.tell()

    def _damaged(self, why: str) -> ModelError:
        return ModelError(
            f"{self._path} holds no importance data, or is damaged.",
            why=f"It has {self._byte_count} bytes, and {why}.",
            hint="llama.cpp's llama-imatrix writes such files, as GGUF or .dat.",
        )
