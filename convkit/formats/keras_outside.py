"""Refuses HDF5 files whose content lies in other files: links, external storage, virtual data.

Such a file names what it takes from elsewhere, so it could name any file of the machine, and its
bytes would become weights.

Source: HDF5 File Format Specification 3.0, IV.A.2.g (link message), IV.A.2.h (external data files),
IV.A.2.i (layout message, class 3: virtual).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convkit.errors import UnsafeError

_HERE = "."


def refuse_outside(path: Path, file: Any) -> None:
    """Looks at every link and data set of an opened `h5py.File`; follows none.

    Raises:
        UnsafeError: something of it lies in another file.
    """
    waiting, seen = [file["/"]], set()
    while waiting:
        group = waiting.pop()
        for name in group:
            item = _own(path, group, name)
            if item is None or hash(item.id) in seen:
                continue
            seen.add(hash(item.id))
            if hasattr(item, "keys"):
                waiting.append(item)
            else:
                _check_storage(path, item)


def _own(path: Path, group: Any, name: str) -> Any:
    """What a hard link leads to; None for a soft one, which leads to something hard-linked."""
    import h5py

    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise _unsafe(path, f"{group.name.rstrip('/')}/{name}", link.filename)
    return group[name] if isinstance(link, h5py.HardLink) else None


def _check_storage(path: Path, item: Any) -> None:
    import h5py

    if not isinstance(item, h5py.Dataset):
        return
    if item.external:
        raise _unsafe(path, item.name, item.external[0][0])
    sources = item.virtual_sources() if item.is_virtual else ()
    outside = [source.file_name for source in sources if source.file_name != _HERE]
    if outside:
        raise _unsafe(path, item.name, outside[0])


def _unsafe(path: Path, what: str, other: Any) -> UnsafeError:
    named = other.decode(errors="replace") if isinstance(other, bytes) else str(other)
    return UnsafeError(
        f"{path} takes {what} from another file: {named[:200]!r}.",
        why="Only what lies in the file itself is read.",
        hint="If you trust it, copy the data into the file with h5py, and try again.",
        location=named,
    )
