"""Weights that lie in files beside an ONNX model: which files, and whether they may be opened.

A model file names its data files itself, so it could name any file of the machine. Only files in
the model's own folder are accepted.

Source: onnx, docs/ExternalData.md (location, offset, length); CVE-2022-25882, CVE-2024-27318 and
CVE-2024-5187 for what a location can be made to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from convkit.errors import ModelError, UnsafeError


class Located(Protocol):
    """A tensor that may lie in another file, whatever read it."""

    @property
    def name(self) -> str:
        """The value it is known by."""

    @property
    def external(self) -> Mapping[str, str]:
        """Entries of external_data (location, offset, length); empty for inline data."""

    @property
    def dense_bytes(self) -> int:
        """Bytes its elements take without padding; 0 where that is unknown."""


def check_external(model: Path, tensors: Iterable[Located]) -> Mapping[str, int]:
    """Checks every tensor that lies in another file; gives location -> size of that file in bytes.

    Raises:
        UnsafeError: a location is absolute, climbs with `..`, or is a link out of the folder.
        ModelError: a data file is missing, or ends before a tensor does.
    """
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if not tensor.external:
            continue
        location = tensor.external.get("location", "")
        if location not in sizes:
            try:
                sizes[location] = _checked_size(model, location, tensor.name)
            except (OSError, RuntimeError) as cause:  # a name too long, a link to itself
                raise ModelError(
                    f"{model.name} keeps weights in a file that cannot be read.",
                    why=(f"Location: {location[:200]!r}", str(cause)[:200]),
                ) from cause
        _check_range(model, location, sizes[location], tensor)
    return sizes


def _checked_size(model: Path, location: str, tensor: str) -> int:
    _refuse_outside(model, location)
    data = model.parent / location
    if not data.is_file():
        raise ModelError(
            f"{model.name} keeps weights in {location or 'a file without a name'}, "
            "which is missing.",
            why=(f"Looked for {data}", f"Needed first by tensor '{tensor}'."),
            hint="Copy the data file into the model's folder, under this very name.",
            location=location,
            looked_for=str(data),
        )
    return data.stat().st_size


def _refuse_outside(model: Path, location: str) -> None:
    """Paths of both kinds are judged on every system, so that a verdict does not depend on it."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if posix.is_absolute() or windows.drive or windows.root:
        raise _unsafe(model, location, "The location is an absolute path.")
    if ".." in windows.parts:  # a Windows path is split at both kinds of slash
        raise _unsafe(model, location, "The location climbs out of the model's folder with '..'.")
    if "\0" in location:
        raise _unsafe(model, location, "The location holds a NUL byte.")
    target = (model.parent / location).resolve()
    # The model itself may be a link, as in a hub's cache, with its data beside the real file.
    folders = (model.parent.resolve(), model.resolve().parent)
    if not any(target.is_relative_to(folder) for folder in folders):
        raise _unsafe(model, location, f"The file is a link to {target}.")


def _unsafe(model: Path, location: str, why: str) -> UnsafeError:
    return UnsafeError(
        f"{model.name} wants to read weights from outside its folder: {location!r}.",
        why=(why, f"Only files in {model.parent} are read."),
        hint="If you trust the file, copy the data beside the model and save the model again with "
        "a plain file name as location.",
        location=location,
    )


def _check_range(model: Path, location: str, size: int, tensor: Located) -> None:
    offset = _number(model, tensor, "offset", 0)
    length = _number(model, tensor, "length", tensor.dense_bytes)
    if tensor.dense_bytes and length != tensor.dense_bytes:
        raise ModelError(
            f"Tensor '{tensor.name}' of {model.name} is damaged.",
            why=f"It needs {tensor.dense_bytes} bytes and says that {length} lie in {location}.",
        )
    if offset + length > size:
        raise ModelError(
            f"{location}, the data file of {model.name}, is truncated.",
            why=(
                f"Tensor '{tensor.name}' ends at byte {offset + length}; the file has {size}.",
                f"Read {model.parent / location}",
            ),
            hint="Copy or download the data file again.",
            location=location,
            size_bytes=size,
        )


def _number(model: Path, tensor: Located, key: str, default: int) -> int:
    written = tensor.external.get(key, "")
    if not written:
        return default
    if not (written.isascii() and written.isdigit()):
        raise ModelError(
            f"Tensor '{tensor.name}' of {model.name} is damaged.",
            why=f"The {key} of its external data is {written!r}, not a number of bytes.",
        )
    return int(written[:20])
