"""A small convolutional network as ONNX, and samples of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convkit.artifact import TensorSpec
from tests import onnx_files
from tests.onnx_files import FLOAT, helper, make_value

SIDE = 24
PICTURES = TensorSpec("x", "float32", ("batch", 3, SIDE, SIDE))


def network(side: int = SIDE, *, width: int = 8, masks: bool = False) -> Any:
    """Conv, Relu, Conv, global pooling, Gemm: x (batch, 3, side, side) -> y (batch, 5).

    Args:
        side: of the picture.
        width: channels inside.
        masks: what is below zero behind the second Conv becomes minus infinity in `masked`.
    """
    generator = np.random.default_rng(1)

    def weight(*shape: int) -> np.ndarray[Any, Any]:
        fan_in = int(np.prod(shape[1:]))
        return (generator.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"], name="relu"),
        node("Conv", ["b", "w2"], ["c"], name="conv2", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        node("Flatten", ["d"], ["e"], name="flat"),
        node("Gemm", ["e", "w3"], ["y"], name="head", transB=1),
    ]
    weights = {
        "w1": weight(width, 3, 3, 3),
        "w2": weight(width, width, 3, 3),
        "w3": weight(5, width),
    }
    outputs = [make_value("y", FLOAT, ["batch", 5])]
    if masks:
        nodes += [
            node("Less", ["c", "zero"], ["is_low"], name="less"),
            node("Where", ["is_low", "never", "c"], ["masked"], name="mask"),
            node("Softmax", ["masked"], ["z"], name="softmax"),
        ]
        weights |= {
            "zero": np.zeros((), np.float32),
            "never": np.full((), -np.inf, np.float32),
        }
        outputs.append(make_value("z", FLOAT, None))
    inputs = [make_value("x", FLOAT, ["batch", 3, side, side])]
    return onnx_files.make_model(nodes, inputs, outputs, weights)


def pictures(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth pictures with a few bright spots: (count, 3, side, side)."""
    generator = np.random.default_rng(seed)
    coarse = generator.standard_normal((count, 3, side // 4, side // 4))
    smooth = coarse.repeat(4, 2).repeat(4, 3)  # (count, 3, side, side)
    spots = generator.random(smooth.shape) > 0.999
    return (smooth + 6 * spots).astype(np.float32)


def saved(folder: Path, **settings: Any) -> Path:
    """The network in a file."""
    return onnx_files.save(network(**settings), folder / "network.onnx")
