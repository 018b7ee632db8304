"""Weights of a few bits (com.microsoft MatMulNBits and its like)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.indexing import from_front
from convkit.converters.onnx_to_savedmodel.operators.recurrent import lstm
from convkit.converters.onnx_to_savedmodel.operators.values import (
    as_shape,
    normal_axis,
    rank_of,
    sizes_of,
)

_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Source: Dettmers et al., "QLoRA", 2023, appendix E."""
_FP4 = (0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
"""Magnitudes of bitsandbytes' four-bit floats."""


def unpacked(x: tf.Tensor, bits: int) -> tf.Tensor:
    """Bytes of the last axis as integers of `bits` bits, low-order bits first."""
    if bits == 8:
        return x
    shifts = tf.range(0, 8, bits)
    shifted = tf.bitwise.right_shift(x[..., None], tf.cast(shifts, x.dtype))
    codes = tf.bitwise.bitwise_and(shifted, tf.cast(2**bits - 1, x.dtype))
    sizes = sizes_of(x)
    return tf.reshape(codes, as_shape([*sizes[:-1], sizes[-1] * (8 // bits)]))


def _zero_points(
    zero_points: tf.Tensor | None, rows: int, blocks: int, bits: int, dtype: tf.DType
) -> tf.Tensor:
    """Zero points, (rows, blocks, 1): packed, as floats, or the middle of the range."""
    if zero_points is None:
        return tf.constant(2 ** (bits - 1), dtype, [1, 1, 1])
    if zero_points.dtype == tf.uint8:
        zero_points = unpacked(tf.reshape(zero_points, [rows, -1]), bits)[:, :blocks]
    return tf.cast(tf.reshape(zero_points, [rows, blocks, 1]), dtype)


def mat_mul_n_bits(
    a: tf.Tensor,
    b: tf.Tensor,
    scales: tf.Tensor,
    zero_points: tf.Tensor | None = None,
    g_idx: tf.Tensor | None = None,
    bias: tf.Tensor | None = None,
    *,
    K: int,
    N: int,
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> tf.Tensor:
    """com.microsoft MatMulNBits: `a` times the transpose of a weight in blocks of 2, 4 or 8 bits.

    Args:
        a: (..., K).
        b: (N, blocks, bytes of a block).
        scales: one per row and block.
        zero_points: likewise, packed as `b` or as floats.
        g_idx: the block that each column belongs to, where blocks are not consecutive columns.
        bias: (N,).
        K: columns of the weight.
        N: rows of the weight.
        accuracy_level: how ONNX Runtime may round `a`; here it keeps its precision.
        bits: of one element.
        block_size: elements of a block.
        weight_prepacked: must be 0.
    """
    del accuracy_level, block_size
    if weight_prepacked:
        raise ValueError("MatMulNBits with weights in the order of one processor")
    blocks = int(b.shape[1])
    scale = tf.reshape(scales, [N, blocks, 1])
    codes = tf.cast(unpacked(tf.reshape(b, [N, blocks, -1]), bits), scale.dtype)
    zero = _zero_points(zero_points, N, blocks, bits, scale.dtype)
    if g_idx is None:
        weight = tf.reshape((codes - zero) * scale, [N, -1])[:, :K]
    else:
        group = g_idx[:K]
        zero = tf.gather(tf.broadcast_to(zero, [N, blocks, 1])[..., 0], group, axis=1)
        codes = tf.reshape(codes, [N, -1])[:, :K]
        weight = (codes - zero) * tf.gather(scale[..., 0], group, axis=1)
    return _linear(a, tf.cast(weight, a.dtype), bias)


def _linear(a: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    sizes = sizes_of(a)
    flat = tf.reshape(a, as_shape([-1, sizes[-1]]))
    y = tf.matmul(flat, weight, transpose_b=True)
    y = y if bias is None else tf.nn.bias_add(y, bias)
    return tf.reshape(y, as_shape([*sizes[:-1], sizes_of(weight)[0]]))


def mat_mul_bnb4(
    a: tf.Tensor,
    b: tf.Tensor,
    absmax: tf.Tensor,
    *,
    K: int,
    N: int,
    block_size: int,
    quant_type: int,
    training_mode: int = 0,
    transB: int = 1,
) -> tf.Tensor:
    """com.microsoft MatMulBnb4: `a` times a weight of bitsandbytes' NF4 (1) or FP4 (0) codes."""
    del training_mode
    values = _NF4 if quant_type else (*_FP4, *(-magnitude for magnitude in _FP4))
    table = tf.constant(values, absmax.dtype)
    flat = tf.cast(tf.reshape(b, [-1]), tf.int32)
    codes = tf.reshape(tf.stack([flat // 16, flat % 16], 1), [-1])[: N * K]
    scale = tf.repeat(absmax, block_size)[: N * K]
    weight = tf.cast(tf.reshape(tf.gather(table, codes) * scale, [N, K]), a.dtype)
    return _linear(a, weight if transB else tf.transpose(weight), None)


def gather_block_quantized(
    data: tf.Tensor,
    indices: tf.Tensor,
    scales: tf.Tensor,
    zero_points: tf.Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> tf.Tensor:
    """com.microsoft GatherBlockQuantized: slices of a block-quantized tensor, dequantized.

    Bytes hold `bits` bits per element, packed along the last axis; other types one element each.
    """
    is_packed = data.dtype == tf.uint8
    codes = unpacked(data, bits) if is_packed else tf.cast(data, tf.int8)
    rank = rank_of(data)
    along, at = normal_axis(quantize_axis, rank), normal_axis(gather_axis, rank)
    length = sizes_of(codes)[along]
    y = tf.cast(codes, scales.dtype)
    if zero_points is not None:
        zero = unpacked(zero_points, bits) if is_packed else tf.cast(zero_points, tf.int8)
        zero = tf.cast(zero[..., : scales.shape[-1]], scales.dtype)
        y -= _blocks(zero, block_size, along, length)
    elif is_packed:
        y -= 2 ** (bits - 1)
    y *= _blocks(scales, block_size, along, length)
    return tf.gather(y, from_front(indices, sizes_of(y)[at]), axis=at)


def _blocks(values: tf.Tensor, block_size: int, axis: int, length: Any) -> tf.Tensor:
    """One value per block as one per element."""
    repeated = tf.repeat(values, block_size or length, axis=axis)
    index: list[Any] = [slice(None)] * rank_of(values)
    index[axis] = slice(None, length)
    return repeated[tuple(index)]


def dynamic_quantize_lstm(
    x: tf.Tensor,
    w: tf.Tensor,
    r: tf.Tensor,
    b: tf.Tensor | None,
    sequence_lens: tf.Tensor | None,
    initial_h: tf.Tensor | None,
    initial_c: tf.Tensor | None,
    p: tf.Tensor | None,
    w_scale: tf.Tensor,
    w_zero_point: tf.Tensor,
    r_scale: tf.Tensor,
    r_zero_point: tf.Tensor,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    output_count: int = 3,
) -> Any:
    """com.microsoft DynamicQuantizeLSTM: LSTM with integer weights.

    ONNX Runtime also rounds the activations to 8 bits; here they keep their precision.
    """
    return lstm(
        x,
        _gates(w, w_scale, w_zero_point),
        _gates(r, r_scale, r_zero_point),
        b,
        sequence_lens,
        initial_h,
        initial_c,
        p,
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        input_forget=input_forget,
        output_count=output_count,
    )


def _gates(x: tf.Tensor, scale: tf.Tensor, zero_point: tf.Tensor) -> tf.Tensor:
    """(directions, inputs, gates) integers as float weights (directions, gates, inputs)."""
    directions = sizes_of(x)[0]
    per_gate = as_shape([directions, 1, -1])
    zero = tf.reshape(tf.cast(zero_point, tf.float32), per_gate)
    plain = (tf.cast(x, tf.float32) - zero) * tf.reshape(scale, per_gate)
    return tf.transpose(plain, [0, 2, 1])


OPERATORS = {
    ("com.microsoft", "DynamicQuantizeLSTM"): dynamic_quantize_lstm,
    ("com.microsoft", "GatherBlockQuantized"): gather_block_quantized,
    ("com.microsoft", "MatMulBnb4"): mat_mul_bnb4,
    ("com.microsoft", "MatMulNBits"): mat_mul_n_bits,
}
