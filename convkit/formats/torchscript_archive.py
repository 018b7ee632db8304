"""What a TorchScript archive says of itself: headers and small records only, nothing is executed.

A TorchScript file is a ZIP archive, all of it below one folder whose name is free::

    <name>/data.pkl          the module tree; tensors refer to data/<key>
    <name>/data/<key>        storages, uncompressed
    <name>/constants.pkl     constants of the code; tensors refer to constants/<key>
    <name>/code/**.py        the methods, in TorchScript's own Python-like language
    <name>/version           file format version;  <name>/byteorder  "little"
    <name>/extra/<file>      whatever a writer added

Source: PyTorch, torch/csrc/jit/docs/serialization.md and caffe2/serialize/inline_container.h.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from convkit.errors import ModelError, UnsafeError
from convkit.formats.torch_unpickling import (
    Storage,
    StoredTensor,
    TensorHeader,
    Unpickled,
    UnreadablePickleError,
    unpickle,
)
from convkit.formats.zip_bomb import refuse_bomb
from convkit.torchscript_signature import EXTRA_FILE, Signature

OWN_SUFFIXES = (".torchscript", ".jit", ".ts")
"""Endings that only TorchScript uses."""

_TEXT_LIMIT_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
_HEADER_REACH = 300
_CODE_HEADER = re.compile(rb"PK\x03\x04.{26}[^/\x00]{1,255}/(code/|constants\.pkl)", re.S)
"""Source: APPNOTE.TXT 6.3.10, section 4.3.7: the name follows 30 bytes of local header."""

_WRITES_FILES = re.compile(r"\btorch\.(save|from_file)\(|\bops\.aten\.(save|from_file)\(")


@dataclass(frozen=True)
class Argument:
    """An argument of a method: name, TorchScript type, and whether it may be left out."""

    name: str
    type: str
    optional: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.type}"


@dataclass(frozen=True)
class Method:
    """A method's signature as the code spells it."""

    name: str
    arguments: tuple[Argument, ...]
    returns: str


class TorchScriptArchive:
    """The records of one TorchScript file, read within bounds and never extracted.

    Raises:
        ModelError: truncated, corrupt, no TorchScript, or records that unpack out of proportion.
        UnsafeError: record names that lead outside the archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = path.stat().st_size
        try:
            with zipfile.ZipFile(path) as archive:
                self._records = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as cause:
            raise _broken(path, f"Its directory of records is unreadable: {cause}") from cause
        self._check_names()
        folders = {name.partition("/")[0] for name in self._records}
        if len(folders) != 1 or not self._records:
            raise ModelError(f"{path} is no TorchScript file.", why="It lacks the common folder.")
        self.name = folders.pop()
        for needed in ("data.pkl", "constants.pkl"):
            if f"{self.name}/{needed}" not in self._records:
                raise ModelError(f"{path} is no TorchScript file.", why=f"It lacks {needed}.")
        self._check_sizes()

    def read(self, record: str) -> bytes:
        """One record below the archive's folder, checksum verified."""
        name = f"{self.name}/{record}"
        if self._records[name].file_size > _TEXT_LIMIT_BYTES:
            raise _broken(self.path, f"{record} claims {self._records[name].file_size} bytes.")
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(name)
        except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError) as e:
            raise _broken(self.path, f"{record} is damaged: {e}") from e

    def text(self, record: str) -> str:
        """One record as text; empty if there is none."""
        if f"{self.name}/{record}" not in self._records:
            return ""
        return self.read(record).decode("utf-8", errors="replace")

    @cached_property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """All distinct tensors of the module tree and of the code's constants."""
        found: list[StoredTensor] = []
        for record, folder in (("data.pkl", "data"), ("constants.pkl", "constants")):
            unpickled = self._unpickled(record)
            for storage in unpickled.storages.values():
                self._check_storage(folder, storage)
            found += unpickled.tensors
        return tuple(found)

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """Methods of the outermost module, `forward` first if there is one."""
        module, _, name = self._unpickled("data.pkl").root_class.rpartition(".")
        source = self.text(f"code/{module.replace('.', '/')}.py")
        found = parse_methods(source, name)
        return tuple(sorted(found, key=lambda method: method.name != "forward"))

    @cached_property
    def signature(self) -> Signature:
        """What convkit noted of the model, where convkit wrote the archive; else empty."""
        return Signature.of_text(self.text(f"extra/{EXTRA_FILE}"))

    def check_safe(self) -> None:
        """Refuses code that reads or writes files when it runs.

        Raises:
            UnsafeError: with the record and the call.
        """
        for name in self._records:
            record = name.partition("/")[2]
            if record.startswith("code/") and record.endswith(".py"):
                found = _WRITES_FILES.search(self.text(record))
                if found:
                    raise UnsafeError(
                        f"{self.path} holds code that touches files: {found[0]}...)",
                        why=f"In {record}. Running the model would read or write files.",
                        hint="Only if you trust where it comes from, add  --trust",
                    )

    def _check_names(self) -> None:
        for name in self._records:
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise UnsafeError(
                    f"{self.path} names a record outside the archive: {name!r}",
                    why="No TorchScript writer does that; the file was made to overwrite others.",
                    hint="Do not use this file.",
                )

    def _check_sizes(self) -> None:
        for name, info in self._records.items():
            if info.header_offset + info.compress_size > self.size_bytes:
                raise _broken(self.path, f"{name} ends beyond the end of the file.")
            refuse_bomb(self.path, info)

    def _unpickled(self, record: str) -> Unpickled:
        # The archive's own classes are not refused: PyTorch finds them in its code, never in Python
        try:
            return unpickle(io.BytesIO(self.read(record)))
        except UnreadablePickleError as cause:
            raise _broken(self.path, f"{record} is damaged: {cause}") from cause

    def _check_storage(self, folder: str, storage: Storage) -> None:
        record = f"{folder}/{storage.key}"
        info = self._records.get(f"{self.name}/{record}")
        if info is None:
            raise _broken(self.path, f"The weights record {record} is missing.")
        if info.file_size < storage.size_bytes:
            raise _broken(
                self.path, f"{record} has {info.file_size} bytes of {storage.size_bytes}."
            )


def looks_like_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, also one that was cut off; raises nothing."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"PK\x03\x04":
                return False
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            return path.suffix.lower() in OWN_SUFFIXES or _holds_code_record(path)
    except OSError:
        return False
    tails = {name.partition("/")[2] for name in names}
    has_code = any(tail.startswith("code/") for tail in tails)
    return has_code and {"data.pkl", "constants.pkl"} <= tails


def parse_methods(source: str, class_name: str) -> tuple[Method, ...]:
    """Signatures of a class's methods in TorchScript's printed code."""
    body = re.search(rf"^class {re.escape(class_name)}\(\w+\):\n((?:[ \n].*\n?|\n)*)", source, re.M)
    if not body:
        return ()
    pattern = re.compile(r"^  def (\w+)\((.*?)\) -> (.*?):\n", re.M | re.S)
    return tuple(
        Method(name, _parse_arguments(arguments), " ".join(returns.split()))
        for name, arguments, returns in pattern.findall(body[1])
    )


def _parse_arguments(text: str) -> tuple[Argument, ...]:
    arguments = []
    for part in _split_top_level(text)[1:]:  # the first is self
        declared, _, default = part.partition("=")
        name, _, kind = declared.partition(":")
        arguments.append(Argument(name.strip(), " ".join(kind.split()), bool(default)))
    return tuple(arguments)


def _split_top_level(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _holds_code_record(path: Path) -> bool:
    """Whether a local header anywhere in the file names a record below code/."""
    tail = b""
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            if _CODE_HEADER.search(tail + chunk):
                return True
            tail = chunk[-_HEADER_REACH:]
    return False


def _broken(path: Path, why: str | Sequence[str]) -> ModelError:
    return ModelError(
        f"{path} is damaged or incomplete ({path.stat().st_size} bytes).",
        why=why,
        hint="Download or save it again.",
    )


def count_elements(tensors: Sequence[TensorHeader]) -> Mapping[str, int]:
    """Dtype -> number of elements, each stored tensor counted once."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.count
    return counts
