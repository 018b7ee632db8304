"""Dynamic int8 of ONNX graphs, with ONNX Runtime as judge."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.artifact import Opening
from convkit.errors import UnsupportedError
from convkit.formats.onnx import onnx as onnx_format
from convkit.metrics import sqnr_db
from tests.onnx_files import FLOAT, helper, make_value, numpy_helper, onnx, runtime, save
from tests.quantization.quantized_graphs import (
    float_graph,
    node,
    normal,
    operators_of,
    optimized_operators,
    outputs_of,
    quantized,
)

_LEAST_DB = 32.0
"""Of products of normal numbers in 8 bits, two in a row; ONNX Runtime's own dynamic int8 of three
in a row was measured at 35 dB."""


def _mlp() -> Any:
    """Two products of one input, one of them Gemm with everything, and a third behind."""
    nodes = [
        node("MatMul", "x w", "a", name="first"),
        node("Gemm", "x v b", "c", name="second", transB=1, alpha=0.5),
        node("Add", "a c", "d"),
        node("MatMul", "d w", name="third"),
    ]
    weights = {"w": normal(128, 128), "v": normal(128, 128, seed=1), "b": normal(128, seed=2)}
    return float_graph(nodes, weights, ["batch", 128])


@pytest.mark.parametrize("target", ["cpu", "cpu-avx2", "arm"])
def test_products_keep_their_values(target: str, tmp_path: Path) -> None:
    path = quantized(_mlp(), tmp_path, target=target)
    x = {"x": normal(16, 128, seed=3)}
    (expected,), (found,) = outputs_of(tmp_path / "float.onnx", x), outputs_of(path, x)
    least = _LEAST_DB - (
        4 if target == "cpu-avx2" else 0
    )  # weights have 7 bits there: 6 dB of half
    assert sqnr_db(expected, found) > least


def test_products_become_kernels_of_int8_and_inputs_are_quantized_once(tmp_path: Path) -> None:
    path = quantized(_mlp(), tmp_path)
    assert operators_of(path)["DynamicQuantizeLinear"] == 2, "x is read by two products"
    left = optimized_operators(path)
    kernels = left["MatMulIntegerToFloat"] + left["DynamicQuantizeMatMul"]
    assert kernels == 3, f"ONNX Runtime fused no more than {left}"
    assert not left["MatMulInteger"] + left["MatMul"] + left["Gemm"]


def test_it_is_as_accurate_as_onnxruntimes_own(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v")]
    model = float_graph(nodes, {"w": normal(128, 96), "v": normal(96, 128)}, ["batch", 128])
    path, peer = quantized(model, tmp_path), tmp_path / "peer.onnx"
    logging.disable(logging.WARNING)  # it recommends a preparation
    quantize_dynamic(tmp_path / "float.onnx", peer, weight_type=QuantType.QInt8, per_channel=True)
    logging.disable(logging.NOTSET)
    x = {"x": normal(64, 128, seed=3)}
    expected, own, other = (outputs_of(p, x)[0] for p in (tmp_path / "float.onnx", path, peer))
    assert sqnr_db(expected, own) > sqnr_db(expected, other) - 0.1  # they may round alike


def test_weights_that_several_read_are_stored_once(tmp_path: Path) -> None:
    path = quantized(_mlp(), tmp_path)
    large = [t for t in onnx.load(path).graph.initializer if np.prod(t.dims) >= 128 * 128]
    assert sorted(t.data_type for t in large) == [onnx.TensorProto.INT8] * 2


def test_what_is_kept_and_what_is_small_stays_float(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "a", name="kept"),
        node("MatMul", "a w", "b", name="quantized"),
        node("MatMul", "b s", name="small"),
    ]
    model = float_graph(nodes, {"w": normal(128, 128), "s": normal(128, 8)}, [1, 128])
    notes: list[str] = []
    path = quantized(model, tmp_path, keep=frozenset(["kept"]), note=notes.append)
    names = {n.name for n in onnx.load(path).graph.node if n.op_type == "MatMul"}
    assert names == {"kept", "small"}
    assert any("small" in text for text in notes)


def test_rows_of_tables_are_looked_up_as_integers(tmp_path: Path) -> None:
    nodes = [node("Gather", "t x", "a"), node("Gather", "t x", "b"), node("Add", "a b")]
    model = float_graph(nodes, {"t": normal(500, 64)}, ["length"])
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    path = quantized(model, tmp_path)
    x = {"x": np.arange(500)}
    (expected,), (found,) = outputs_of(tmp_path / "float.onnx", x), outputs_of(path, x)
    step = np.abs(expected).max(1, keepdims=True) / 127
    assert np.abs(expected - found).max() <= 32 * step.max(), "clipped by 30 % at most"
    assert sqnr_db(expected, found) > 38  # 127 steps to 2.5 deviations, rounded: 42 dB
    assert path.stat().st_size < (tmp_path / "float.onnx").stat().st_size / 3


def test_convolutions_are_stored_in_int8_and_compute_as_they_did(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w b", "a", pads=[1, 1, 1, 1]), node("Relu", "a")]
    model = float_graph(nodes, {"w": normal(32, 16, 3, 3), "b": normal(32)}, ["batch", 16, 8, 8])
    notes: list[str] = []
    path = quantized(model, tmp_path, note=notes.append)
    x = {"x": normal(2, 16, 8, 8, seed=1)}
    (expected,), (found,) = outputs_of(tmp_path / "float.onnx", x), outputs_of(path, x)
    assert sqnr_db(expected, found) > 40
    assert path.stat().st_size < (tmp_path / "float.onnx").stat().st_size / 2.5
    left = optimized_operators(path)
    assert not left["Cast"] + left["Mul"] + left["ConvInteger"], "weights are unpacked once"
    assert any("as fast as before: 1." in text for text in notes)


def test_products_inside_bodies_are_quantized(tmp_path: Path) -> None:
    branches = {}
    for branch, name in (("then_branch", "w"), ("else_branch", "v")):
        weight = numpy_helper.from_array(normal(128, 128, seed=len(branches)), name)
        given = [make_value(f"{branch}_y", FLOAT, None)]
        body = helper.make_graph(
            [node("MatMul", f"x {name}", f"{branch}_y", name=branch)], branch, [], given, [weight]
        )
        branches[branch] = body
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "is_positive"),
        node("If", "is_positive", **branches),
    ]
    model = float_graph(nodes, {"zero": np.float32(0).reshape(())}, [4, 128])
    path = quantized(model, tmp_path)
    assert operators_of(path)["MatMulInteger"] == 2
    for sign in (1, -1):
        x = {"x": sign * np.abs(normal(4, 128, seed=3))}
        (expected,), (found,) = outputs_of(tmp_path / "float.onnx", x), outputs_of(path, x)
        assert sqnr_db(expected, found) > _LEAST_DB


def test_one_large_token_does_not_spoil_the_others_in_feed_forward_layers(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b v")]
    weights = {"w": normal(64, 256), "v": normal(256, 64, seed=1)}
    model = float_graph(nodes, weights, ["batch", "length", 64])
    path = quantized(model, tmp_path)
    x = normal(2, 9, 64, seed=2)
    x[0, 0] *= 100
    x[1, 3] = 0
    (expected,), (found,) = (outputs_of(p, {"x": x}) for p in (tmp_path / "float.onnx", path))
    for row, other in zip(expected.reshape(-1, 64), found.reshape(-1, 64), strict=True):
        assert not row.any() or sqnr_db(row, other) > _LEAST_DB - 2  # a row is 64 numbers
    np.testing.assert_array_equal(found[1, 3], 0)
    told = onnx_format.describe(path, Opening()).details["quantization"]
    assert told["schemes"] == ["dynamic"]


def test_scales_of_rows_do_not_depend_on_what_onnxruntime_fuses(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b")]
    model = float_graph(nodes, {"w": normal(64, 256), "b": normal(256)}, ["batch", 9, 64])
    path = quantized(model, tmp_path)
    x = {"x": normal(2, 9, 64, seed=2) * np.arange(1, 10, dtype=np.float32)[:, None]}
    plain = runtime.SessionOptions()
    plain.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(path, plain, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        session.run(None, x)[0], outputs_of(path, x)[0], rtol=1e-5, atol=1e-4
    )


def test_a_model_with_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    save(float_graph([node("Relu", "x")], {}, [4]), tmp_path / "float.onnx")
    with pytest.raises(UnsupportedError, match="nothing in the model to quantize"):
        quantized(float_graph([node("Relu", "x")], {}, [4]), tmp_path)
