"""ONNX Runtime's own operators in the SavedModel importer against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs TensorFlow")
pytest.importorskip("onnxruntime", reason="compares with ONNX Runtime")

import onnx
import onnxruntime
from onnx import helper

from tests.tensorflow_operators import computed

FLOAT_LIMITS = {"rtol": 2e-4, "atol": 2e-5}
"""Sums in another order: float32 has 24 bits, the longest sum some hundred terms."""
_RANDOM = np.random.default_rng(3)


def _floats(*shape: int) -> np.ndarray[Any, Any]:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _bytes(*shape: int) -> np.ndarray[Any, Any]:
    return _RANDOM.integers(0, 256, shape).astype(np.uint8)


def _small(*shape: int) -> np.ndarray[Any, Any]:
    return _RANDOM.integers(-128, 128, shape).astype(np.int8)


def _scale(value: float) -> np.ndarray[Any, Any]:
    return np.asarray(value, np.float32)


def _zero(value: int) -> np.ndarray[Any, Any]:
    return np.asarray(value, np.uint8)


def _pair(
    kind: str,
    inputs: Sequence[Any],
    attributes: dict[str, Any],
    outputs: Sequence[int],
    domain: str = "com.microsoft",
) -> tuple[list[Any], list[Any]]:
    """The outputs at these places, by us and by ONNX Runtime with its own rewriting off."""
    names = ["" if value is None else f"i{n}" for n, value in enumerate(inputs)]
    results = [f"o{n}" if n in outputs else "" for n in range(max(outputs) + 1)]
    node = helper.make_node(kind, names, results, domain=domain, **attributes)
    arrays = {name: value for name, value in zip(names, inputs, strict=True) if name}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in arrays.items()
        ],
        [helper.make_value_info(name, onnx.TypeProto()) for name in results if name],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return computed(node, list(arrays.values())), session.run(None, arrays)


_IMAGE = _floats(2, 4, 8, 7)
_HIDDEN = _floats(2, 5, 16)
_TABLE = _RANDOM.uniform(-1, 1, (12, 4)).astype(np.float32)

_CASES: list[tuple[str, list[Any], dict[str, Any], list[int]]] = [
    ("BiasGelu", [_HIDDEN, _floats(16)], {}, [0]),
    ("FastGelu", [_HIDDEN, _floats(16)], {}, [0]),
    ("Gelu", [_HIDDEN], {}, [0]),
    ("QuickGelu", [_HIDDEN], {"alpha": 1.3}, [0]),
    ("FusedMatMul", [_floats(2, 5, 3), _floats(2, 5, 4)], {"transA": 1, "alpha": 0.5}, [0]),
    ("FusedMatMul", [_floats(2, 3, 5), _floats(2, 4, 5)], {"transB": 1}, [0]),
    ("FusedGemm", [_floats(3, 5), _floats(5, 4), _floats(4)], {"activation": "Relu"}, [0]),
    (
        "FusedConv",
        [_IMAGE, _floats(6, 4, 3, 3), _floats(6)],
        {"activation": "LeakyRelu", "activation_params": [0.2], "pads": [1, 1, 1, 1]},
        [0],
    ),
    ("NhwcMaxPool", [_bytes(1, 8, 7, 4)], {"kernel_shape": [2, 2], "strides": [2, 2]}, [0]),
    (
        "SkipLayerNormalization",
        [_HIDDEN, _floats(2, 5, 16), _floats(16), _floats(16), _floats(16)],
        {"epsilon": 1e-5},
        [0, 3],
    ),
    (
        "SkipSimplifiedLayerNormalization",
        [_HIDDEN, _floats(2, 5, 16), _floats(16)],
        {"epsilon": 1e-5},
        [0, 3],
    ),
    (
        "EmbedLayerNormalization",
        [
            np.asarray([[1, 2, 3], [4, 5, 0]], np.int32),
            np.asarray([[0, 1, 1], [0, 0, 1]], np.int32),
            _floats(7, 8),
            _floats(6, 8),
            _floats(2, 8),
            _floats(8),
            _floats(8),
            np.asarray([[1, 1, 1], [1, 1, 0]], np.int32),
        ],
        {"epsilon": 1e-5},
        [0, 1],
    ),
    (
        "MatMulNBits",
        [_floats(3, 40), _bytes(6, 2, 16), _floats(12)],
        {"K": 40, "N": 6, "bits": 4, "block_size": 32},
        [0],
    ),
    (
        "MatMulNBits",
        [_floats(2, 3, 64), _bytes(6, 2, 16), _floats(12), _bytes(6)],
        {"K": 64, "N": 6, "bits": 4, "block_size": 32},
        [0],
    ),
    (
        "MatMulNBits",
        [_floats(3, 64), _bytes(6, 2, 32), _floats(12), _bytes(12)],
        {"K": 64, "N": 6, "bits": 8, "block_size": 32},
        [0],
    ),
    (
        "DynamicQuantizeMatMul",
        [_floats(3, 8), _small(8, 5), _floats(5), _small(5), _floats(5)],
        {},
        [0],
    ),
    (
        "MatMulIntegerToFloat",
        [_bytes(3, 8), _small(8, 5), _scale(0.1), _floats(5), _zero(7), _small(5), _floats(5)],
        {},
        [0],
    ),
    ("Attention", [_floats(2, 5, 12), _floats(12, 48), _floats(48)], {"num_heads": 4}, [0]),
    (
        "Attention",
        [_floats(2, 5, 12), _floats(12, 48), _floats(48), np.asarray([3, 5], np.int32)],
        {"num_heads": 4},
        [0],
    ),
    (
        "Attention",
        [
            _floats(2, 5, 12),
            _floats(12, 48),
            _floats(48),
            np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32),
            _floats(2, 2, 4, 0, 4),
        ],
        {"num_heads": 4, "unidirectional": 1},
        [0, 1],
    ),
    (
        "MultiHeadAttention",
        [_floats(2, 3, 16), _floats(2, 5, 16), _floats(2, 5, 16), _floats(48)],
        {"num_heads": 4},
        [0],
    ),
    (
        "MultiHeadAttention",
        [
            _floats(2, 3, 16),
            _floats(2, 3, 16),
            _floats(2, 3, 16),
            None,
            None,
            _floats(1, 4, 3, 7),
            _floats(2, 4, 4, 4),
            _floats(2, 4, 4, 4),
        ],
        {"num_heads": 4},
        [0, 1, 2],
    ),
    (
        "RotaryEmbedding",
        [_floats(2, 3, 16), np.asarray([[0, 1, 2], [4, 5, 6]]), _TABLE, _TABLE],
        {"interleaved": 1},
        [0],
    ),
    (
        "GroupQueryAttention",
        [
            _floats(2, 1, 64),
            _floats(2, 1, 32),
            _floats(2, 1, 32),
            _floats(2, 2, 4, 16),
            _floats(2, 2, 4, 16),
            np.asarray([4, 4], np.int32),
            np.asarray(5, np.int32),
            _floats(12, 8),
            _floats(12, 8),
        ],
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1},
        [0, 1, 2],
    ),
    (
        "GroupQueryAttention",
        [
            _floats(1, 3, 128),
            None,
            None,
            None,
            None,
            np.asarray([2], np.int32),
            np.asarray(3, np.int32),
            _floats(12, 8),
            _floats(12, 8),
        ],
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "local_window_size": 2},
        [0, 1, 2],
    ),
    (
        "GatherBlockQuantized",
        [_bytes(6, 16), np.asarray([[0, 5], [2, 2]]), _floats(6, 2), _bytes(6, 1)],
        {"block_size": 16, "bits": 4},
        [0],
    ),
]


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "outputs"),
    _CASES,
    ids=[f"{n}-{case[0]}" for n, case in enumerate(_CASES)],
)
def test_an_operator_agrees_with_onnx_runtime(kind, inputs, attributes, outputs) -> None:
    ours, reference = _pair(kind, inputs, attributes, outputs)
    assert len(ours) == len(reference)
    for one, other in zip(ours, reference, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, **FLOAT_LIMITS)


_QUANTIZED: list[tuple[str, list[Any], dict[str, Any]]] = [
    (
        "QLinearAdd",
        [
            _bytes(2, 3, 4),
            _scale(0.1),
            _zero(3),
            _bytes(3, 4),
            _scale(0.05),
            _zero(120),
            _scale(0.12),
            _zero(9),
        ],
        {},
    ),
    (
        "QLinearMul",
        [
            _bytes(2, 3, 4),
            _scale(0.1),
            _zero(3),
            _bytes(3, 4),
            _scale(0.05),
            _zero(120),
            _scale(0.4),
            _zero(90),
        ],
        {},
    ),
    ("QLinearSigmoid", [_bytes(2, 30), _scale(0.05), _zero(120), _scale(1 / 256), _zero(0)], {}),
    (
        "QLinearLeakyRelu",
        [_bytes(2, 30), _scale(0.05), _zero(120), _scale(0.05), _zero(100)],
        {"alpha": 0.1},
    ),
    (
        "QLinearSoftmax",
        [_bytes(2, 30), _scale(0.05), _zero(120), _scale(1 / 256), _zero(0)],
        {"axis": -1, "opset": 13},
    ),
    (
        "QLinearConcat",
        [
            _scale(0.1),
            _zero(4),
            _bytes(2, 3),
            _scale(0.05),
            _zero(9),
            _bytes(2, 5),
            _scale(0.2),
            _zero(100),
        ],
        {"axis": 1},
    ),
    (
        "QLinearAveragePool",
        [_bytes(1, 2, 8, 7), _scale(0.1), _zero(9), _scale(0.08), _zero(20)],
        {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]},
    ),
    (
        "QLinearGlobalAveragePool",
        [_bytes(1, 2, 8, 7), _scale(0.1), _zero(9), _scale(0.08), _zero(20)],
        {},
    ),
    (
        "QGemm",
        [
            _bytes(3, 8),
            _scale(0.1),
            _zero(9),
            _small(8, 5),
            _scale(0.02),
            np.asarray(3, np.int8),
            None,
            _scale(0.3),
            _zero(100),
        ],
        {},
    ),
]


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"), _QUANTIZED, ids=[case[0] for case in _QUANTIZED]
)
def test_a_quantized_operator_agrees_within_one_step(kind, inputs, attributes) -> None:
    """ONNX Runtime rounds by tables and fixed point, so a tie may fall to either side."""
    ours, reference = _pair(kind, inputs, attributes, [0])
    assert ours[0].dtype == reference[0].dtype
    assert np.abs(ours[0].astype(int) - reference[0].astype(int)).max() <= 1


def test_simplified_layer_normalization_agrees_with_onnx_runtime() -> None:
    attributes = {"axis": -1, "epsilon": 1e-5, "stash_type": 1}
    ours, reference = _pair(
        "SimplifiedLayerNormalization", [_HIDDEN, _floats(16)], attributes, [0], domain=""
    )
    np.testing.assert_allclose(ours[0], reference[0], **FLOAT_LIMITS)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_an_lstm_of_integer_weights_is_as_near_as_eight_bits_allow(direction) -> None:
    """ONNX Runtime also rounds the activations to 8 bits, we do not."""
    count, hidden, width = (2 if direction == "bidirectional" else 1), 6, 5
    inputs = [
        _floats(4, 2, width),
        _small(count, width, 4 * hidden),
        _small(count, hidden, 4 * hidden),
        _floats(count, 8 * hidden) * 0.1,
        None,
        None,
        None,
        None,
        np.full(count, 0.004, np.float32),
        np.zeros(count, np.int8),
        np.full(count, 0.004, np.float32),
        np.zeros(count, np.int8),
    ]
    attributes = {"hidden_size": hidden, "direction": direction}
    ours, reference = _pair("DynamicQuantizeLSTM", inputs, attributes, [0, 1, 2])
    for one, other in zip(ours, reference, strict=True):
        # A step of x is its range / 255, about 0.015; weights of 0.25 add up some of them.
        np.testing.assert_allclose(one, other, atol=0.02)
