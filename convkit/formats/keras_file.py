"""Reads what a Keras file says of itself: its kind, its configuration, the sizes of its weights.

Three kinds there are. An archive (`.keras`) is a ZIP with `config.json`, `metadata.json` and
`model.weights.h5`. A full HDF5 file has the configuration as an attribute of its root. An HDF5 file
without it holds weights only. Keras and TensorFlow are not loaded; HDF5 is read by h5py.

Source: Keras, `saving_lib.py` (archive), `legacy_h5_format.py` (HDF5); HDF5 File Format
Specification 3.0, II.A (signature at 0, 512, 1024, 2048 ...).
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convkit.errors import MissingRequirementError, ModelError
from convkit.formats.keras_outside import refuse_outside
from convkit.formats.zip_bomb import refuse_bomb
from convkit.formats.zip_window import opened_record

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SIGNATURE_AT = (0, 512, 1024, 2048)
_ZIP_SIGNATURE = b"PK\x03\x04"
_NO_WEIGHTS = ("optimizer", "optimizer_weights", "metrics", "_optimizer")
_FLOATING = ("float", "bfloat", "int8", "uint8", "int4")
_MAX_CONFIG_BYTES = 256 << 20


@dataclass(frozen=True)
class KerasFile:
    """What a Keras file says.

    Attributes:
        kind: `archive`, `full` (HDF5) or `weights` (HDF5).
        version: of the Keras that wrote it; "" where it does not say.
        config: the model's configuration; {} for weights only.
        elements: weight elements by dtype; empty where h5py is missing.
    """

    path: Path
    kind: str
    version: str
    config: Mapping[str, Any] = field(repr=False)
    elements: Mapping[str, int]

    @property
    def major(self) -> int:
        """Major version of the Keras that wrote it; 1 where it does not say, as Keras 1 did."""
        head = self.version.partition(".")[0]
        return int(head) if head.isdigit() else 1


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5; False for anything that cannot be read."""
    try:
        with path.open("rb") as stream:
            for at in _SIGNATURE_AT:
                stream.seek(at)
                if stream.read(len(_SIGNATURE)) == _SIGNATURE:
                    return True
    except OSError:
        return False
    return False


def is_archive(path: Path) -> bool:
    """Whether a file is a `.keras` archive, by the records it holds."""
    try:
        with path.open("rb") as stream:
            if stream.read(len(_ZIP_SIGNATURE)) != _ZIP_SIGNATURE:
                return False
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
    return CONFIG in names and bool(names & {METADATA, WEIGHTS, "model.weights.npz"})


def read_keras(path: Path) -> KerasFile:
    """What a Keras file says of itself.

    Raises:
        ModelError: missing, damaged, truncated, or no Keras file.
        MissingRequirementError: an HDF5 file, and h5py is not installed.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    return _read_archive(path) if is_archive(path) else _read_hdf5(path)


@contextmanager
def hdf5(path: Path) -> Iterator[Any]:
    """An opened HDF5 file; what h5py raises meanwhile becomes ours.

    Raises:
        ModelError: it is damaged or truncated.
        UnsafeError: it takes content from other files.
        MissingRequirementError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as cause:
        raise MissingRequirementError(
            f"{path} is an HDF5 file, and h5py is not installed.",
            hint='pip install "convkit-ml[savedmodel]"',
        ) from cause
    try:
        with h5py.File(path, "r") as file:
            refuse_outside(path, file)
            yield file
    except (OSError, RuntimeError, KeyError) as cause:
        raise damaged(path, str(cause)) from cause


def damaged(path: Path, why: str) -> ModelError:
    """The error for a file that breaks its format."""
    return ModelError(
        f"{path} is damaged or truncated.",
        why=(why.splitlines() or [""])[0][:300],
        hint="Save or download it again.",
    )


def _read_archive(path: Path) -> KerasFile:
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                refuse_bomb(path, record)
            config = _json(path, archive.read(CONFIG))
            names = archive.namelist()
            metadata = _json(path, archive.read(METADATA)) if METADATA in names else {}
            elements = _archive_elements(path, archive) if WEIGHTS in names else {}
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as cause:
        raise damaged(path, str(cause)) from cause
    return KerasFile(path, "archive", str(metadata.get("keras_version", "")), config, elements)


def _archive_elements(path: Path, archive: zipfile.ZipFile) -> dict[str, int]:
    try:
        import h5py
    except ImportError:
        return {}
    try:
        with opened_record(path, archive, WEIGHTS) as stream, h5py.File(stream, "r") as file:
            refuse_outside(path, file)
            return _elements(file)
    except (OSError, RuntimeError, KeyError, zipfile.BadZipFile) as cause:
        raise damaged(path, f"{WEIGHTS}: {cause}") from cause


def _read_hdf5(path: Path) -> KerasFile:
    with hdf5(path) as file:
        written = file.attrs.get("model_config")
        weights = file.get("model_weights", file)
        version = _text(file.attrs.get("keras_version", weights.attrs.get("keras_version", "")))
        if written is not None:
            config = _json(path, _text(written))
            return KerasFile(path, "full", version, config, _elements(weights))
        if not _holds_weights(file):
            raise ModelError(
                f"{path} is an HDF5 file, but not one of Keras.",
                why=f"It holds: {', '.join(list(file)[:8]) or 'nothing'}",
            )
        return KerasFile(path, "weights", version, {}, _elements(weights))


def _holds_weights(file: Any) -> bool:
    """Whether an HDF5 file without configuration is one of weights, as Keras 2 or 3 writes it."""
    groups = ("layers", "_layer_checkpoint_dependencies", "vars", "model_weights")
    return "layer_names" in file.attrs or any(group in file for group in groups)


def _elements(root: Any) -> dict[str, int]:
    """Weight elements by dtype of all data sets that are no optimizer's or metric's."""
    import h5py

    counts: Counter[str] = Counter()

    def count(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and name.partition("/")[0] not in _NO_WEIGHTS:
            dtype = item.dtype.name if item.dtype.kind != "V" else "bfloat16"
            if dtype.startswith(_FLOATING):
                counts[dtype] += item.size

    root.visititems(count)
    return dict(counts)


def _json(path: Path, content: bytes | str) -> dict[str, Any]:
    if len(content) > _MAX_CONFIG_BYTES:
        raise damaged(path, f"its configuration has {len(content)} bytes")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise damaged(path, f"its configuration is no JSON: {cause}") from cause
    if not isinstance(found, dict):
        raise damaged(path, "its configuration is no JSON object")
    return found


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
