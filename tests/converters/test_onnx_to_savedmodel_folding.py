"""ONNX to SavedModel: what a graph does to its weights alone is done once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="SavedModels are written with TensorFlow")
pytest.importorskip("onnx", reason="models are built with the onnx package")
pytest.importorskip("onnxruntime", reason="the reference is ONNX Runtime")

from onnx import TensorProto, helper

from convkit.tensorflow_import import import_tensorflow
from tests.converters.test_onnx_to_savedmodel import agree, converted, operators, random
from tests.onnx_files import make_model, make_value

tf = import_tensorflow()
FLOAT = TensorProto.FLOAT


def model(nodes: list[Any], weights: dict[str, Any], x: list[Any], y: list[Any]) -> Any:
    inputs, outputs = [make_value("x", FLOAT, x)], [make_value("y", FLOAT, y)]
    return make_model(nodes, inputs, outputs, weights, opsets=(("", 21),))


def variables(out: Path) -> dict[str, Any]:
    return dict(tf.saved_model.load(str(out)).weights)


def test_weights_that_are_cut_joined_and_turned_are_so_in_the_file(tmp_path: Path) -> None:
    """As exporters before recurrent operators took PyTorch's order of gates write them."""
    numbers = {"zero": 0, "four": 4, "eight": 8}
    weights: dict[str, Any] = {name: np.array([n], np.int64) for name, n in numbers.items()}
    weights |= {"w": random(8, 6), "b": random(8), "c": random(8)}
    nodes = [
        helper.make_node("Slice", ["w", "zero", "four", "zero"], ["upper"]),
        helper.make_node("Slice", ["w", "four", "eight", "zero"], ["lower"]),
        helper.make_node("Concat", ["lower", "upper"], ["swapped"], axis=0),
        helper.make_node("Transpose", ["swapped"], ["turned"], perm=[1, 0]),
        helper.make_node("Add", ["b", "c"], ["bias"]),
        helper.make_node("MatMul", ["x", "turned"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    out = converted(model(nodes, weights, ["n", 6], ["n", 8]), tmp_path)
    agree(tmp_path, out, {"x": random(3, 6)})
    assert set(variables(out)) == {"turned", "bias"}
    assert not operators(out).keys() & {"Transpose", "ConcatV2", "StridedSlice"}


def test_a_large_weight_that_is_also_used_as_it_is_stays_the_only_copy(tmp_path: Path) -> None:
    """As in language models whose table of tokens is their last layer, too."""
    table = random(1100, 300)
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["rows", "turned"], ["y"]),
    ]
    out = converted(model(nodes, {"table": table}, ["n"], ["n", 1100]), tmp_path)
    agree(tmp_path, out, {"x": np.array([3, 0, 1099], np.float32)})
    assert set(variables(out)) == {"table"}


def test_what_would_be_larger_than_its_weights_is_computed_in_each_run(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["column", "row"], ["outer"]),
        helper.make_node("Add", ["x", "outer"], ["y"]),
    ]
    weights = {"column": random(30, 1), "row": random(1, 40)}
    out = converted(model(nodes, weights, [30, 40], [30, 40]), tmp_path)
    agree(tmp_path, out, {"x": random(30, 40)})
    assert set(variables(out)) == {"column", "row"}


@pytest.mark.parametrize(
    ("operator", "shape", "axis"),
    [("Conv", (48, 16, 3, 3), 0), ("ConvTranspose", (32, 24, 3, 2), 1)],
)
def test_quantized_weights_of_convolutions_are_int8_and_never_turned(
    operator: str, shape: tuple[int, ...], axis: int, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    weights = {
        "q": generator.integers(-127, 127, shape).astype(np.int8),
        "scales": generator.uniform(0.01, 0.02, shape[axis]).astype(np.float32),
        "zeros": np.zeros(shape[axis], np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scales", "zeros"], ["w"], axis=axis),
        helper.make_node(operator, ["x", "w"], ["y"], group=2),
    ]
    graph = model(nodes, weights, ["n", 32, 9, 8], ["n", 48, "height", "width"])
    out = converted(graph, tmp_path)
    agree(tmp_path, out, {"x": random(2, 32, 9, 8)})
    assert variables(out)["q"].dtype == tf.int8
    # The only ones left: the image to channels-last and back.
    assert operators(out)["Transpose"] == 2
