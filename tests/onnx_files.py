"""ONNX files that tests of the format make, and how they open them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.artifact import Artifact, Opening, Precision
from convkit.formats.onnx import onnx as onnx_format
from convkit.formats.onnx_session import SessionRunner

onnx = pytest.importorskip("onnx", reason="models are built with the onnx package")
runtime = pytest.importorskip("onnxruntime", reason="models are run with ONNX Runtime")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def make_value(name: str, dtype: int, shape: list[Any] | None) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def make_model(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    *,
    opsets: tuple[tuple[str, int], ...] = (("", 20),),
    ir_version: int = 10,
) -> Any:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid(*entry) for entry in opsets]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def make_linear(weights: np.ndarray[Any, Any] | None = None) -> Any:
    if weights is None:
        weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    return make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")],
        [make_value("x", FLOAT, ["batch", 4])],
        [make_value("y", FLOAT, ["batch", 3])],
        {"w": weights},
    )


def save(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def save_external(folder: Path, location: str = "w.bin", **entries: str) -> Path:
    """The linear model with its weight in `location`; nothing is written to `location` itself."""
    model = make_linear()
    tensor = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": location, "length": "48", **entries}.items():
        tensor.external_data.add(key=key, value=entry)
    return save(model, folder / "m.onnx")


def artifact_of(path: Path, precision: Precision = Precision.FP32) -> Artifact:
    described = onnx_format.describe(path, Opening())
    return Artifact(path, "onnx", precision, described.inputs, described.outputs)


def open_model(path: Path) -> SessionRunner:
    return SessionRunner(Artifact(path, "onnx", Precision.FP32))
