"""The tour: trains a small network on real digits, converts it, proves each result, scores it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.errors import MissingRequirementError
from convkit.step import Package

if TYPE_CHECKING:
    import torch

    from convkit.listener import Listener
    from convkit.report import Report

_NEEDS = (
    Package("torch", "torch"),
    Package("onnxruntime", "onnx"),
    Package("sklearn", "material", "scikit-learn"),
)
_STOPS = (("torchscript", None), ("onnx", None), ("onnx", "fp16"), ("onnx", "bf16"))
_EPOCHS = 12
_TRAINING_SHARE = 1300


@dataclass(frozen=True)
class TourStop:
    """One result of the tour, with its accuracy on digits it never saw (0 to 1)."""

    report: Report
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        """The conversion's JSON, and the accuracy."""
        return {**self.report.to_json(), "accuracy": self.accuracy}


def network() -> torch.nn.Module:
    """A small convolutional network: image (batch, 1, 8, 8) float32 -> logits (batch, 10)."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def tour(folder: Path, listener: Listener) -> list[TourStop]:
    """Trains the network, converts it to what can be reached here, and scores every result.

    Args:
        folder: where the model and the results go; earlier results there are replaced.
        listener: hears how it goes on.

    Raises:
        MissingRequirementError: PyTorch, ONNX Runtime or scikit-learn is missing.
    """
    from convkit import library

    missing = [need for need in _NEEDS if not need.is_available]
    if missing:
        extras = ",".join(dict.fromkeys(need.extra for need in missing))
        raise MissingRequirementError(
            f"The demo needs {', '.join(need.distribution for need in missing)}.",
            hint=f'pip install "convkit-ml[{extras}]"',
        )
    folder.mkdir(parents=True, exist_ok=True)
    listener.stage("Training a small network on scikit-learn's handwritten digits")
    images, labels = _digits()
    weights = folder / "digits.safetensors"
    _train(images[:_TRAINING_SHARE], labels[:_TRAINING_SHARE], weights)
    stops = []
    for to, precision in _STOPS:
        suffix = {"onnx": ".onnx", "torchscript": ".torchscript.pt"}[to]
        report = library.convert(
            "convkit.demo:network",
            to=to,
            precision=precision,
            weights=weights,
            inputs=["input=float32[batch,1,8,8]"],
            out=folder / f"digits{f'.{precision}' if precision else ''}{suffix}",
            force=True,
            listener=listener,
        )
        accuracy = _accuracy(report, images[_TRAINING_SHARE:], labels[_TRAINING_SHARE:])
        stops.append(TourStop(report, accuracy))
    return stops


def _digits() -> tuple[Any, Any]:
    """1,797 scanned digits: images (n, 1, 8, 8) in 0 to 1, labels (n,).

    Source: UCI ML hand-written digits, Alpaydin and Kaynak 1998, as scikit-learn ships them.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)  # (n, 1, 8, 8)
    return images[order], labels[order]


def _train(images: Any, labels: Any, weights: Path) -> None:
    """Trains for a few seconds and saves the weights."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    save_file(net.state_dict(), weights)


def _accuracy(report: Report, images: Any, labels: Any) -> float:
    """Share of digits a result names right; bf16 is computed the exact way, as it was verified."""
    from convkit import library

    with library.open_as_verified(report.artifact) as runner:
        (name,) = (spec.name for spec in runner.inputs)
        (logits,) = runner({name: images}).values()
    return float((logits.argmax(-1) == labels).mean())
