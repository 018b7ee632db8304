"""Small networks as ONNX graphs for tests of int8, and what they compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper, parser

from convkit.artifact import TensorSpec
from convkit.quantization.calibration_data import CalibrationData

Array = np.ndarray[Any, Any]

_MOBILE = """
mobile (float[batch,3,24,24] x) => (float[batch,10] y) {
    zero = Constant <value_float: float = 0.0> ()
    six = Constant <value_float: float = 6.0> ()
    a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w0, b0)
    b = Clip (a, zero, six)
    c = Conv <pads = [1,1,1,1], group = 16> (b, w1, b1)
    d = Clip (c, zero, six)
    e = Conv (d, w2, b2)
    f = Conv (e, w3, b3)
    g = Relu (f)
    h = Conv <pads = [1,1,1,1], group = 32> (g, w4, b4)
    i = Relu (h)
    j = Conv (i, w5, b5)
    k = Add (e, j)
    l = Conv (k, w6, b6)
    m = Relu (l)
    n = MaxPool <kernel_shape = [2,2], strides = [2,2]> (m)
    o = GlobalAveragePool (n)
    p = Flatten (o)
    y = Gemm <transB = 1> (p, w7, b7)
}"""
_WEIGHTS = (
    (16, 3, 3, 3), (16, 1, 3, 3), (16, 16, 1, 1), (32, 16, 1, 1), (32, 1, 3, 3), (16, 32, 1, 1),
    (24, 16, 1, 1), (10, 24),
)  # fmt: skip


def mobile(folder: Path) -> Path:
    """Inverted residual blocks; the channels of each layer differ in size by a hundred."""
    generator = np.random.default_rng(1)
    weights: dict[str, Array] = {}
    for index, shape in enumerate(_WEIGHTS):
        sizes = 10 ** generator.uniform(-1, 1, (shape[0], *[1] * (len(shape) - 1)))
        spread = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        weights[f"w{index}"] = spread * (sizes if index < 7 else 1)
        weights[f"b{index}"] = generator.standard_normal(shape[0]) * 0.1
    return saved(_MOBILE, folder / "mobile.onnx", weights)


def saved(body: str, path: Path, weights: Mapping[str, Array], opset: int = 17) -> Path:
    """A graph in ONNX's text form, with float32 weights."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{body}')
    model.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    )
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}_{index}"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def samples(count: int, shape: tuple[int, ...] = (3, 24, 24), seed: int = 0) -> Array:
    """Inputs whose neighbours are alike, as those of pictures are."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((count, *shape))
    for axis in range(2, noise.ndim):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)
    return np.asarray(noise / 2, np.float32)


def calibration(folder: Path, x: Array) -> CalibrationData:
    """The samples as calibration data for an input `x`."""
    np.savez(folder / "samples.npz", x=x)
    spec = TensorSpec("x", "float32", ("batch", *x.shape[1:]))
    return CalibrationData(folder / "samples.npz", [spec])


def outputs(path: Path, x: Array, names: list[str] | None = None) -> Array:
    """What ONNX Runtime computes, its first output."""
    return np.asarray(session(path).run(names, {"x": x})[0])


def session(path: Path, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """A session of the CPU, as users open one; the graph it runs goes to `optimized`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def kernels(path: Path) -> Counter[str]:
    """Operators that ONNX Runtime runs once it has fused what it can."""
    optimized = path.with_suffix(".optimized.onnx")
    session(path, optimized)
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def operators(path: Path) -> Counter[str]:
    """Operators of a file."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def constants(path: Path) -> dict[str, Array]:
    """Initializers of a file, by name."""
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
