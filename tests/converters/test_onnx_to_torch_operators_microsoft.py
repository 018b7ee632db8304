from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.torch_import import numbers, torch
from tests.torch_operator_checks import MICROSOFT, agrees

fused_agrees = functools.partial(agrees, domain=MICROSOFT)

STEP = 1.001
"""One step of the quantized result: both sides round, and float32 sums may fall on either side."""

F = np.float32
FUSIONS: Mapping[str, tuple[str, list[Any], list[Any], dict[str, Any]]] = {
    "gelu": ("Gelu", [numbers(2, 3)], [F], {}),
    "bias gelu": ("BiasGelu", [numbers(2, 3), numbers(3)], [F], {}),
    "fast gelu": ("FastGelu", [numbers(2, 3), numbers(3)], [F], {}),
    "quick gelu": ("QuickGelu", [numbers(2, 3)], [F], {"alpha": 1.5}),
    "matmul of transposes": (
        "FusedMatMul",
        [numbers(2, 4, 3), numbers(2, 5, 4)],
        [F],
        {"transA": 1, "transB": 1, "alpha": 0.5},
    ),
    "matmul of batch transposes": (
        "FusedMatMul",
        [numbers(3, 2, 4), numbers(2, 4, 5)],
        [F],
        {"transBatchA": 1},
    ),
    "gemm with leaky relu": (
        "FusedGemm",
        [numbers(2, 4), numbers(4, 5), numbers(5)],
        [F],
        {"activation": "LeakyRelu", "activation_alpha": 0.3},
    ),
    "conv with sum and relu": (
        "FusedConv",
        [numbers(1, 2, 5, 5), numbers(3, 2, 3, 3), numbers(3), numbers(1, 3, 5, 5)],
        [F],
        {"activation": "Relu", "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]},
    ),
    "skip layer norm": (
        "SkipLayerNormalization",
        [numbers(2, 3, 8), numbers(2, 3, 8, seed=1), numbers(8), numbers(8, seed=2), numbers(8)],
        [F, None, None, F],
        {"epsilon": 1e-5},
    ),
    "skip rms norm": (
        "SkipSimplifiedLayerNormalization",
        [numbers(2, 3, 8), numbers(2, 3, 8, seed=1), numbers(8)],
        [F, None, None, F],
        {"epsilon": 1e-5},
    ),
    "embeddings": (
        "EmbedLayerNormalization",
        [
            np.array([[1, 4, 2], [0, 3, 3]], np.int32),
            np.array([[0, 0, 1], [1, 1, 0]], np.int32),
            numbers(5, 8),
            numbers(4, 8, seed=1),
            numbers(2, 8, seed=2),
            numbers(8, seed=3),
            numbers(8, seed=4),
            np.array([[1, 1, 0], [1, 1, 1]], np.int32),
        ],
        [F, np.int32],
        {"epsilon": 1e-6},
    ),
    "rotary embedding": (
        "RotaryEmbedding",
        [numbers(2, 3, 16), np.array([[0, 1, 2], [3, 4, 5]]), numbers(6, 4), numbers(6, 4, seed=1)],
        [F],
        {},
    ),
    "interleaved rotary embedding from an offset": (
        "RotaryEmbedding",
        [numbers(2, 2, 3, 8), np.array([2]), numbers(6, 4), numbers(6, 4, seed=1)],
        [F],
        {"interleaved": 1},
    ),
}


@pytest.mark.parametrize("case", FUSIONS.values(), ids=FUSIONS.keys())
def test_a_fused_operator_computes_what_onnx_runtime_computes(case: Any, tmp_path: Path) -> None:
    operator, inputs, dtypes, attributes = case
    fused_agrees(tmp_path, operator, inputs, dtypes, **attributes)


def test_simplified_layer_normalization_of_the_standard_domain_agrees(tmp_path: Path) -> None:
    agrees(
        tmp_path,
        "SimplifiedLayerNormalization",
        [numbers(2, 3, 8), numbers(8)],
        [F, F],
        domain="",
        axis=-1,
    )


QKV = [numbers(2, 3, 8), numbers(2, 5, 8, seed=1), numbers(2, 5, 8, seed=2)]
ATTENTIONS: Mapping[str, tuple[str, list[Any], list[Any], dict[str, Any]]] = {
    "projected": (
        "Attention",
        [numbers(2, 4, 6), numbers(6, 24, seed=1), numbers(24, seed=2)],
        [F, F],
        {"num_heads": 2},
    ),
    "projected, causal, with a past": (
        "Attention",
        [
            numbers(2, 3, 6),
            numbers(6, 24, seed=1),
            numbers(24, seed=2),
            None,
            numbers(2, 2, 2, 2, 4),
        ],
        [F, F],
        {"num_heads": 2, "unidirectional": 1},
    ),
    "projected, with key lengths": (
        "Attention",
        [
            numbers(2, 4, 6),
            numbers(6, 24, seed=1),
            numbers(24, seed=2),
            np.array([4, 2], np.int32),
        ],
        [F],
        {"num_heads": 2},
    ),
    "projected, with a key mask": (
        "Attention",
        [
            numbers(2, 4, 6),
            numbers(6, 24, seed=1),
            numbers(24, seed=2),
            np.array([[1, 1, 1, 0], [1, 0, 0, 0]], np.int32),
        ],
        [F],
        {"num_heads": 2},
    ),
    "cross": ("MultiHeadAttention", QKV, [F], {"num_heads": 2, "scale": 0.3}),
    "cross, with biases and a key mask": (
        "MultiHeadAttention",
        [*QKV, numbers(24), np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.int32)],
        [F],
        {"num_heads": 2},
    ),
    "cross, with a score bias": (
        "MultiHeadAttention",
        [*QKV, None, None, numbers(2, 2, 3, 5)],
        [F],
        {"num_heads": 2},
    ),
    "self, causal, with a past": (
        "MultiHeadAttention",
        [
            *[numbers(2, 3, 8, seed=s) for s in range(3)],
            None,
            None,
            None,
            numbers(2, 2, 4, 4),
            numbers(2, 2, 4, 4, seed=5),
        ],
        [F, F, F],
        {"num_heads": 2, "unidirectional": 1},
    ),
}


@pytest.mark.parametrize("case", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_attention_computes_what_onnx_runtime_computes(case: Any, tmp_path: Path) -> None:
    operator, inputs, dtypes, attributes = case
    fused_agrees(tmp_path, operator, inputs, dtypes, **attributes)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("past", [0, 4])
@pytest.mark.parametrize("window", [-1, 3])
def test_grouped_queries_with_a_cache_agree(
    past: int, interleaved: int, window: int, tmp_path: Path
) -> None:
    length = 1 if past else 3
    ends = np.array([past + length - 1, past + length - 1], np.int32)
    cache = [numbers(2, 2, past, 16), numbers(2, 2, past, 16, seed=1)]
    fused_agrees(
        tmp_path,
        "GroupQueryAttention",
        [
            numbers(2, length, 64),
            numbers(2, length, 32, seed=3),
            numbers(2, length, 32, seed=4),
            *cache,
            ends,
            np.array(past + length, np.int32),
            numbers(10, 8, seed=5),
            numbers(10, 8, seed=6),
        ],
        [F, F, F],
        weights=[6],
        num_heads=4,
        kv_num_heads=2,
        do_rotary=1,
        rotary_interleaved=interleaved,
        local_window_size=window,
    )


@pytest.mark.parametrize("attributes", [{"softcap": 2.0}, {"smooth_softmax": 1}])
def test_grouped_queries_with_other_softmaxes_agree(
    attributes: dict[str, Any], tmp_path: Path
) -> None:
    fused_agrees(
        tmp_path,
        "GroupQueryAttention",
        [
            numbers(1, 3, 128),
            None,
            None,
            None,
            None,
            np.array([2], np.int32),
            np.array(3, np.int32),
        ],
        [F],
        weights=[6],
        num_heads=4,
        kv_num_heads=2,
        **attributes,
    )


def integers(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> np.ndarray[Any, Any]:
    dtype = np.uint8 if low >= 0 else np.int8
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def scale(value: float) -> np.ndarray[Any, Any]:
    return np.array(value, np.float32)


def zero(value: int) -> np.ndarray[Any, Any]:
    return np.array(value, np.uint8)


PAIR = [integers(2, 3, 4, 4), scale(0.02), zero(128)]
OTHER = [integers(2, 3, 4, 4, seed=1), scale(0.03), zero(120)]
QUANTIZED: Mapping[str, tuple[str, list[Any], dict[str, Any]]] = {
    "add": ("QLinearAdd", [*PAIR, *OTHER, scale(0.04), zero(127)], {}),
    "mul": ("QLinearMul", [*PAIR, *OTHER, scale(0.04), zero(127)], {}),
    "sigmoid": ("QLinearSigmoid", [*PAIR, scale(1 / 256), zero(0)], {}),
    "leaky relu": ("QLinearLeakyRelu", [*PAIR, scale(0.02), zero(20)], {"alpha": 0.1}),
    "average pool": (
        "QLinearAveragePool",
        [*PAIR, scale(0.02), zero(128)],
        {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "global average pool": ("QLinearGlobalAveragePool", [*PAIR, scale(0.01), zero(128)], {}),
    "softmax": ("QLinearSoftmax", [*PAIR, scale(1 / 256), zero(0)], {"axis": 1, "opset": 13}),
    "concat": ("QLinearConcat", [scale(0.03), zero(128), *PAIR, *OTHER], {"axis": 1}),
}


@pytest.mark.parametrize("case", QUANTIZED.values(), ids=QUANTIZED.keys())
def test_a_quantized_operator_is_within_a_step_of_onnx_runtime(case: Any, tmp_path: Path) -> None:
    operator, inputs, attributes = case
    constants = [i for i, array in enumerate(inputs) if array.ndim == 0]
    fused_agrees(tmp_path, operator, inputs, [np.uint8], STEP, constants, **attributes)


def test_integer_products_agree(tmp_path: Path) -> None:
    b, scales = integers(6, 5, low=-128, high=128), np.abs(numbers(5)) * 0.1
    zeros = np.array([1, 0, -2, 3, 0], np.int8)
    a = integers(4, 6)
    inputs = [a, b, scale(0.02), scales, zero(100), zeros, numbers(5)]
    fused_agrees(tmp_path, "MatMulIntegerToFloat", inputs, [F], weights=[1, 3, 5])
    dynamic = [numbers(4, 6), b, scales, zeros, numbers(5)]
    # The activations' rounding to 256 steps may differ by one step: 0.02 * 0.1 * 128.
    fused_agrees(tmp_path, "DynamicQuantizeMatMul", dynamic, [F], 0.05, [1, 2, 3])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("with_zeros", [False, True])
def test_products_with_packed_weights_agree(bits: int, with_zeros: bool, tmp_path: Path) -> None:
    rows, columns, block = 8, 64, 32
    blocks = columns // block
    packed = integers(rows, blocks, block * bits // 8)
    scales = np.abs(numbers(rows, blocks)) * 0.1
    zeros = integers(rows, -(-blocks * bits // 8), seed=2) if with_zeros else None
    inputs = [numbers(3, columns), packed, scales, zeros]
    constants = [1, 2, 3] if with_zeros else [1, 2]
    attributes = {"N": rows, "K": columns, "bits": bits, "block_size": block}
    # Sums of 64 products of weights up to 25.
    fused_agrees(tmp_path, "MatMulNBits", inputs, [F], 1e-4, constants, **attributes)


@pytest.mark.parametrize("kind", [0, 1])
def test_products_with_bitsandbytes_weights_agree(kind: int, tmp_path: Path) -> None:
    rows, columns, block = 4, 32, 16
    packed, peaks = integers(rows * columns // 2), np.abs(numbers(rows * columns // block))
    attributes = {"N": rows, "K": columns, "block_size": block, "quant_type": kind}
    fused_agrees(
        tmp_path,
        "MatMulBnb4",
        [numbers(3, columns), packed, peaks],
        [F],
        weights=[1, 2],
        **attributes,
    )


def test_rows_of_a_packed_table_agree(tmp_path: Path) -> None:
    table, scales = integers(6, 16), np.abs(numbers(6, 2))
    inputs = [table, np.array([[0, 5], [2, 3]]), scales]
    attributes = {"block_size": 16, "bits": 4, "gather_axis": 0, "quantize_axis": 1}
    fused_agrees(tmp_path, "GatherBlockQuantized", inputs, [F], weights=[0, 2], **attributes)


def test_lstm_with_integer_weights_is_close(tmp_path: Path) -> None:
    w, r = integers(1, 5, 16), integers(1, 4, 16, seed=1)
    inputs = [
        numbers(6, 2, 5),
        w,
        r,
        numbers(1, 32) * 0.1,
        None,
        None,
        None,
        None,
        np.full(1, 0.005, np.float32),
        np.full(1, 128, np.uint8),
        np.full(1, 0.005, np.float32),
        np.full(1, 128, np.uint8),
    ]
    # ONNX Runtime rounds activations to 8 bits, we do not: half a step of 5 / 255 per input.
    constants = [1, 2, 3, 8, 9, 10, 11]
    fused_agrees(tmp_path, "DynamicQuantizeLSTM", inputs, [F, F, F], 0.02, constants, hidden_size=4)


def test_quantized_attention_agrees(tmp_path: Path) -> None:
    inputs = [
        integers(2, 4, 6),
        integers(6, 24, seed=1),
        numbers(24),
        scale(0.02),
        scale(0.01),
        np.array([4, 2], np.int32),
        zero(128),
        zero(120),
    ]
    fused_agrees(tmp_path, "QAttention", inputs, [F], weights=[1, 2, 3, 4, 6, 7], num_heads=2)


@pytest.mark.slow
def test_a_cache_of_any_length_survives_export() -> None:
    from convkit.converters.onnx_to_torch.operators.microsoft_attention import (
        group_query_attention,
    )

    class Step(torch.nn.Module):
        def forward(self, q: Any, k: Any, past: Any, ends: Any) -> Any:
            total = past.shape[2] + q.shape[1]
            return group_query_attention(
                q, k, k, past, past, ends, total, num_heads=4, kv_num_heads=2, output_count=3
            )

    def feeds(batch: int, past: int) -> tuple[Any, ...]:
        ends = torch.full((batch,), past, dtype=torch.int32)
        q, k = torch.randn(batch, 1, 64), torch.randn(batch, 1, 32)
        return q, k, torch.randn(batch, 2, past, 16), ends

    auto = torch.export.Dim.DYNAMIC
    shapes = ({0: auto}, {0: auto}, {0: auto, 2: auto}, {0: auto})
    program = torch.export.export(Step(), feeds(2, 5), dynamic_shapes=shapes)
    given = feeds(3, 9)
    torch.testing.assert_close(program.module()(*given), Step()(*given))
