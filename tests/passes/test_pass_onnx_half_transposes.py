"""Transposes before matrix products, which ONNX Runtime 1.31.1 cannot load when they are half."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

from onnx import numpy_helper, parser  # noqa: E402

from tests.onnx_micro_checks import convert  # noqa: E402

# In a process of its own: what is tested for is a segmentation fault.
_RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
feeds = dict(numpy.load(sys.argv[2]))
numpy.savez(sys.argv[3], *session.run(None, feeds))
"""

_BODIES = {
    "behind a batch moved back": (
        "agraph (float[a, b, 4] x) => (float[b, a, 6] y)"
        "{ t = Transpose<perm=[1, 0, 2]>(x)  y = MatMul(t, w) }"
    ),
    "twice in a row": (
        "agraph (float[a, b, 4] x) => (float[b, a, 6] y)"
        "{ t = Transpose<perm=[1, 0, 2]>(x)  z = MatMul(t, w)  y = MatMul(z, square) }"
    ),
    "read by others too": (
        "agraph (float[a, b, 4] x) => (float[b, a, 6] y, float[b, a, 4] r)"
        "{ t = Transpose<perm=[1, 0, 2]>(x)  r = Relu(t)  z = MatMul(t, w)  y = Add(z, bias) }"
    ),
    "of four axes": (
        "agraph (float[n, a, b, 4] x) => (float[a, b, n, 6] y)"
        "{ t = Transpose<perm=[1, 2, 0, 3]>(x)  y = MatMul(t, w) }"
    ),
    "the first axis last": (
        "agraph (float[4, a, b] x) => (float[a, b, 6] y)"
        "{ t = Transpose<perm=[1, 2, 0]>(x)  y = MatMul(t, w) }"
    ),
    "on the right": (
        "agraph (float[a, 6, b] x) => (float[6, 6, b] y)"
        "{ t = Transpose<perm=[1, 0, 2]>(x)  y = MatMul(tall, t) }"
    ),
}


@pytest.mark.parametrize("name", _BODIES)
def test_the_runtime_loads_and_agrees(name: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shapes = {"w": (4, 6), "square": (6, 6), "bias": (6,), "tall": (6, 3)}
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]>\n{_BODIES[name]}')
    read = {value for node in model.graph.node for value in node.input}
    for weight in read & shapes.keys():
        array = generator.uniform(-1, 1, shapes[weight]).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, weight))
    source, out = tmp_path / "source.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    sizes = {"n": 2, "a": 3, "b": 5}
    declared = model.graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value or sizes[dim.dim_param] for dim in declared]
    feeds = {"x": generator.uniform(-1, 1, shape).astype(np.float32)}
    convert(source, out, [feeds])
    onnx.checker.check_model(onnx.load(out), full_check=True)
    # At most six products of numbers below one, each rounded to 11 bits.
    for got, expected in zip(_ran(out, feeds), _ran(source, feeds), strict=True):
        np.testing.assert_allclose(got, expected, atol=6 * 2 * 2**-11)


def test_values_keep_their_names_and_the_weights_are_half(tmp_path: Path) -> None:
    body = _BODIES["read by others too"]
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]>\n{body}')
    for weight, shape in (("w", (4, 6)), ("bias", (6,))):
        array = np.ones(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, weight))
    source, out = tmp_path / "source.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    convert(source, out, [{"x": np.ones((2, 3, 4), np.float32)}])
    graph = onnx.load(out).graph
    made = {value for node in graph.node for value in node.output}
    assert {"t", "r", "z", "y"} <= made
    assert {t.data_type for t in graph.initializer} == {onnx.TensorProto.FLOAT16}


def _ran(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    given, made = path.with_suffix(".in.npz"), path.with_suffix(".out.npz")
    np.savez(given, **feeds)
    command = [sys.executable, "-c", _RUN, str(path), str(given), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-500:]}"
    with np.load(made) as arrays:
        return [arrays[key] for key in arrays.files]
