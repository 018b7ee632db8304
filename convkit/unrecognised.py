"""What can be said of a path that is no model: what it is instead, and what was meant perhaps."""

from __future__ import annotations

import json
import os
import shlex
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from convkit.errors import ModelError
from convkit.git_lfs import refuse_pointer

_NAMED = 8
_ADAPTER = "adapter_config.json"


def existing(path: Path) -> Path:
    """The path, if something is there.

    Raises:
        ModelError: nothing is; offers the nearest name.
    """
    if path.exists():
        return path
    if path.is_symlink():
        raise ModelError(f"{path} is a link to {os.readlink(path)}, which does not exist.")
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    raise ModelError(
        f"There is no file or folder {path}.",
        hint=f"Did you mean {path.parent / near[0]}?" if near else "",
    )


def unrecognised(path: Path, formats: Iterable[str]) -> ModelError:
    """Why a file or folder is no model.

    Args:
        path: exists.
        formats: names of those that were tried.

    Raises:
        ModelError: it is a pointer of Git LFS.
    """
    known = f"Known formats: {', '.join(formats)}"
    return _folder(path, known) if path.is_dir() else _file(path, known)


def _folder(path: Path, known: str) -> ModelError:
    names = sorted(p.name for p in path.iterdir())
    told = [f"It holds: {', '.join(names[:_NAMED]) or 'nothing'}"]
    lost = [name for name in names if (path / name).is_symlink() and not (path / name).exists()]
    if lost:
        return ModelError(
            f"The folder {path} holds links to files that do not exist: {', '.join(lost[:3])}.",
            why=f"{lost[0]} is a link to {os.readlink(path / lost[0])}.",
            hint="Download it again, links and all.",
        )
    if _ADAPTER in names:
        return ModelError(
            f"The folder {path} holds an adapter, not a model.",
            why=told,
            hint=f"Name the model it was trained on:  convkit convert {_base_of(path)} "
            f"--adapter {shlex.quote(str(path))} --to FORMAT",
        )
    files = [name for name in names if name.endswith(".gguf")]
    if files:
        return ModelError(
            f"The folder {path} holds GGUF files; each is a model, or a part of one.",
            why=told,
            hint=f"Name one:  {path / files[0]}",
        )
    return ModelError(f"The folder {path} holds no model of a known format.", why=told, hint=known)


def _base_of(adapter: Path) -> str:
    """The model that an adapter was trained on, as far as it says."""
    with suppress(OSError, ValueError, AttributeError):
        settings = json.loads((adapter / _ADAPTER).read_text(encoding="utf-8"))
        return shlex.quote(str(settings.get("base_model_name_or_path") or "MODEL"))
    return "MODEL"


def _file(path: Path, known: str) -> ModelError:
    refuse_pointer(path)
    size = path.stat().st_size
    if size == 0:
        return ModelError(f"{path} is empty.", hint=known)
    with path.open("rb") as stream:
        head = stream.read(16)
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return ModelError(
            f"{path} is a web page, not a model ({size} bytes).",
            why="A download that needs a login, or whose address is wrong, gives such a file.",
            hint="Download it again.",
        )
    is_of_folder = (path.parent / "config.json").is_file()
    return ModelError(
        f"{path} is not a model of a known format.",
        why=_beginning(path, head[:8], size),
        hint=f"Name the folder it lies in:  {path.parent}" if is_of_folder else known,
    )


def _beginning(path: Path, head: bytes, size: int) -> str:
    """What a file starts with. Source: PKWARE APPNOTE 4.3, whose directory lies at the end."""
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return f"Its {size} bytes start as a zip archive whose end is missing: it is truncated."
    return f"{size} bytes, starting with {head.hex(' ')}"
