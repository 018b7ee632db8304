"""The files that `torch.save` writes, read for their tensor headers; nothing in them is run.

Source: `torch.serialization` for the two containers: a zip archive with `data.pkl`, and the legacy
run of five pickles followed by raw storages.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from convkit.errors import ConvkitError, ModelError, UnsafeError
from convkit.formats.torch_unpickling import Inert, TensorHeader, Unpickled, unpickle
from convkit.formats.zip_bomb import refuse_bomb

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a legacy file: the number 0x1950A86A20F9469CFC6C.

Source: `torch.serialization.MAGIC_NUMBER`.
"""


def is_zip_pickle(path: Path) -> bool:
    """Whether a file is the zip archive that `torch.save` writes (and not TorchScript)."""
    names = _zip_names(path)
    return any(name.endswith("/data.pkl") for name in names) and not any(
        name.endswith("/constants.pkl") for name in names
    )


def is_pickle(path: Path) -> bool:
    """Whether a file starts like a pickle of protocol 2 to 5; legacy `torch.save` files do too."""
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError:
        return False
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with `code/` and `constants.pkl`."""
    return any(name.endswith("/constants.pkl") for name in _zip_names(path))


def read_pickled(path: Path, *, trust: bool) -> Unpickled:
    """Tensor headers in a zip or legacy `torch.save` file; nothing in it is run.

    Args:
        path: the file.
        trust: whether foreign globals are tolerated; they are still not run, only listed.

    Raises:
        UnsafeError: the pickle refers to code and `trust` is false; names the first global.
        ModelError: the file is damaged.
    """
    with path.open("rb") as stream:
        return read_pickled_stream(stream, path, trust=trust)


def read_pickled_stream(stream: BinaryIO, path: Path, *, trust: bool = False) -> Unpickled:
    """The same for an open stream, as of a file inside an archive; `path` is for messages.

    Raises:
        UnsafeError, ModelError: see `read_pickled`.
    """
    on_foreign = None if trust else partial(_refuse, path)
    try:
        if zipfile.is_zipfile(stream):
            stream.seek(0)
            return _read_zip(path, stream, on_foreign)
        stream.seek(0)
        if stream.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
            return _read_legacy(path, stream, on_foreign)
        stream.seek(0)
        return unpickle(stream, on_foreign)
    except (ConvkitError, OSError):
        raise
    except zipfile.BadZipFile as cause:
        raise ModelError(
            f"{path} is damaged: its zip archive cannot be read.", why=str(cause)
        ) from cause
    except Exception as cause:  # damage in a container shows as nearly any exception
        size, root = path.stat().st_size, cause.__cause__ or cause
        raise ModelError(
            f"{path} is damaged: its pickle cannot be read.",
            why=f"The file has {size} bytes; reading stopped with {type(root).__name__}: {root}",
            hint="Copy or download it again, and compare the sizes.",
            size_bytes=size,
        ) from cause


def nested_states(tree: Any) -> dict[str, Mapping[str, Any]]:
    """Dotted path -> mapping for each mapping in `tree` that holds tensors directly.

    A mapping that a pickle put in several places, or into itself, is listed once.
    """
    found: dict[str, Mapping[str, Any]] = {}
    pending: list[tuple[str, Any]] = [("", tree)]
    seen: set[int] = set()
    while pending:
        path, node = pending.pop(0)
        if not isinstance(node, Mapping) or id(node) in seen:
            continue
        seen.add(id(node))
        if any(isinstance(value, TensorHeader) for value in node.values()):
            found[path] = node
        pending += [(f"{path}.{key}" if path else str(key), v) for key, v in node.items()]
    return found


def tensors_in(tree: Any) -> list[TensorHeader]:
    """Every tensor header in a tree, inert objects included."""
    found: list[TensorHeader] = []
    pending = [tree]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, TensorHeader):
            found.append(node)
        elif isinstance(node, Mapping):
            pending.extend(node.values())
        elif isinstance(node, list | tuple | set):
            pending.extend(node)
        elif isinstance(node, Inert):
            pending.append(vars(node))
    return found


def _refuse(path: Path, name: str) -> NoReturn:
    raise UnsafeError(
        f"{path} is a pickle with code: it refers to {name}.",
        why="Loading it would run code from the file. Nothing of it was run.",
        hint=(
            "Save only the weights (torch.save(model.state_dict(), ...)) and name the network:  "
            "convkit convert package.module:factory --weights FILE\n"
            "or, if you trust where the file comes from:  --trust"
        ),
        found=name,
    )


def _read_zip(path: Path, stream: BinaryIO, on_foreign: Callable[[str], None] | None) -> Unpickled:
    with zipfile.ZipFile(stream) as archive:
        entry = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if entry is None:
            raise ModelError(
                f"{path} is a zip archive without a PyTorch pickle.",
                why=f"It holds {', '.join(archive.namelist()[:5]) or 'nothing'}.",
            )
        refuse_bomb(path, archive.getinfo(entry))
        pickled = unpickle(io.BytesIO(archive.read(entry)), on_foreign)
        root = entry.removesuffix("data.pkl")
        sizes = {item.filename: item.file_size for item in archive.infolist()}
    for storage in pickled.storages.values():
        there = sizes.get(f"{root}data/{storage.key}", -1)
        if there < storage.size_bytes:
            raise ModelError(
                f"{path} is incomplete: the data of storage {storage.key} are missing or short.",
                why=f"It needs {storage.size_bytes} bytes, the archive has {max(there, 0)}.",
            )
    return pickled


def _read_legacy(
    path: Path, stream: BinaryIO, on_foreign: Callable[[str], None] | None
) -> Unpickled:
    for _ in range(2):  # the protocol version and a word on the machine
        unpickle(stream, on_foreign)
    pickled = unpickle(stream, on_foreign)
    keys = [str(key) for key in unpickle(stream, on_foreign).tree]
    # Each storage is its element count in 8 bytes, then its data.
    wanted = stream.tell() + sum(
        8 + pickled.storages[key].size_bytes for key in keys if key in pickled.storages
    )
    size = stream.seek(0, io.SEEK_END)
    if size < wanted:
        raise ModelError(
            f"{path} is truncated: it has {size} bytes, its header promises {wanted}.",
            hint="Copy or download it again.",
            size_bytes=size,
            expected_bytes=wanted,
        )
    return pickled


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return []
