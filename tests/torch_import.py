"""ONNX graphs for tests of the importer to PyTorch, and how they are compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
onnx = pytest.importorskip("onnx", reason="models are built with the onnx package")
runtime = pytest.importorskip("onnxruntime", reason="results are compared with ONNX Runtime")

from convkit.converters.onnx_to_torch.build import module_of  # noqa: E402
from tests.onnx_files import make_model, make_value  # noqa: E402

FP32 = 1e-5
"""Both sides sum in single precision, in another order: 3e-7 is typical, 4e-6 was the most seen."""

node = onnx.helper.make_node
FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
graph = onnx.helper.make_graph
value = make_value


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Seeded standard normal numbers, single precision."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def saved(
    folder: Path,
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str],
    weights: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, int] | None = None,
    opset: int = 20,
) -> Path:
    """A file with these nodes; inputs and outputs are floats unless `dtypes` says otherwise."""
    dtypes = dtypes or {}
    path = folder / "model.onnx"
    model = make_model(
        list(nodes),
        [make_value(name, dtypes.get(name, FLOAT), list(shape)) for name, shape in inputs.items()],
        [make_value(name, dtypes.get(name, FLOAT), None) for name in outputs],
        {name: np.asarray(array) for name, array in (weights or {}).items()},
        opsets=(("", opset),),
    )
    onnx.save(model, path)
    return path


def expected(path: Path, feeds: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime computes node by node; optimised, it quantizes what is multiplied."""
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    results: list[np.ndarray[Any, Any]] = session.run(None, dict(zip(names, feeds, strict=True)))
    return results


def assert_agrees(
    module: Any, path: Path, feeds: Sequence[np.ndarray[Any, Any]], limit: float = FP32
) -> None:
    """Compares shapes, dtypes and numbers of all outputs with ONNX Runtime's."""
    with torch.no_grad():
        results = module(*(torch.from_numpy(np.array(feed)) for feed in feeds))
    found = list(results.values()) if isinstance(results, dict) else list(results)
    for got, wanted in zip(found, expected(path, feeds), strict=True):
        torch.testing.assert_close(got, torch.from_numpy(np.array(wanted)), rtol=limit, atol=limit)


def imported(path: Path, *feeds: np.ndarray[Any, Any], limit: float = FP32) -> Any:
    """The module for a file, compared with ONNX Runtime on these inputs."""
    module = module_of(path)
    assert_agrees(module, path, feeds, limit)
    return module
