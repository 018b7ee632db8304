"""Files of a folder that hold text, read with the standard library alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convkit.errors import ModelError
from convkit.git_lfs import refuse_pointer


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ModelError: it is damaged.
    """
    try:
        if not file.is_file():
            return {}
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as cause:
        refuse_pointer(file)
        raise ModelError(
            f"{file} is not valid JSON.",
            why=f"It has {file.stat().st_size} bytes; {str(cause)[:200]}",
            hint="Copy or download it again.",
        ) from cause
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds a {type(found).__name__}, not a JSON object.")
    return found


def read_text(file: Path) -> str:
    """A text as it is, ends of lines included.

    Raises:
        ModelError: the file is no text.
    """
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as cause:
        raise ModelError(f"{file} is damaged: it is no text.", why=str(cause)) from cause
