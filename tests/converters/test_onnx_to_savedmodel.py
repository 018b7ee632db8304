"""ONNX to SavedModel: the contract at its edges, against ONNX Runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="SavedModels are written with TensorFlow")
onnx = pytest.importorskip("onnx", reason="models are built with the onnx package")
runtime = pytest.importorskip("onnxruntime", reason="the reference is ONNX Runtime")

from onnx import TensorProto, helper  # noqa: E402 - after the packages are known to be there

from convkit.converters.onnx_to_savedmodel.build import save as convert  # noqa: E402
from convkit.errors import UnknownNameError, UnsupportedError  # noqa: E402
from tests.onnx_files import make_model, make_value, save  # noqa: E402

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
# Sums of a few hundred float32 products in another order: a few units in the last place.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def converted(model: Any, folder: Path, **options: Any) -> Path:
    out = folder / "saved"
    convert(save(model, folder / "model.onnx"), out, **options)
    return out


def expected(folder: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    options = runtime.SessionOptions()
    # Its optimizer computes products with quantized weights in int8.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(folder / "model.onnx", options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def computed(out: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    loaded = tf.saved_model.load(str(out))
    results = loaded.signatures["serving_default"](
        **{name: tf.constant(array) for name, array in feeds.items()}
    )
    return {name: tensor.numpy() for name, tensor in results.items()}


def agree(folder: Path, out: Path, feeds: dict[str, Any]) -> None:
    theirs, ours = expected(folder, feeds), computed(out, feeds)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        assert ours[name].shape == array.shape
        np.testing.assert_allclose(ours[name], array, **ROUNDING)


def operators(out: Path) -> Counter[str]:
    """How often each TensorFlow operator stands in the graph of the signature."""
    from tensorflow.core.protobuf import saved_model_pb2

    graph = saved_model_pb2.SavedModel.FromString((out / "saved_model.pb").read_bytes())
    functions = graph.meta_graphs[0].graph_def.library.function
    kept = [f for f in functions if "traced" not in f.signature.name]
    return Counter(node.op for function in kept for node in function.node_def)


def random(*shape: int) -> Any:
    return np.random.default_rng(3).standard_normal(shape, np.float32)


def passing(inputs: list[str], outputs: list[str]) -> Any:
    """Output i is input i plus i."""
    nodes, weights = [], {}
    for index, (one, other) in enumerate(zip(inputs, outputs, strict=True)):
        weights[f"number{index}"] = np.array(index, np.float32)
        nodes.append(helper.make_node("Add", [one, f"number{index}"], [other]))
    return make_model(
        nodes,
        [make_value(name, FLOAT, ["n", 2]) for name in inputs],
        [make_value(name, FLOAT, ["n", 2]) for name in outputs],
        weights,
    )


ODD_INPUTS = ["z", "input.1", "/conv/x:0", "a name", '{"id": [1, "b"]}', "größe", "A", "_x"]
ODD_OUTPUTS = ["y:0", "0", "/out/", '{"k": "v"}', "two words", "Z", "a.b.c", "é"]


def test_the_signature_has_the_names_of_the_file_whatever_they_hold(tmp_path: Path) -> None:
    out = converted(passing(ODD_INPUTS, ODD_OUTPUTS), tmp_path)
    agree(tmp_path, out, {name: random(3, 2) + 9 * i for i, name in enumerate(ODD_INPUTS)})


def test_a_session_finds_the_same_names(tmp_path: Path) -> None:
    out = converted(passing(ODD_INPUTS, ODD_OUTPUTS), tmp_path)
    feeds = {name: random(2, 2) + 9 * i for i, name in enumerate(ODD_INPUTS)}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(out))
        definition = graph.signature_def["serving_default"]
        results = session.run(
            {name: info.name for name, info in definition.outputs.items()},
            {definition.inputs[name].name: array for name, array in feeds.items()},
        )
    for name, array in expected(tmp_path, feeds).items():
        np.testing.assert_array_equal(results[name], array)


@pytest.mark.parametrize("prefix", ["\\", '\\"""', "C:\\"])
def test_a_backslash_in_front_of_every_name_is_kept(prefix: str, tmp_path: Path) -> None:
    model = make_model(
        [helper.make_node("MatMul", [f"{prefix}x", f"{prefix}w"], [f"{prefix}y"])],
        [make_value(f"{prefix}x", FLOAT, ["n", 2])],
        [make_value(f"{prefix}y", FLOAT, ["n", 3])],
        {f"{prefix}w": random(2, 3)},
    )
    agree(tmp_path, converted(model, tmp_path), {f"{prefix}x": random(5, 2)})


def test_the_order_of_inputs_and_outputs_is_kept_beside_the_model(tmp_path: Path) -> None:
    out = converted(passing(ODD_INPUTS, ODD_OUTPUTS), tmp_path)
    order = json.loads((out / "assets.extra" / "convkit_signature.json").read_text())
    assert order == {"inputs": ODD_INPUTS, "outputs": ODD_OUTPUTS}


def test_names_that_differ_in_signs_only_are_noted_and_work_in_a_session(tmp_path: Path) -> None:
    notes: list[str] = []
    out = converted(passing(["x.1", "x_1"], ["y.1", "y_1"]), tmp_path, note=notes.append)
    assert "x.1, x_1" in notes[0]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(out))
        definition = graph.signature_def["serving_default"]
        feeds = {"x.1": np.zeros((1, 2), np.float32), "x_1": np.full((1, 2), 5, np.float32)}
        result = session.run(
            definition.outputs["y_1"].name,
            {definition.inputs[name].name: array for name, array in feeds.items()},
        )
    assert result.tolist() == [[6, 6]]


def test_dynamic_dimensions_stay_dynamic_and_fixed_ones_fixed(tmp_path: Path) -> None:
    out = converted(passing(["x"], ["y"]), tmp_path)
    function = tf.saved_model.load(str(out)).signatures["serving_default"]
    assert function.structured_input_signature[1]["x"].shape.as_list() == [None, 2]
    assert function.structured_outputs["y"].shape.as_list() == [None, 2]
    for size in (1, 4):
        agree(tmp_path, out, {"x": random(size, 2)})


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
     "float64"],
)  # fmt: skip
def test_every_type_and_a_scalar_and_no_elements_go_through(tmp_path: Path, dtype: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = make_model(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Reshape", ["s", "shape"], ["t"]),
        ],
        [make_value("x", kind, ["n", 2]), make_value("s", kind, [])],
        [make_value("y", kind, ["n", 2]), make_value("t", kind, [1])],
        {"shape": np.array([1])},
    )
    out = converted(model, tmp_path)
    for count in (0, 2):
        feeds = {"x": np.ones((count, 2), dtype), "s": np.array(1, dtype)}
        results = computed(out, feeds)
        assert results["y"].dtype == results["t"].dtype == np.dtype(dtype)
        np.testing.assert_array_equal(results["y"], feeds["x"])
        np.testing.assert_array_equal(results["t"], feeds["s"].reshape(1))


def test_bfloat16_goes_through(tmp_path: Path) -> None:
    import ml_dtypes

    kind = TensorProto.BFLOAT16
    model = make_model(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [make_value("x", kind, ["n"])],
        [make_value("y", kind, ["n"])],
    )
    values = np.array([1.5, -2], ml_dtypes.bfloat16)
    result = computed(converted(model, tmp_path), {"x": values})["y"]
    assert result.dtype == values.dtype
    assert result.tolist() == [3, -4]


def test_outputs_may_be_inputs_constants_and_one_another(tmp_path: Path) -> None:
    weight = np.arange(4, dtype=np.float32)
    model = make_model(
        [
            helper.make_node("Relu", ["x"], ["y"]),
            helper.make_node("Identity", ["y"], ["again"]),
        ],
        [make_value("x", FLOAT, ["n"]), make_value("unused", INT64, [3])],
        [make_value(name, FLOAT, None) for name in ("x", "y", "again", "w", "c")],
        {"w": weight, "c": np.array(7, np.float32)},
    )
    out = converted(model, tmp_path)
    results = computed(out, {"x": np.array([-1, 2], np.float32), "unused": np.zeros(3, np.int64)})
    assert results["x"].tolist() == [-1, 2]
    assert results["y"].tolist() == results["again"].tolist() == [0, 2]
    assert results["w"].tolist() == weight.tolist()
    assert results["c"].tolist() == 7


def test_a_model_without_inputs_computes(tmp_path: Path) -> None:
    model = make_model(
        [helper.make_node("Mul", ["w", "w"], ["y"])],
        [],
        [make_value("y", FLOAT, [2])],
        {"w": np.array([2, 3], np.float32)},
    )
    assert computed(converted(model, tmp_path), {})["y"].tolist() == [4, 9]


def test_weights_are_variables_named_as_in_the_file(tmp_path: Path) -> None:
    weight = random(2, 3)
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "layer.0/weight"], ["h"]),
            helper.make_node("Add", ["h", "one"], ["y"]),
        ],
        [make_value("x", FLOAT, ["n", 2])],
        [make_value("y", FLOAT, ["n", 3])],
        {"layer.0/weight": weight, "one": np.array(1, np.float32)},
    )
    loaded = tf.saved_model.load(str(converted(model, tmp_path)))
    assert list(loaded.weights) == ["layer.0/weight"]
    variable = loaded.weights["layer.0/weight"]
    np.testing.assert_array_equal(variable.numpy(), weight)
    variable.assign(tf.zeros_like(variable))
    result = loaded.signatures["serving_default"](x=tf.ones([1, 2]))["y"]
    assert result.numpy().tolist() == [[1, 1, 1]]


def test_int8_weights_of_a_quantized_graph_stay_int8(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).integers(-127, 127, (64, 80), np.int8)
    model = make_model(
        [
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        [make_value("x", FLOAT, ["n", 64])],
        [make_value("y", FLOAT, ["n", 80])],
        {"q": weight, "scale": np.array(0.01, np.float32), "zero": np.array(0, np.int8)},
    )
    out = converted(model, tmp_path)
    loaded = tf.saved_model.load(str(out))
    assert loaded.weights["q"].dtype == tf.int8
    size = sum(file.stat().st_size for file in (out / "variables").iterdir())
    assert weight.nbytes < size < 1.5 * weight.nbytes
    agree(tmp_path, out, {"x": random(2, 64)})


def test_every_value_of_the_graph_is_found_by_its_name(tmp_path: Path) -> None:
    model = make_model(
        [
            helper.make_node("Conv", ["x", "w"], ["conv out"]),
            helper.make_node("Relu", ["conv out"], ["y"]),
        ],
        [make_value("x", FLOAT, ["n", 3, "h", "w"])],
        [make_value("y", FLOAT, None)],
        {"w": random(4, 3, 1, 1)},
    )
    out = converted(model, tmp_path)
    values = json.loads((out / "assets.extra" / "convkit_values.json").read_text())
    assert values["conv out"]["layout"] == "channels-last"
    assert {"x", "conv out", "y"} <= values.keys()


def test_strings_sequences_and_custom_operators_are_refused_by_name(tmp_path: Path) -> None:
    text = make_model(
        [helper.make_node("Identity", ["words"], ["y"])],
        [make_value("words", TensorProto.STRING, ["n"])],
        [make_value("y", TensorProto.STRING, ["n"])],
    )
    with pytest.raises(UnsupportedError, match="words"):
        converted(text, tmp_path)
    listed = make_model(
        [helper.make_node("SequenceConstruct", ["x", "x"], ["pair"])],
        [make_value("x", FLOAT, ["n"])],
        [helper.make_tensor_sequence_value_info("pair", FLOAT, None)],
    )
    with pytest.raises(UnsupportedError, match="pair"):
        converted(listed, tmp_path)
    custom = make_model(
        [helper.make_node("Fold", ["x"], ["y"], name="layer_3", domain="my.company")],
        [make_value("x", FLOAT, ["n"])],
        [make_value("y", FLOAT, ["n"])],
        opsets=(("", 20), ("my.company", 1)),
    )
    with pytest.raises(UnsupportedError, match=r"my\.company\.Fold") as refused:
        converted(custom, tmp_path)
    assert "layer_3" in str(refused.value)
    assert not (tmp_path / "saved").exists()


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="nhwcio"):
        converted(passing(["x"], ["y"]), tmp_path, layout="nhwcio")


@pytest.mark.slow
def test_nothing_is_printed(tmp_path: Path) -> None:
    save(passing(["x.1", "x:0"], ["y.1", "y:0"]), tmp_path / "model.onnx")
    code = """
        from pathlib import Path
        from convkit.converters.onnx_to_savedmodel.build import save
        save(Path("model.onnx"), Path("saved"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == ""
