"""Lowering IR version and opset: bytes in place, adapters, or a refusal that names the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.errors import UnknownNameError, UnsupportedError
from convkit.opset import WRITTEN_IR, fit

onnx = pytest.importorskip("onnx", reason="models are built with the onnx package")
reference = pytest.importorskip("onnx.reference", reason="it computes what a model means")
helper, TensorProto = onnx.helper, onnx.TensorProto
FLOAT = TensorProto.FLOAT


def _value(name: str, shape: list[Any] | None, dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def _save(
    path: Path, nodes: list[Any], opset: int, ir_version: int = 14, weights: tuple[Any, ...] = ()
) -> Path:
    graph = helper.make_graph(nodes, "g", [_value("x", ["b", 4])], [_value("y", None)], weights)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )
    model.metadata_props.add(key="who", value="me")
    path.write_bytes(model.SerializeToString())
    return path


def _run(path: Path, x: np.ndarray[Any, Any]) -> Any:
    return reference.ReferenceEvaluator(str(path)).run(None, {"x": x})[0]


def test_file_that_fits_is_not_touched(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], 20, 10)
    before = path.read_bytes()
    assert fit(path).how == "unchanged"
    assert path.read_bytes() == before


def test_unchanged_operators_are_restamped_in_place(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], 28)
    size = path.stat().st_size
    fitted = fit(path)
    model = onnx.load(path)
    assert (fitted.how, model.ir_version, model.opset_import[0].version) == (
        "restamped",
        WRITTEN_IR,
        26,
    )
    assert path.stat().st_size == size


def test_the_target_decides_how_far(tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], 28)
    assert fit(path, target="tensorrt").opset == (28, 25)
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        fit(path, target="onnxruntim")


def test_result_loads_in_the_runtime(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the target runtime")
    path = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], 28)
    with pytest.raises(Exception, match="IR version"):
        runtime.InferenceSession(str(path))
    fit(path)
    runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_changed_operator_is_converted_and_computes_the_same(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["c"], to=FLOAT),
        helper.make_node("ReduceMax", ["c", "axes"], ["y"], keepdims=0),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    path = _save(tmp_path / "m.onnx", nodes, 18, 8, (axes,))
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    before = _run(path, x)
    assert fit(path, opset=17).how == "converted"
    assert onnx.load(path).opset_import[0].version == 17
    assert [entry.key for entry in onnx.load(path).metadata_props] == ["who"]
    np.testing.assert_array_equal(_run(path, x), before)


def test_weights_in_another_file_are_not_read(tmp_path: Path) -> None:
    """The data file does not exist, so any attempt to read it would fail."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("ReduceMax", ["m", "axes"], ["y"], keepdims=0),
    ]
    weight = TensorProto(name="w", data_type=FLOAT, dims=[4, 3])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="nowhere.bin")
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    path = _save(tmp_path / "m.onnx", nodes, 18, 8, (weight, axes))
    assert fit(path, opset=17).how == "converted"
    model = onnx.load(path, load_external_data=False)
    kept = {tensor.name: tensor for tensor in model.graph.initializer}
    assert kept["w"].external_data[0].value == "nowhere.bin"
    assert [value.name for value in model.graph.input] == ["x"]


def test_operator_without_an_equal_is_refused_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("CumProd", ["x", "axis"], ["y"], name="running")]
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [1])
    path = _save(tmp_path / "m.onnx", nodes, 26, 13, (axis,))
    before = path.read_bytes()
    with pytest.raises(UnsupportedError, match="opset 26 to 20: CumProd") as refused:
        fit(path, opset=20)
    assert "running" in str(refused.value)
    assert path.read_bytes() == before


def _branching(path: Path, op: str, opset: int) -> Path:
    def branch(name: str) -> Any:
        node = helper.make_node(name, ["x"], ["r"], name=f"inner_{name}")
        return helper.make_graph([node], name, [], [_value("r", None)])

    nodes = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", 9, [], [True])),
        helper.make_node(
            "If", ["c"], ["y"], name="gate", then_branch=branch(op), else_branch=branch("Relu")
        ),
    ]
    return _save(path, nodes, opset, 12)


def test_operator_inside_a_branch_is_spelled_out_there(tmp_path: Path) -> None:
    path = _branching(tmp_path / "m.onnx", "Swish", 24)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    assert fit(path, opset=20).how == "converted"
    np.testing.assert_allclose(_run(path, x), x / (1 + np.exp(-x)), rtol=1e-6)


def test_operator_inside_a_branch_that_cannot_go_is_refused_with_its_place(tmp_path: Path) -> None:
    path = _branching(tmp_path / "m.onnx", "BitwiseNot", 18)
    with pytest.raises(UnsupportedError, match="in If gate"):
        fit(path, opset=17)


def test_element_type_the_runtime_lacks_is_refused(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT6E2M3, dims=[4], raw_data=bytes(3))
    path = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], 20, 14, (tensor,))
    with pytest.raises(UnsupportedError, match="float6_e2m3fn"):
        fit(path)


def test_newer_element_type_keeps_the_ir_version_it_needs(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.INT2, dims=[4], raw_data=bytes(1))
    path = _save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], 20, 14, (tensor,))
    assert fit(path).ir_version == (14, 13)


def test_types_that_the_older_operator_does_not_take_are_refused_and_the_file_stays(
    tmp_path: Path,
) -> None:
    # Identity takes sequences from opset 14 on.
    nodes = [
        helper.make_node("SequenceConstruct", ["x"], ["s"]),
        helper.make_node("Identity", ["s"], ["t"]),
        helper.make_node("ConcatFromSequence", ["t"], ["y"], axis=0),
    ]
    path = _save(tmp_path / "m.onnx", nodes, 16, 8)
    before = path.read_bytes()
    with pytest.raises(UnsupportedError, match="opset 13 does not have all of its types") as found:
        fit(path, opset=13)
    assert "seq(tensor(float))" in str(found.value)
    assert path.read_bytes() == before
