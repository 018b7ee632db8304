"""What a small ONNX graph for half precision converters is, and how one is written down.

Each is an fp32 model, samples, and how far a half precision result may be from the fp32 one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper, parser

FP16_TOLERANCE = 4e-3
"""Relative to the largest output: a few operators, each off by at most 2^-11 = 4.9e-4."""

_HEAD = '<ir_version: 10, opset_import: ["" : 18]>'
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class MicroGraph:
    """A model and what to run it on.

    Attributes:
        tolerance: largest difference to fp32, relative to the largest output.
        islands: operator types that must be found to need fp32 ("" for none).
    """

    name: str
    model: onnx.ModelProto
    samples: tuple[Feeds, ...]
    tolerance: float = FP16_TOLERANCE
    islands: frozenset[str] = frozenset()


BUILDERS: list[Callable[[], MicroGraph]] = []


def micro_graph(build: Callable[[], MicroGraph]) -> Callable[[], MicroGraph]:
    BUILDERS.append(build)
    return build


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def parsed(body: str, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    model = parser.parse_model(f"{_HEAD}\n{body}")
    for name, array in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model
