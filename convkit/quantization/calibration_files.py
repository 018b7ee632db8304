"""Arrays in files of samples, read a few rows at a time whatever their number.

Source: `numpy.lib.format`, "Format Version 1.0" (an .npy header gives dtype, order and shape; the
elements follow it), and `numpy.savez` (an .npz is a ZIP archive of .npy members).
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from convkit import samples
from convkit.errors import SamplesError

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

HINT = (
    'Write them with numpy:  np.savez("inputs.npz", x=array)   (one array per input, a row of the '
    "first axis per sample)"
)

_WHOLE_LIMIT_BYTES = 256 << 20
"""What is read at once where rows do not lie one after another."""

_SKIPPED_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """An array as its file describes it."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype.name}[{', '.join(map(str, self.shape))}]"


class Part(Protocol):
    """Samples that lie together: a file, or a line of one."""

    @property
    def words(self) -> str:
        """Where it lies, for messages."""

    @property
    def members(self) -> Mapping[str, Member]:
        """Its arrays."""

    def whole(self, name: str) -> Array:
        """One of its arrays."""

    def pieces(self, names: Sequence[str], rows: int) -> Iterator[Arrays]:
        """These arrays cut along their first axis, at most `rows` at a time."""


class ArchivePart:
    """An `.npz`, its members stored or compressed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.words = str(path)
        self.members: dict[str, Member] = {}
        self._is_fortran: set[str] = set()
        with _told(path), zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith(".npy"):
                    with archive.open(entry) as stream:
                        shape, is_fortran, dtype = _header(stream)
                    name = entry.removesuffix(".npy")
                    self.members[name] = Member(name, dtype, shape)
                    if is_fortran and len(shape) > 1:
                        self._is_fortran.add(name)

    def whole(self, name: str) -> Array:
        """One of its arrays.

        Raises:
            SamplesError: it is damaged, or too large to be read at once.
        """
        member = self.members[name]
        size = math.prod(member.shape) * member.dtype.itemsize
        if size > _WHOLE_LIMIT_BYTES:
            raise SamplesError(
                f"'{name}' in {self.path} has {size / 2**20:.0f} MiB and cannot be read in pieces.",
                why="Its rows do not lie one after another.",
                hint=f"Write it row by row:  {name}=np.ascontiguousarray(array), or a folder of "
                ".npz files",
            )
        with (
            _told(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{name}.npy") as stream,
        ):
            return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))

    def pieces(self, names: Sequence[str], rows: int) -> Iterator[Arrays]:
        """These arrays cut along their first axis, at most `rows` at a time.

        Raises:
            SamplesError: the archive is damaged.
        """
        count = self.members[names[0]].shape[0]
        odd = {name: self.whole(name) for name in names if name in self._is_fortran}
        with _told(self.path), ExitStack() as opened:
            archive = opened.enter_context(zipfile.ZipFile(self.path))
            streams = {
                name: opened.enter_context(archive.open(f"{name}.npy"))
                for name in names
                if name not in odd
            }
            for stream in streams.values():
                _header(stream)
            for start in range(0, count, rows):
                taken = min(rows, count - start)
                yield {
                    name: odd[name][start : start + taken]
                    if name in odd
                    else _read_rows(streams[name], self.members[name], taken)
                    for name in names
                }
            for stream in streams.values():
                while stream.read(_SKIPPED_BYTES):  # the checksum is compared at the end
                    pass


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, is_fortran, dtype = read(stream)
    return tuple(shape), bool(is_fortran), dtype


def _read_rows(stream: IO[bytes], member: Member, count: int) -> Array:
    shape = (count, *member.shape[1:])
    size = math.prod(shape) * member.dtype.itemsize
    content = stream.read(size)
    if len(content) < size:
        raise EOFError(f"'{member.name}' ends early")
    return np.frombuffer(content, member.dtype).reshape(shape)


class LinePart:
    """A line of a `.jsonl`: input names to (nested) lists."""

    def __init__(self, path: Path, number: int, offset: int) -> None:
        self.words = f"line {number} of {path}"
        self._path, self._offset = path, offset
        self.members = {
            name: Member(name, array.dtype, array.shape) for name, array in self._arrays().items()
        }

    def whole(self, name: str) -> Array:
        """One of its arrays."""
        return self._arrays()[name]

    def pieces(self, names: Sequence[str], rows: int) -> Iterator[Arrays]:
        """These arrays cut along their first axis, at most `rows` at a time."""
        arrays = self._arrays()
        for start in range(0, len(arrays[names[0]]), rows):
            yield {name: arrays[name][start : start + rows] for name in names}

    def _arrays(self) -> dict[str, Array]:
        with _told(self._path), self._path.open("rb") as stream:
            stream.seek(self._offset)
            line = json.loads(stream.readline())
            if not isinstance(line, dict):
                raise ValueError(f"{self.words} holds {type(line).__name__}, names are expected")
            return {name: samples.from_list(value) for name, value in line.items()}


def parts_of(path: Path) -> list[Part]:
    """The samples at a path: one `.npz`, a folder of such, or `.jsonl`, a line a part.

    Only headers are read of archives, and each line once.

    Raises:
        SamplesError: it is missing, of another kind, damaged, or holds nothing.
    """
    if path.is_dir():
        parts: list[Part] = [ArchivePart(file) for file in sorted(path.glob("*.npz"))]
        if not parts:
            raise SamplesError(f"No .npz files in {path}.", hint=HINT)
        return parts
    if not path.exists():
        raise SamplesError(f"There is no file {path}.", hint=HINT)
    if path.suffix == ".npz":
        return [ArchivePart(path)]
    if path.suffix != ".jsonl":
        raise SamplesError(
            f"{path} is no file of arrays.", hint=f"An .npz, a folder of such, or .jsonl. {HINT}"
        )
    parts = list(_lines(path))
    if not parts:
        raise SamplesError(f"{path} holds no samples.", hint=HINT)
    return parts


def _lines(path: Path) -> Iterator[Part]:
    with path.open("rb") as stream:
        offset = 0
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield LinePart(path, number, offset)
            offset += len(line)


def digest_of(path: Path) -> str:
    """SHA-256 over the names and contents of the files at a path."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.npz")) if path.is_dir() else [path]:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_SKIPPED_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as cause:  # type: ignore[attr-defined]
        raise SamplesError(
            f"The samples in {path} cannot be read.", why=str(cause), hint=HINT
        ) from cause
