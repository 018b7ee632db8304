"""A convolutional network trained here on Fashion-MNIST: clothes in ten classes.

Source: Xiao, Rasul, Vollgraf, Fashion-MNIST, 2017; idx files as in LeCun's MNIST: four bytes of
kind and rank, a big-endian size for each dimension, then the values.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantization_models.case import CACHE, SCRIPTS, Case, Outputs, convkit, share_right

if TYPE_CHECKING:
    from torch import nn

Array = np.ndarray[Any, Any]

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
TRAINED_ON = 57_000
"""Images of the training set that train; those after them calibrate and choose."""

_CALIBRATION = 256
_DEVIATION = 0.5


def network() -> nn.Module:
    """(batch, 1, 28, 28) in -1 to 1 -> (batch, 10) logits; 0.3 million parameters."""
    from torch import nn

    def layer(before: int, after: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(
        *layer(1, 32),
        nn.MaxPool2d(2),
        *layer(32, 64),
        *layer(64, 128, 2),
        *layer(128, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def images(part: str, folder: Path | None = None) -> tuple[Array, Array]:
    """Images (count, 1, 28, 28) in -1 to 1 and labels of `train` or `t10k`."""
    folder = folder or _found()
    pixels = _idx(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", 8)
    return (pixels.astype(np.float32) / 255 - 0.5) / _DEVIATION, labels.astype(np.int64)


def build(folder: Path) -> None:
    """Trains, exports, and writes inputs."""
    weights = folder / "fashion.pth"
    if not weights.exists():
        subprocess.run([sys.executable, SCRIPTS / "train-fashion-cnn", weights], check=True)
    convkit(
        "quantization_models.fashion:network",
        *("--weights", weights, "--input", "x=float32[batch,1,28,28]"),
        *("--to", "onnx", "-o", folder / "model.onnx"),
    )
    x, labels = images("train")
    held = x[TRAINED_ON:]
    np.savez(folder / "calibration", x=held[:_CALIBRATION])
    np.savez(folder / "control", x=held[_CALIBRATION:], labels=labels[TRAINED_ON + _CALIBRATION :])
    x, labels = images("t10k")
    np.savez(folder / "evaluation", x=x)
    np.savez(folder / "answers", labels=labels)


def score(outputs: Outputs, answers: Outputs) -> float:
    """Share of test images that are right."""
    return share_right(next(iter(outputs.values())), answers["labels"])


FASHION = Case(
    name="fashion",
    words="top-1 of 10,000 test images",
    build=build,
    score=score,
    is_convolutional=True,
    classifies=True,
    rows=200,
)


def _idx(file: Path, header: int) -> Array:
    return np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header)


def _found() -> Path:
    """The folder of idx files: of the installed package, else of the one downloaded."""
    if INSTALLED.exists():
        return INSTALLED
    place = CACHE / PACKAGE
    found = list(place.rglob("t10k-labels-idx1-ubyte.gz"))
    if not found:
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=place, check=True)
        archive = next(place.glob(f"{PACKAGE}*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive.name, "."], cwd=place, check=True)
        found = list(place.rglob("t10k-labels-idx1-ubyte.gz"))
    return found[0].parent
