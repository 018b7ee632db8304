"""Refuses archive records that unpack to far more than they take in the file."""

from __future__ import annotations

import zipfile
from pathlib import Path

from convkit.errors import ModelError

_RATIO_LIMIT = 200  # code compresses 5 to 20 times; DEFLATE's ceiling, a bomb's, is 1032
_SMALL_BYTES = 1 << 20  # below this no ratio is suspicious


def refuse_bomb(path: Path, record: zipfile.ZipInfo) -> None:
    """Judges one record of the archive at `path` by its sizes, before it is read.

    Raises:
        ModelError: it unpacks out of proportion.
    """
    if record.file_size > max(_SMALL_BYTES, record.compress_size * _RATIO_LIMIT):
        raise ModelError(
            f"{path} unpacks out of proportion.",
            why=f"{record.filename}: {record.compress_size} bytes claim to hold "
            f"{record.file_size}.",
            hint="This is what a ZIP bomb looks like. Do not use this file.",
        )
