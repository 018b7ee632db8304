"""A small network trained on scikit-learn's digits, as an ONNX file written node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.onnx_files import FLOAT, helper, make_model, make_value, runtime, save

Array = np.ndarray[Any, Any]

TRAINED_ON = 1300
LAYERS = ("first", "second", "third", "last")


def digits() -> tuple[Array, Array]:
    """Images (n, 1, 8, 8) and what they show."""
    sklearn = pytest.importorskip("sklearn.datasets", reason="its digits are what is learned")
    images, labels = sklearn.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    return images[order], labels[order]


def trained() -> dict[str, Array]:
    """Weights of two convolutions and two products, by layer: `first.weight` ...

    All but the last are drawn; the last is fitted to what they make of the digits by least
    squares, and names nine of ten others right.
    """
    dice = np.random.default_rng(3)
    shapes = {"first": (16, 1, 3, 3), "second": (32, 16, 3, 3), "third": (128, 512)}
    weights = {}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weights[f"{name}.weight"] = (scale * dice.standard_normal(shape)).astype(np.float32)
        weights[f"{name}.bias"] = (0.1 * dice.standard_normal(shape[0])).astype(np.float32)
    weights["last.weight"] = np.eye(128, dtype=np.float32)
    weights["last.bias"] = np.zeros(128, np.float32)
    images, labels = (array[:TRAINED_ON] for array in digits())
    features_only = network(weights).SerializeToString()
    session = runtime.InferenceSession(features_only, providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"image": images})
    middle = features.mean(axis=0)
    centred = features - middle
    targets = np.eye(10, dtype=np.float32)[labels]
    moment = centred.T @ centred + 10.0 * np.eye(128)
    solved = np.linalg.solve(moment, centred.T @ (targets - targets.mean(axis=0)))  # (128, 10)
    weights["last.weight"] = solved.T.astype(np.float32).copy()
    weights["last.bias"] = (targets.mean(axis=0) - middle @ solved).astype(np.float32)
    return weights


def with_outlier(weights: dict[str, Array]) -> dict[str, Array]:
    """The same function, whose second layer reads a channel that is always 0 with huge weights.

    One scale for its weights leaves the others nothing: they round to 0.
    """
    broken = {name: array.copy() for name, array in weights.items()}
    broken["first.weight"][0] = 0.0
    broken["first.bias"][0] = 0.0
    broken["second.weight"][:, 0] = 3e3
    return broken


def write_network(weights: dict[str, Array], path: Path) -> Path:
    """The network as a file."""
    return save(network(weights), path)


def network(weights: dict[str, Array]) -> Any:
    """`image` (batch, 1, 8, 8) -> `logits` (batch, 10)."""
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "first.weight", "first.bias"], ["a"], "first", pads=[1] * 4),
        node("Relu", ["a"], ["b"], "relu_a"),
        node("Conv", ["b", "second.weight", "second.bias"], ["c"], "second", pads=[1] * 4),
        node("Relu", ["c"], ["d"], "relu_c"),
        node("MaxPool", ["d"], ["e"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["e"], ["f"], "flat"),
        node("Gemm", ["f", "third.weight", "third.bias"], ["g"], "third", transB=1),
        node("Relu", ["g"], ["h"], "relu_g"),
        node("Gemm", ["h", "last.weight", "last.bias"], ["logits"], "last", transB=1),
    ]
    return make_model(
        nodes,
        [make_value("image", FLOAT, ["batch", 1, 8, 8])],
        [make_value("logits", FLOAT, ["batch", len(weights["last.bias"])])],
        weights,
        opsets=(("", 17),),
        ir_version=8,
    )
