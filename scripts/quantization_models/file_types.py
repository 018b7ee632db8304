"""magika, which tells what kind a file is by its bytes.

Files are those of this machine's Python and of its packages, so numbers differ a little from one
machine to the next; their extension says what is right.
"""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from quantization_models.case import Case, Outputs, copy_model, package_file, share_right

Array = np.ndarray[Any, Any]

KINDS = {
    ".c": "c",
    ".cpp": "cpp",
    ".css": "css",
    ".csv": "csv",
    ".gif": "gif",
    ".gz": "gzip",
    ".html": "html",
    ".hpp": "cpp",
    ".ini": "ini",
    ".ipynb": "ipynb",
    ".jpg": "jpeg",
    ".js": "javascript",
    ".json": "json",
    ".md": "markdown",
    ".npy": "npy",
    ".onnx": "onnx",
    ".pdf": "pdf",
    ".png": "png",
    ".po": "po",
    ".proto": "proto",
    ".py": "python",
    ".pyc": "pythonbytecode",
    ".rst": "rst",
    ".sh": "shell",
    ".so": "elf",
    ".svg": "svg",
    ".toml": "toml",
    ".ts": "typescript",
    ".ttf": "ttf",
    ".wav": "wav",
    ".xml": "xml",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".zip": "zip",
}
_PLACES = ("/usr/lib/python3", "/usr/share", "/usr/lib/x86_64-linux-gnu")
_EACH = 80
_END, _PADDING, _BLOCK = 1024, 256, 4096  # Source: magika 1.0, config.min.json


def build(folder: Path) -> None:
    """128 files to calibrate, a third to choose, the others to judge."""
    model = package_file("magika", "models/*/model.onnx")
    copy_model(model, folder)
    kinds = json.loads(model.with_name("config.min.json").read_text())["target_labels_space"]
    files = _files()
    rows = np.stack([_features(file) for file in files])
    labels = np.array([kinds.index(KINDS[file.suffix]) for file in files])
    order = np.random.default_rng(0).permutation(len(files))
    ends = (128, 128 + len(files) // 3)
    first, second, third = np.split(order, ends)
    np.savez(folder / "calibration", bytes=rows[first])
    np.savez(folder / "control", bytes=rows[second], labels=labels[second])
    np.savez(folder / "evaluation", bytes=rows[third])
    np.savez(folder / "answers", labels=labels[third])


def score(outputs: Outputs, answers: Outputs) -> float:
    """Share of files whose kind is what their extension says."""
    return share_right(next(iter(outputs.values())), answers["labels"])


MAGIKA = Case(
    name="magika",
    words="files told as their extension",
    build=build,
    score=score,
    classifies=True,
)


def _files() -> list[Path]:
    """At most 80 of each kind, from as many folders as can be."""
    found: dict[str, dict[bytes, Path]] = {suffix: {} for suffix in KINDS}
    places = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *_PLACES)
    for place in places:
        for file in Path(place).rglob("*"):
            files = found.get(file.suffix)
            if files is not None and len(files) < 8 * _EACH and _is_content(file):
                files[file.read_bytes()[:_BLOCK]] = file  # none twice
    chosen = np.random.default_rng(0)
    return [
        files[i]
        for files in (sorted(each.values()) for each in found.values())
        for i in chosen.permutation(len(files))[:_EACH]
    ]


def _is_content(file: Path) -> bool:
    return file.is_file() and not file.is_symlink() and 64 < file.stat().st_size < 50_000_000


def _features(file: Path) -> Array:
    """(2048,): bytes of the beginning and of the end, without white space around.

    Source: magika 1.0, Magika._extract_features_from_seekable.
    """
    content = file.read_bytes()
    head, tail = content[:_BLOCK].lstrip()[:_END], content[-_BLOCK:].rstrip()[-_END:]
    codes = np.full(2 * _END, _PADDING, np.int32)
    codes[: len(head)] = np.frombuffer(head, np.uint8)
    codes[2 * _END - len(tail) :] = np.frombuffer(tail, np.uint8)
    return codes
