"""Weights that exporters hide in loops and arrangements, brought to light."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.metrics import sqnr_db
from convkit.onnx_typing import load_typed
from convkit.passes.onnx_half_writing import write_model
from convkit.quantization.exposed_weights import expose_weights
from tests.onnx_files import FLOAT, INT64, TensorProto, helper, make_value, onnx, save
from tests.quantization.quantized_graphs import (
    float_graph,
    node,
    normal,
    operators_of,
    outputs_of,
    quantized,
)


def _exposed(model: Any, folder: Path) -> Path:
    from onnx_ir.passes import common

    typed = load_typed(save(model, folder / "float.onnx"))
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(typed)
    expose_weights(typed, folder)
    out = folder / "exposed.onnx"
    write_model(typed, out, folder, "exposed.onnx.data")
    onnx.checker.check_model(onnx.load(out))
    return out


def _loop(*, gives_weight: bool = False, changes_weight: bool = False) -> Any:
    """`x` through tanh(x @ w) three times; w is carried, and each turn's value is scanned."""
    values = [make_value(name, FLOAT, [4, 128]) for name in ("h_in", "h_out", "scan")]
    carried = [make_value(name, FLOAT, [128, 128]) for name in ("w_in", "w_out")]
    turn = [make_value("i", INT64, []), make_value("go", TensorProto.BOOL, [])]
    body = helper.make_graph(
        [
            node("MatMul", "h_in w_in", "p", name="inside"),
            node("Tanh", "p", "h_out"),
            node("Identity", "h_out", "scan"),
            node("Identity", "go", "go_out"),
            node("Neg" if changes_weight else "Identity", "w_in", "w_out"),
        ],
        "body",
        [*turn, carried[0], values[0]],
        [make_value("go_out", TensorProto.BOOL, []), carried[1], values[1], values[2]],
    )
    loop = node("Loop", "count yes w x", "w_last y scans", body=body)
    weights = {"count": np.array(3), "yes": np.array(True), "w": normal(128, 128) / 8}
    shapes = {"y": [4, 128], "scans": [3, 4, 128]}
    if gives_weight:
        shapes["w_last"] = [128, 128]
    model = float_graph([loop], weights, [4, 128])
    del model.graph.output[:]
    model.graph.output.extend(make_value(name, FLOAT, shape) for name, shape in shapes.items())
    return model


def _inputs_of_loop(path: Path) -> int:
    return next(len(n.input) for n in onnx.load(path).graph.node if n.op_type == "Loop")


@pytest.mark.parametrize("gives_weight", [False, True])
def test_loops_read_weights_from_outside_and_compute_the_same(
    gives_weight: bool, tmp_path: Path
) -> None:
    path = _exposed(_loop(gives_weight=gives_weight), tmp_path)
    assert _inputs_of_loop(path) == (4 if gives_weight else 3)
    x = {"x": normal(4, 128, seed=1)}
    for expected, found in zip(
        outputs_of(tmp_path / "float.onnx", x), outputs_of(path, x), strict=True
    ):
        np.testing.assert_array_equal(expected, found)


def test_weights_that_a_loop_changes_stay_carried(tmp_path: Path) -> None:
    assert _inputs_of_loop(_exposed(_loop(changes_weight=True), tmp_path)) == 4


def test_products_in_loops_become_int8_with_the_weight_stored_once(tmp_path: Path) -> None:
    path = quantized(_loop(), tmp_path)
    assert operators_of(path)["MatMulInteger"] == 1
    assert path.stat().st_size < (tmp_path / "float.onnx").stat().st_size / 3
    x = {"x": normal(4, 128, seed=1)}
    for expected, found in zip(
        outputs_of(tmp_path / "float.onnx", x), outputs_of(path, x), strict=True
    ):
        assert sqnr_db(expected, found) > 30


def _rearranged_lstm() -> Any:
    """Gates in PyTorch's order, put into ONNX's as exporters do."""
    size = 64
    nodes = []
    for name in ("w", "r"):
        nodes += [
            node("Split", f"{name}0 parts", f"{name}i {name}f {name}c {name}o", axis=0),
            node("Concat", f"{name}i {name}o {name}f {name}c", f"{name}1", axis=0),
            node("Unsqueeze", f"{name}1 zero", name),
        ]
    weights = {
        "w0": normal(4 * size, size) / 8,
        "r0": normal(4 * size, size, seed=1) / 8,
        "parts": np.full(4, size),
        "zero": np.array([0]),
    }
    lstm = node("LSTM", "x w r", hidden_size=size)
    return float_graph([*nodes, lstm], weights, [5, 2, size])


def test_rearranged_weights_are_constants_and_compute_the_same(tmp_path: Path) -> None:
    path = _exposed(_rearranged_lstm(), tmp_path)
    known = {tensor.name for tensor in onnx.load(path).graph.initializer}
    lstm = next(n for n in onnx.load(path).graph.node if n.op_type == "LSTM")
    assert set(lstm.input[1:3]) <= known
    x = {"x": normal(5, 2, 64, seed=2)}
    (expected,), (found,) = outputs_of(tmp_path / "float.onnx", x), outputs_of(path, x)
    np.testing.assert_array_equal(expected, found)


def test_rearranged_weights_are_quantized_and_the_float_ones_gone(tmp_path: Path) -> None:
    path = quantized(_rearranged_lstm(), tmp_path)
    assert operators_of(path) == {"DynamicQuantizeLSTM": 1}
    assert path.stat().st_size < (tmp_path / "float.onnx").stat().st_size / 3
