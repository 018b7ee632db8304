"""`--opset` at the end of a route to ONNX: a step of its own, verified like the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="models are built with the onnx package")
pytest.importorskip("onnxruntime", reason="results are verified with ONNX Runtime")

import onnx
from onnx import TensorProto, helper, numpy_helper

import convkit
from convkit.errors import UnsupportedError, UsageError


def _model(path: Path, opset: int = 20, **saving: Any) -> Path:
    """y = layer norm of x w, with a Split of opset 18: w is 8 x 6."""
    weight = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "product"),
        helper.make_node("LayerNormalization", ["m", "scale"], ["n"], "norm"),
        helper.make_node("Split", ["n"], ["y", "z"], "halves", axis=1, num_outputs=2),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3])
            for name in ("y", "z")
        ],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.arange(1, 7, dtype=np.float32), "scale"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, path, **saving)
    return path


def _opset(path: Path) -> int:
    model = onnx.load(path, load_external_data=False)
    return max(entry.version for entry in model.opset_import if entry.domain == "")


def test_lowering_is_a_step_that_is_verified_reported_and_remembered(tmp_path: Path) -> None:
    out = tmp_path / "old.onnx"
    report = convkit.convert(_model(tmp_path / "m.onnx"), to="onnx", opset=13, out=out)
    assert [step.name for step in report.steps] == ["onnx-opset"]
    assert report.passed
    assert {check.output for check in report.checks} >= {"y", "z"}
    assert _opset(out) == 13
    assert "opset 20 -> 13" in " ".join(report.steps[0].notes)
    artifact, _ = convkit.inspect(out)
    assert artifact.lineage[-1].step == "onnx-opset"
    assert artifact.lineage[-1].options == {"opset": 13}


def test_lowering_comes_after_the_precision(tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    source = _model(tmp_path / "m.onnx")
    report = convkit.convert(source, to="onnx", precision="fp16", opset=15, out=out)
    assert [step.name for step in report.steps] == ["onnx-fp16", "onnx-opset"]
    assert report.passed
    assert _opset(out) == 15


def test_a_result_that_is_old_enough_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    source = _model(tmp_path / "m.onnx", 18)
    report = convkit.convert(source, to="onnx", precision="fp16", opset=20, out=out)
    assert [step.name for step in report.steps] == ["onnx-fp16"]
    assert _opset(out) == 18


def test_a_file_that_is_old_enough_already_needs_no_conversion(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already is onnx"):
        convkit.convert(_model(tmp_path / "m.onnx", 18), to="onnx", opset=18)


def test_data_files_come_along_under_the_results_name(tmp_path: Path) -> None:
    source = _model(
        tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0
    )
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    out = tmp_path / "made" / "old.onnx"
    out.parent.mkdir()
    assert convkit.convert(source, to="onnx", opset=13, out=out).passed
    data = [path.name for path in out.parent.iterdir() if path.name.startswith("old.onnx.data")]
    assert data == ["old.onnx.data"]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("m.*")} == before


def test_what_cannot_go_down_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    _model(path)
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Cast", ["x"], ["i"], "whole", to=TensorProto.UINT8))
    model.graph.node.append(helper.make_node("BitwiseNot", ["i"], ["b"], "flip"))
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.UINT8, ["batch", 8]))
    onnx.save(model, path)
    with pytest.raises(UnsupportedError, match="BitwiseNot") as refused:
        convkit.convert(path, to="onnx", opset=13, out=tmp_path / "old.onnx")
    assert "flip" in str(refused.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.slow  # exports with torch.export
def test_networks_that_only_the_newer_exporter_takes_reach_old_opsets(tmp_path: Path) -> None:
    """PyTorch's exporter begins at opset 18; its older one has no fused attention."""
    pytest.importorskip("torch", reason="exports the network")
    out = tmp_path / "m.onnx"
    report = convkit.convert(
        "tests.tiny_models:Encoder", to="onnx", opset=14, out=out,
        inputs=("x=float32[batch,sequence,16]",),
    )  # fmt: skip
    assert report.passed
    assert _opset(out) <= 14


def test_a_folder_stays_one_and_its_data_keep_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    _model(folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "labels.txt").write_text("up\ndown")
    out = tmp_path / "old"
    report = convkit.convert(folder, to="onnx", opset=13, out=out)
    assert report.passed
    assert {file.name for file in out.iterdir()} == {"model.onnx", "w.bin", "labels.txt"}
    assert _opset(out / "model.onnx") == 13
    with pytest.raises(UsageError, match="already is onnx"):
        convkit.convert(out, to="onnx", opset=13)
