"""Models that others quantized are told as what they are, and are not quantized again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.artifact import Artifact, Opening, Precision
from convkit.errors import UnsupportedError
from convkit.formats.onnx import onnx as onnx_format
from convkit.onnx_typing import load_typed
from convkit.quantization.recognition import recognised, refuse_quantized
from convkit.step import Work
from tests.onnx_files import FLOAT, helper, make_model, make_value, onnx, save
from tests.quantization.quantized_graphs import float_graph, node, normal, quantized

Maker = Callable[[Path], Path]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """ONNX Runtime's quantizers recommend a preparation each time."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def _float(folder: Path) -> Path:
    nodes = [
        node("Conv", "x w b", "a", name="conv", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r"),
        node("Flatten", "r", "f"),
        node("MatMul", "f m", name="product"),
    ]
    weights = {"w": normal(32, 8, 3, 3), "b": normal(32), "m": normal(512, 64)}
    return save(float_graph(nodes, weights, [2, 8, 4, 4]), folder / "float.onnx")


def _static(folder: Path, **choices: Any) -> Path:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        rows = iter([{"x": normal(2, 8, 4, 4, seed=1)}])

        def get_next(self) -> Any:
            return next(self.rows, None)

    out = folder / "peer.onnx"
    quantization.quantize_static(_float(folder), out, Reader(), **choices)
    return out


def _qdq(folder: Path) -> Path:
    return _static(folder, per_channel=True)


def _qdq_of_tensorrt(folder: Path) -> Path:
    from onnxruntime.quantization import QuantType

    options = {"AddQDQPairToWeight": True, "ActivationSymmetric": True}
    return _static(folder, activation_type=QuantType.QInt8, extra_options=options)


def _qoperator(folder: Path) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType

    choices = {"quant_format": QuantFormat.QOperator, "activation_type": QuantType.QUInt8}
    return _static(folder, **choices)


def _dynamic(folder: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(_float(folder), folder / "peer.onnx")
    return folder / "peer.onnx"


def _blocks(folder: Path) -> Path:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(_float(folder))
    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True)
    quantizer.process()
    onnx.save(quantizer.model.model, folder / "peer.onnx")
    return folder / "peer.onnx"


def _own(folder: Path) -> Path:
    return quantized(onnx.load(_float(folder)), folder)


@pytest.mark.parametrize(
    ("make", "kinds", "precision", "weights"),
    [
        (_qdq, ["qdq"], Precision.INT8, {"int8 per channel": 35072}),
        (_qdq_of_tensorrt, ["qdq"], Precision.INT8, {"int8 per tensor": 35072}),
        (_qoperator, ["qoperator"], Precision.INT8, {"int8 per tensor": 35072}),
        (_dynamic, ["dynamic"], Precision.INT8, {"int8 per tensor": 35072}),
        (_blocks, ["block"], Precision.Q4, {"uint4 in blocks of 32": 32768, "float32": 2336}),
        (
            _own,
            ["dynamic", "packed"],
            Precision.INT8,
            {"int8 per channel": 32768, "int8 in blocks of 36": 2304},
        ),
    ],
)
def test_what_is_quantized_is_told_and_refused(
    make: Maker, kinds: list[str], precision: Precision, weights: dict[str, int], tmp_path: Path
) -> None:
    path = make(tmp_path)
    described = onnx_format.describe(path, Opening())
    told = described.details["quantization"]
    assert [kind for kind in told["schemes"] if kind in kinds] == kinds
    assert weights.items() <= told["weights"].items()
    assert described.precision is precision
    share = 0.933 if precision is Precision.Q4 else 0.99
    assert told["quantized_share"] == pytest.approx(share, abs=0.011)
    model = load_typed(path)
    found = recognised(model)
    assert found is not None
    assert dict(found.operators) == told["operators"], "the header says what the graph says"
    with pytest.raises(UnsupportedError, match="quantized already") as refused:
        refuse_quantized(model, _artifact(path, described.precision), _work([]))
    assert "--force" in refused.value.hint


def _artifact(path: Path, precision: Precision) -> Artifact:
    return Artifact(path=path, format="onnx", precision=precision, inputs=(), outputs=())


def _work(notes: list[str], *, is_forced: bool = False) -> Work:
    return Work((), lambda _: None, notes.append, lambda *_: None, is_forced=is_forced)


def test_activations_are_told(tmp_path: Path) -> None:
    told = onnx_format.describe(_qdq_of_tensorrt(tmp_path), Opening()).details["quantization"]
    assert told["activations"] == ["int8"]
    told = onnx_format.describe(_qoperator(tmp_path), Opening()).details["quantization"]
    assert told["activations"] == ["uint8"]


def test_float_models_are_not_taken_for_quantized_ones(tmp_path: Path) -> None:
    nodes = [
        node("Gather", "indices x", "i"),  # a table of indices is no weight
        node("Cast", "i", "f", to=FLOAT),
        node("MatMul", "f w"),
    ]
    weights = {"indices": np.zeros((2000, 8), np.int64), "w": normal(8, 8)}
    model = float_graph(nodes, weights, ["n"])
    model.graph.input[0].type.tensor_type.elem_type = 7
    path = save(model, tmp_path / "m.onnx")
    described = onnx_format.describe(path, Opening())
    assert "quantization" not in described.details
    assert recognised(load_typed(path)) is None


def test_who_insists_is_told_and_served(tmp_path: Path) -> None:
    notes: list[str] = []
    path = _qdq(tmp_path)
    work = _work(notes, is_forced=True)
    refuse_quantized(load_typed(path), _artifact(path, Precision.INT8), work)
    assert "QuantizeLinear" in notes[0]


def test_lstm_and_tables_of_onnxruntime_are_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "DynamicQuantizeLSTM",
            ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"],
            ["y"],
            domain="com.microsoft",
            hidden_size=16,
        )
    ]
    scale, zero = np.ones((1, 64), np.float32), np.zeros((1, 64), np.int8)
    weights = {"w": np.zeros((1, 32, 64), np.int8), "r": np.zeros((1, 16, 64), np.int8)}
    weights |= {"ws": scale, "wz": zero, "rs": scale, "rz": zero}
    model = make_model(
        nodes,
        [make_value("x", FLOAT, [3, 1, 32])],
        [make_value("y", FLOAT, None)],
        weights,
        opsets=(("", 17), ("com.microsoft", 1)),
    )
    described = onnx_format.describe(save(model, tmp_path / "m.onnx"), Opening())
    assert described.parameter_count == 48 * 64
    told = described.details["quantization"]
    assert (told["schemes"], told["weights"]) == (["dynamic"], {"int8 per channel": 48 * 64})
