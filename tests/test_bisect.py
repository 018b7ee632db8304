"""The first tensor at which two models part is found, with few runs and little memory."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.artifact import Artifact, Precision
from convkit.bisect import Divergence, first_divergence
from convkit.errors import UsageError
from convkit.exposing import ExposedGraph

onnx = pytest.importorskip("onnx", reason="models are built with the onnx package")
pytest.importorskip("onnxruntime", reason="models are run with ONNX Runtime")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

WIDTH, DEPTH = 16, 60


def _value(name: str, shape: list[Any], dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def _residual_chain(perturbed: int | None = None, dtype: Any = np.float32) -> Any:
    """DEPTH blocks of x + tanh(x w); the weight of one of them may differ from the others' twin."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for i in range(DEPTH):
        weight = rng.standard_normal((WIDTH, WIDTH)) / 8
        weight[0, 0] += 0.5 * (i == perturbed)
        weights.append(numpy_helper.from_array(weight.astype(dtype), f"w{i}"))
        nodes += [
            helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"], name=f"matmul_{i}"),
            helper.make_node("Tanh", [f"m{i}"], [f"t{i}"], name=f"tanh_{i}"),
            helper.make_node("Add", [value, f"t{i}"], [f"r{i}"], name=f"add_{i}"),
        ]
        value = f"r{i}"
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "chain",
        [_value("x", ["batch", WIDTH], code)],
        [_value(value, ["batch", WIDTH], code)],
        weights,
    )
    return _model(graph)


def _model(graph: Any) -> Any:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _save(path: Path, model: Any, precision: Precision = Precision.FP32) -> Artifact:
    path.write_bytes(model.SerializeToString())
    return Artifact(path, "onnx", precision)


def _samples(batch: int = 2) -> list[dict[str, np.ndarray[Any, Any]]]:
    return [{"x": np.random.default_rng(1).standard_normal((batch, WIDTH)).astype(np.float32)}]


@pytest.mark.parametrize("block", [0, 7, 31, DEPTH - 1])
def test_the_perturbed_node_is_found_however_deep(tmp_path: Path, block: int) -> None:
    reference = _save(tmp_path / "a.onnx", _residual_chain())
    candidate = _save(tmp_path / "b.onnx", _residual_chain(block))
    found = first_divergence(reference, candidate, _samples())
    assert found is not None
    assert (found.tensor, found.node, found.op_type) == (f"m{block}", f"matmul_{block}", "MatMul")
    assert found.last_agreeing == (None if block == 0 else f"r{block - 1}")
    assert found.sqnr_db < found.limit_db
    # log2(180) = 8 tensors a run narrow 180 to one in 3 runs; one for the outputs, two to confirm.
    assert found.run_count <= 6


def test_equal_models_do_not_part(tmp_path: Path) -> None:
    reference = _save(tmp_path / "a.onnx", _residual_chain())
    assert first_divergence(reference, reference, _samples()) is None


def test_external_weights_are_found_beside_the_model(tmp_path: Path) -> None:
    reference = _save(tmp_path / "a.onnx", _residual_chain())
    path = tmp_path / "b.onnx"
    onnx.save(
        _residual_chain(9), path, save_as_external_data=True, location="b.bin", size_threshold=0
    )
    found = first_divergence(reference, Artifact(path, "onnx", Precision.FP32), _samples())
    assert found is not None
    assert found.tensor == "m9"


def test_memory_limit_bounds_what_is_exposed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    run = ExposedGraph.run

    def counting(self: ExposedGraph, keys: Any, feeds: Any) -> Any:
        shown.append(len(keys))
        return run(self, keys, feeds)

    monkeypatch.setattr(ExposedGraph, "run", counting)
    reference = _save(tmp_path / "a.onnx", _residual_chain())
    candidate = _save(tmp_path / "b.onnx", _residual_chain(31))
    # One tensor of 2 x 16 elements, 32 bytes each, fits; two do not.
    found = first_divergence(reference, candidate, _samples(), memory_limit_bytes=2 * 16 * 32)
    assert found is not None
    assert found.tensor == "m31"
    assert max(shown) == 1


def test_half_precision_agrees_within_its_limits_and_a_real_error_is_found(tmp_path: Path) -> None:
    reference = _save(tmp_path / "a.onnx", _residual_chain())
    faithful = _save(tmp_path / "b.onnx", _residual_chain(dtype=np.float16), Precision.FP16)
    assert first_divergence(reference, faithful, _samples()) is None
    broken = _save(tmp_path / "c.onnx", _residual_chain(31, np.float16), Precision.FP16)
    found = first_divergence(reference, broken, _samples())
    assert found is not None
    assert found.tensor == "m31"


def test_overflow_of_half_precision_is_found_where_it_happens(tmp_path: Path) -> None:
    """Squares of 400 leave half precision; ONNX Runtime's CPU kernels would hide it."""
    pytest.importorskip("convkit.formats.onnx_true_half", reason="runs half precision exactly")

    def model(dtype: int) -> Any:
        nodes = [
            helper.make_node("Relu", ["x"], ["relu"], name="relu"),
            helper.make_node("Mul", ["relu", "relu"], ["square"], name="square"),
            helper.make_node("Sqrt", ["square"], ["y"], name="root"),
        ]
        return _model(
            helper.make_graph(nodes, "g", [_value("x", [4], dtype)], [_value("y", [4], dtype)])
        )

    reference = _save(tmp_path / "a.onnx", model(TensorProto.FLOAT))
    candidate = _save(tmp_path / "b.onnx", model(TensorProto.FLOAT16), Precision.FP16)
    found = first_divergence(reference, candidate, [{"x": np.full(4, 400, np.float32)}])
    assert found is not None
    assert (found.tensor, found.sqnr_db) == ("square", -math.inf)
    assert found.last_agreeing == "relu"
    assert [path.name for path in tmp_path.iterdir() if "exposed" in path.name] == []


def test_masks_that_differ_in_depth_alone_are_not_blamed(tmp_path: Path) -> None:
    """A mask of -1e9 and one of -65504 are both gone after the softmax; the weight is at fault."""

    def model(depth: float, shift: float) -> Any:
        nodes = [
            helper.make_node("Where", ["keep", "zero", "low"], ["mask"], name="mask"),
            helper.make_node("Add", ["x", "mask"], ["scores"], name="scores"),
            helper.make_node("Softmax", ["scores"], ["p"], name="softmax"),
            helper.make_node("MatMul", ["p", "w"], ["mixed"], name="mix"),
            helper.make_node("Relu", ["mixed"], ["y"], name="relu"),
        ]
        constants = {
            "keep": np.arange(WIDTH) < 9,
            "zero": np.float32(0),
            "low": np.float32(depth),
            "w": np.eye(WIDTH, dtype=np.float32) + np.float32(shift),
        }
        weights = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
        shape = ["batch", WIDTH]
        return _model(
            helper.make_graph(nodes, "g", [_value("x", shape)], [_value("y", shape)], weights)
        )

    reference = _save(tmp_path / "a.onnx", model(-1e9, 0.0))
    candidate = _save(tmp_path / "b.onnx", model(-65504.0, 0.1))
    found = first_divergence(reference, candidate, _samples())
    assert found is not None
    assert (found.tensor, found.last_agreeing) == ("mixed", "p")


def test_values_of_one_name_and_other_shapes_are_not_compared(tmp_path: Path) -> None:
    def model(inner: str, scale: float) -> Any:
        options = {"perm": [1, 0]} if inner == "Transpose" else {}
        nodes = [
            helper.make_node(inner, ["x"], ["v"], name="inner", **options),
            helper.make_node("ReduceSum", ["v"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "scale"], ["y"], name="scale"),
        ]
        weight = numpy_helper.from_array(np.array(scale, np.float32), "scale")
        return _model(
            helper.make_graph(nodes, "g", [_value("x", [2, WIDTH])], [_value("y", [])], [weight])
        )

    reference = _save(tmp_path / "a.onnx", model("Transpose", 1.0))
    candidate = _save(tmp_path / "b.onnx", model("Identity", 2.0))
    found = first_divergence(reference, candidate, _samples())
    assert found is not None
    assert (found.tensor, found.last_agreeing) == ("y", "sum")


def test_result_reads_well_and_is_json(tmp_path: Path) -> None:
    found = Divergence("v", "v", "n", "Add", -math.inf, math.inf, 80.0, None, 3, 9, "x (2, 16)")
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["sqnr_db"] == "-inf"
    assert "'v'" in str(found)
    assert "the inputs" in str(found)


def test_pairs_without_common_tensors_are_refused(tmp_path: Path) -> None:
    onnx_side = _save(tmp_path / "a.onnx", _residual_chain())
    other = Artifact(tmp_path / "b.gguf", "gguf", Precision.Q4)
    with pytest.raises(UsageError, match="onnx and gguf"):
        first_divergence(onnx_side, other, _samples())


def _network() -> Any:
    torch = pytest.importorskip("torch", reason="the reference is a PyTorch network")

    class Block(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(WIDTH, WIDTH)
            self.act = torch.nn.GELU()

        def forward(self, x: Any) -> Any:
            return x + self.act(self.linear(x))

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(Block() for _ in range(4))
            self.norm = torch.nn.LayerNorm(WIDTH)

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return self.norm(x)

    torch.manual_seed(0)
    return Network().eval()


@pytest.mark.parametrize("dynamo", [True, False], ids=["export", "legacy"])
@pytest.mark.filterwarnings("ignore")
def test_module_that_parts_from_its_export_is_named(tmp_path: Path, dynamo: bool) -> None:
    torch = pytest.importorskip("torch", reason="the reference is a PyTorch network")
    pytest.importorskip("onnxscript", reason="torch.onnx writes with it")
    network = _network()
    path = tmp_path / "net.onnx"
    options: dict[str, Any] = {"external_data": False, "verbose": False} if dynamo else {}
    torch.onnx.export(network, (torch.zeros(2, WIDTH),), str(path), dynamo=dynamo, **options)
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.blocks[2].linear.bias[0] += 0.5
    reference = Artifact(tmp_path, "torch", Precision.FP32)
    candidate = Artifact(path, "onnx", Precision.FP32)
    assert first_divergence(reference, candidate, _samples(), load=lambda _: network) is None
    found = first_divergence(reference, candidate, _samples(), load=lambda _: changed)
    assert found is not None
    assert found.counterpart == "blocks.2.linear"
    assert found.last_agreeing is not None
    assert found.op_type in ("Add", "Gemm")
