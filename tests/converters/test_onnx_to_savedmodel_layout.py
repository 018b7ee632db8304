"""Channels-last inside: few transposes, the same results, kernels that run everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="SavedModels are written with TensorFlow")
onnx = pytest.importorskip("onnx", reason="models are built with the onnx package")
pytest.importorskip("onnxruntime", reason="the reference is ONNX Runtime")

from onnx import TensorProto, helper  # noqa: E402 - after the packages are known to be there

from tests.converters.test_onnx_to_savedmodel import (  # noqa: E402
    agree,
    computed,
    converted,
    expected,
    operators,
    random,
)
from tests.onnx_files import make_model, make_value  # noqa: E402

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Graph:
    """A graph put together node by node; results are called t0, t1 ..."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}

    def __call__(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        names = []
        for given in inputs:
            if not isinstance(given, str):
                name = f"w{len(self.weights)}"
                self.weights[name] = np.asarray(given)
                given = name
            names.append(given)
        made = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def model(self, outputs: list[str], shape: tuple[Any, ...] = ("n", 3, "h", "w")) -> Any:
        return make_model(
            self.nodes,
            [make_value("x", FLOAT, list(shape))],
            [make_value(name, FLOAT, None) for name in outputs],
            self.weights,
        )


def conv(graph: Graph, x: str, before: int, after: int, **attributes: Any) -> Any:
    weight = np.random.default_rng(after).standard_normal((after, before, 3, 3), np.float32) / 5
    return graph("Conv", x, weight, random(after), pads=[1, 1, 1, 1], **attributes)


def residual_network() -> tuple[Graph, str]:
    """Everything that image networks put between convolutions."""
    g = Graph()
    y = g("Relu", conv(g, "x", 3, 8))
    y = g("BatchNormalization", y, random(8), random(8), random(8), np.abs(random(8)) + 1)
    z = g("Mul", conv(g, y, 8, 8), random(8, 1, 1))
    y = g("Add", g("Clip", z, np.float32(-1), np.float32(1)), y)
    y = g("Concat", y, g("PRelu", y, random(8, 1, 1)), axis=1)
    left, right = g("Split", y, outputs=2, axis=1, num_outputs=2)
    y = g("Where", g("Greater", left, right), left, g("Sigmoid", right))
    y = g("Pad", y, np.array([0, 0, 1, 2, 0, 0, 0, 1]), np.float32(0.5))
    y = g("Slice", y, np.array([1, 0]), np.array([9, 100]), np.array([2, 3]))
    y = g("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = g("Resize", y, "", np.array([1, 1, 2, 2], np.float32), mode="nearest")
    y = g("Softmax", y, axis=1)
    squeezed = g("ReduceMean", y, np.array([2, 3]), keepdims=1)
    y = g("Mul", y, g("Sigmoid", conv(g, squeezed, 8, 8)))
    return g, conv(g, y, 8, 4)


def test_operators_between_convolutions_follow_their_layout(tmp_path: Path) -> None:
    graph, last = residual_network()
    out = converted(graph.model([last]), tmp_path)
    assert operators(out)["Transpose"] == 2  # one at either end
    for shape in ((2, 3, 12, 10), (1, 3, 11, 13)):
        agree(tmp_path, out, {"x": random(*shape)})


def test_pooling_to_one_pixel_leaves_the_entry_only(tmp_path: Path) -> None:
    g = Graph()
    y = g("Flatten", g("GlobalAveragePool", conv(g, "x", 3, 8)))
    last = g("Gemm", y, random(8, 5), random(5))
    out = converted(g.model([last]), tmp_path)
    assert operators(out)["Transpose"] == 1
    agree(tmp_path, out, {"x": random(2, 3, 9, 9)})


def test_reductions_without_kept_axes_see_the_right_ones(tmp_path: Path) -> None:
    g = Graph()
    y = conv(g, "x", 3, 8)
    results = [
        g("ReduceMean", y, np.array(axes), keepdims=0)
        for axes in ([2, 3], [1], [2], [0], [-1, 1], [0, 2, 3])
    ]
    results.append(g("ReduceMax", y, np.array([-3]), keepdims=1))
    out = converted(g.model(results), tmp_path)
    agree(tmp_path, out, {"x": random(2, 3, 6, 5)})


def test_transposes_between_the_orders_cost_nothing(tmp_path: Path) -> None:
    # As tf2onnx writes a channels-last network.
    g = Graph()
    y = g("Transpose", "x", perm=[0, 3, 1, 2])
    y = g("Relu", conv(g, y, 3, 6))
    y = g("Transpose", y, perm=[0, 2, 3, 1])
    y = g("MatMul", y, random(6, 6))
    y = conv(g, g("Transpose", y, perm=[0, 3, 1, 2]), 6, 2)
    last = g("Transpose", y, perm=[0, 2, 3, 1])
    out = converted(g.model([last], ("n", "h", "w", 3)), tmp_path)
    assert operators(out)["Transpose"] == 0
    agree(tmp_path, out, {"x": random(2, 7, 6, 3)})


def test_other_transposes_of_channels_last_values_are_right(tmp_path: Path) -> None:
    g = Graph()
    y = conv(g, "x", 3, 4)
    results = [g("Transpose", y, perm=perm) for perm in ([3, 2, 1, 0], [0, 3, 1, 2], [1, 0, 2, 3])]
    results.append(g("Transpose", y))
    out = converted(g.model(results), tmp_path)
    agree(tmp_path, out, {"x": random(2, 3, 5, 6)})


def test_values_of_fewer_axes_broadcast_as_in_the_onnx_order(tmp_path: Path) -> None:
    g = Graph()
    y = conv(g, "x", 3, 4)
    row = g("ReduceMean", "x", np.array([0, 1, 2]), keepdims=0)  # (width)
    plane = g("ReduceMean", "x", np.array([0, 1]), keepdims=0)  # (height, width)
    y = g("Add", g("Sub", g("Mul", y, row), plane), random(4, 1, 1))
    last = g("Max", y, np.float32(0.1), random(1, 4, 1, 1))
    out = converted(g.model([last]), tmp_path)
    agree(tmp_path, out, {"x": random(2, 3, 5, 6)})


def test_sizes_read_off_a_channels_last_value_are_in_the_onnx_order(tmp_path: Path) -> None:
    g = Graph()
    y = conv(g, "x", 3, 4)
    shape = g("Shape", y)
    head = g("Slice", shape, np.array([0]), np.array([2]))
    last = g("Reshape", y, g("Concat", head, np.array([-1]), axis=0))
    out = converted(g.model([last]), tmp_path)
    agree(tmp_path, out, {"x": random(2, 3, 5, 6)})
    loaded = tf.saved_model.load(str(out))
    outputs = loaded.signatures["serving_default"].structured_outputs
    assert outputs[last].shape.as_list() == [None, 4, None]


def test_series_and_volumes_work_channels_last_too(tmp_path: Path) -> None:
    for spatial, size in (((9,), 3), ((4, 5, 6), 3)):
        folder = tmp_path / str(len(spatial))
        folder.mkdir()
        g = Graph()
        weight = random(5, 3, *[size] * len(spatial))
        y = g("Relu", g("Conv", "x", weight, random(5)))
        last = g("Add", y, random(5, *[1] * len(spatial)))
        out = converted(g.model([last], ("n", 3, *spatial)), folder)
        agree(folder, out, {"x": random(2, 3, *spatial)})


def test_nhwc_io_makes_images_channels_last_outside_and_says_so(tmp_path: Path) -> None:
    g = Graph()
    y = g("Relu", conv(g, "x", 3, 4))
    pooled = g("Flatten", g("GlobalMaxPool", y))
    notes: list[str] = []
    out = converted(g.model([y, pooled]), tmp_path, layout="nhwc-io", note=notes.append)
    assert operators(out)["Transpose"] == 0
    x = random(2, 3, 6, 5)
    ours = computed(out, {"x": x.transpose(0, 2, 3, 1)})
    theirs = expected(tmp_path, {"x": x})
    np.testing.assert_allclose(ours[y].transpose(0, 3, 1, 2), theirs[y], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours[pooled], theirs[pooled], rtol=1e-4, atol=1e-5)
    assert [note.split(" is ")[0] for note in notes] == ["Input 'x'", f"Output '{y}'"]


def test_nhwc_io_leaves_what_is_also_used_in_the_onnx_order(tmp_path: Path) -> None:
    g = Graph()
    flat = g("Flatten", "x")
    last = conv(g, "x", 3, 4)
    out = converted(g.model([flat, last], (2, 3, 6, 5)), tmp_path, layout="nhwc-io")
    function = tf.saved_model.load(str(out)).signatures["serving_default"]
    assert function.structured_input_signature[1]["x"].shape.as_list() == [2, 3, 6, 5]
    assert function.structured_outputs[last].shape.as_list() == [2, 6, 5, 4]


def test_preserve_is_the_default(tmp_path: Path) -> None:
    graph, last = residual_network()
    out = converted(graph.model([last], (2, 3, 12, 10)), tmp_path)
    function = tf.saved_model.load(str(out)).signatures["serving_default"]
    assert function.structured_input_signature[1]["x"].shape.as_list() == [2, 3, 12, 10]


@pytest.mark.slow
def test_the_kernels_run_where_onednn_is_off(tmp_path: Path) -> None:
    # As on Windows, macOS and ARM, whose CPU kernels know channels-last only.
    graph, last = residual_network()
    deep = graph("Conv", last, random(4, 2, 3, 3), pads=[1, 1, 1, 1], dilations=[2, 2], group=2)
    up = graph("ConvTranspose", deep, random(4, 2, 3, 3), strides=[2, 2])
    pooled = graph("AveragePool", up, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    out = converted(graph.model([pooled]), tmp_path)
    x = random(2, 3, 12, 10)
    np.save(tmp_path / "x.npy", x)
    code = f"""
        import numpy as np, tensorflow as tf
        loaded = tf.saved_model.load({str(out)!r})
        x = tf.constant(np.load({str(tmp_path / "x.npy")!r}))
        y = loaded.signatures["serving_default"](x=x)[{pooled!r}]
        np.save({str(tmp_path / "y.npy")!r}, y.numpy())
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
        check=True,
        capture_output=True,
    )
    theirs = expected(tmp_path, {"x": x})[pooled]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), theirs, rtol=1e-4, atol=1e-5)


def test_nhwc_io_allows_questions_for_the_size_of_the_image(tmp_path: Path) -> None:
    g = Graph()
    size = g("Slice", g("Shape", "x"), np.array([2]), np.array([4]))
    y = g("Relu", conv(g, "x", 3, 4))
    batch_and_channels = g("Slice", g("Shape", y), np.array([0]), np.array([2]))
    whole = g("Concat", batch_and_channels, g("Mul", size, np.array([2, 2])), axis=0)
    last = g("Resize", y, "", "", whole, mode="nearest")
    out = converted(g.model([last]), tmp_path, layout="nhwc-io")
    x = random(2, 3, 6, 5)
    ours = computed(out, {"x": x.transpose(0, 2, 3, 1)})[last]
    theirs = expected(tmp_path, {"x": x})[last]
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, rtol=1e-4, atol=1e-5)
