"""Files that Git left behind: pointers to what its LFS extension keeps elsewhere.

Source: git-lfs, `docs/spec.md`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from convkit.errors import ModelError

_GREATEST_BYTES = 1024
"""Source: the specification; a pointer is smaller."""

_SIZE = re.compile(rb"^size (\d+)$", re.MULTILINE)


def refuse_pointer(path: Path) -> None:
    """Refuses a file that only says where its content lies.

    Raises:
        ModelError: it is one; says how its content is fetched.
    """
    try:
        if not path.is_file() or path.stat().st_size >= _GREATEST_BYTES:
            return
        text = path.read_bytes()
    except OSError:
        return
    found = _SIZE.search(text)
    if text.startswith(b"version https://git-lfs") and found:
        raise ModelError(
            f"{path} is a Git LFS pointer: its {int(found[1]):,} bytes were not fetched.",
            hint=f"git -C {shlex.quote(str(path.parent))} lfs pull\n"
            "or download the file itself from where the pointer comes from",
        )
