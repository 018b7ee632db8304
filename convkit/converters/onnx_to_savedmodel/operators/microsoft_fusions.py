"""ONNX Runtime's fused activations, norms, products and convolutions (com.microsoft)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.activation import gelu, hard_sigmoid
from convkit.converters.onnx_to_savedmodel.operators.convolution import conv
from convkit.converters.onnx_to_savedmodel.operators.matrix import gemm, mat_mul
from convkit.converters.onnx_to_savedmodel.operators.normalization import standardized
from convkit.converters.onnx_to_savedmodel.operators.pooling import max_pool
from convkit.converters.onnx_to_savedmodel.operators.values import (
    as_shape,
    normal_axis,
    product,
    rank_of,
    single,
    sizes_of,
)


def bias_gelu(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """com.microsoft BiasGelu: the exact Gelu of `a + b`."""
    return gelu(a + b)


def fast_gelu(x: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """com.microsoft FastGelu: Gelu by tanh, with an optional bias."""
    return gelu(x if bias is None else x + bias, approximate="tanh")


def plain_gelu(x: tf.Tensor) -> tf.Tensor:
    """com.microsoft Gelu: the exact one."""
    return gelu(x)


def quick_gelu(x: tf.Tensor, *, alpha: float = 1.702) -> tf.Tensor:
    """com.microsoft QuickGelu: x * sigmoid(alpha * x)."""
    return x * tf.sigmoid(tf.constant(alpha, x.dtype) * x)


def bias_softmax(
    data: tf.Tensor, bias: tf.Tensor, *, axis: int = 1, is_inner_broadcast: int
) -> tf.Tensor:
    """com.microsoft BiasSoftmax: Softmax of `data + bias` over all axes from `axis` on."""
    at = normal_axis(axis, rank_of(data))
    if not is_inner_broadcast:
        sizes = sizes_of(bias)
        ones = [1] * (rank_of(data) - len(sizes))
        bias = tf.reshape(bias, as_shape([*sizes[:at], *ones, *sizes[at:]]))
    total = data + bias
    sizes = sizes_of(data)
    flat = tf.reshape(total, as_shape([*sizes[:at], product(sizes[at:])]))
    return tf.reshape(tf.nn.softmax(flat), as_shape(sizes))


def fused_mat_mul(
    a: tf.Tensor,
    b: tf.Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> tf.Tensor:
    """com.microsoft FusedMatMul: alpha * a @ b, matrices or batch axes transposed on request."""
    a, b = _first_inside(a, transBatchA), _first_inside(b, transBatchB)
    a = tf.linalg.matrix_transpose(a) if transA and rank_of(a) > 1 else a
    b = tf.linalg.matrix_transpose(b) if transB and rank_of(b) > 1 else b
    y = mat_mul(a, b)
    return y if alpha == 1 else y * tf.constant(alpha, y.dtype)


def _first_inside(x: tf.Tensor, wanted: int) -> tf.Tensor:
    """`x` with its first axis moved before its last, which is what `transBatch` means."""
    if not wanted:
        return x
    rank = rank_of(x)
    return tf.transpose(x, [*range(1, rank - 1), 0, rank - 1])


def activated(x: tf.Tensor, activation: str | None, parameters: Sequence[float]) -> tf.Tensor:
    """`x` through the activation that a fused operator names; an empty name is none.

    Raises:
        ValueError: ONNX Runtime fuses no such activation.
    """
    if not activation:
        return x
    name = activation.lower()
    simple = {"relu": tf.nn.relu, "tanh": tf.tanh, "sigmoid": tf.sigmoid, "gelu": gelu}
    if name in simple:
        return simple[name](x)
    if name == "leakyrelu":
        return tf.nn.leaky_relu(x, parameters[0] if parameters else 0.01)
    if name == "clip":
        low, high = (tf.constant(bound, x.dtype) for bound in parameters[:2])
        return tf.clip_by_value(x, low, high)
    if name == "hardsigmoid":
        return hard_sigmoid(x, alpha=parameters[0], beta=parameters[1])
    raise ValueError(f"unknown fused activation: {activation}")


def fused_gemm(
    a: tf.Tensor,
    b: tf.Tensor,
    c: tf.Tensor | None = None,
    *,
    activation: str | None = None,
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> tf.Tensor:
    """com.microsoft FusedGemm: Gemm, then an activation."""
    given = (activation_alpha, activation_beta, activation_gamma)
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(y, activation, [value for value in given if value is not None])


def fused_conv(
    x: tf.Tensor,
    w: tf.Tensor,
    b: tf.Tensor | None = None,
    z: tf.Tensor | None = None,
    *,
    activation: str | None = None,
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> tf.Tensor:
    """com.microsoft FusedConv: Conv, plus `z`, then an activation."""
    y = conv(
        x,
        w,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return activated(y if z is None else y + z, activation, activation_params or [])


def nhwc_fused_conv(
    x: tf.Tensor,
    w: tf.Tensor,
    b: tf.Tensor | None = None,
    z: tf.Tensor | None = None,
    *,
    activation: str | None = None,
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> tf.Tensor:
    """com.microsoft NhwcConv and NhwcFusedConv: FusedConv with channels last (not in `w`)."""
    y = conv(
        x,
        w,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
        layout="NHWC",
    )
    return activated(y if z is None else y + z, activation, activation_params or [])


def nhwc_max_pool(
    x: tf.Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> tf.Tensor:
    """com.microsoft NhwcMaxPool: MaxPool with channels last."""
    return max_pool(
        x,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        dilations=dilations,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
        layout="NHWC",
    )


def _root_mean_square(
    x: tf.Tensor, scale: tf.Tensor, axes: list[int], epsilon: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """RMSNormalization in float32, and the factor it used."""
    wide = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)
    mean = tf.reduce_mean(tf.square(wide), axes, True)
    inverse = tf.math.rsqrt(mean + tf.constant(epsilon, wide.dtype))
    return tf.cast(wide * inverse, scale.dtype) * scale, inverse


def simplified_layer_normalization(
    x: tf.Tensor,
    scale: tf.Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    output_count: int = 1,
) -> Any:
    """ONNX Runtime's SimplifiedLayerNormalization: RMSNormalization, and the factor it used."""
    del stash_type  # always float32, as there
    axes = list(range(normal_axis(axis, rank_of(x)), rank_of(x)))
    return single(_root_mean_square(x, scale, axes, epsilon), output_count)


def skip_layer_normalization(
    x: tf.Tensor,
    skip: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor | None = None,
    bias: tf.Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    output_count: int = 1,
) -> Any:
    """com.microsoft SkipLayerNormalization of `x + skip + bias`; the fourth output is the sum."""
    total = x + skip if bias is None else x + skip + bias
    y, mean, inverse = _layer_normalized(total, gamma, beta, epsilon)
    return single([y, mean, inverse, total], output_count)


def _layer_normalized(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor | None, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    wide = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)
    y, mean, inverse = standardized(wide, [rank_of(x) - 1], epsilon)
    y = tf.cast(y, x.dtype) * gamma
    return (y if beta is None else y + beta), mean, inverse


def skip_simplified_layer_normalization(
    x: tf.Tensor,
    skip: tf.Tensor,
    gamma: tf.Tensor,
    bias: tf.Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    output_count: int = 1,
) -> Any:
    """com.microsoft SkipSimplifiedLayerNormalization of `x + skip + bias`."""
    total = x + skip if bias is None else x + skip + bias
    y, inverse = _root_mean_square(total, gamma, [rank_of(total) - 1], epsilon)
    return single([y, tf.zeros_like(inverse), inverse, total], output_count)


def embed_layer_normalization(
    input_ids: tf.Tensor,
    segment_ids: tf.Tensor | None,
    word_embedding: tf.Tensor,
    position_embedding: tf.Tensor,
    segment_embedding: tf.Tensor | None,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mask: tf.Tensor | None = None,
    position_ids: tf.Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int | None = None,
    output_count: int = 1,
) -> Any:
    """com.microsoft EmbedLayerNormalization: BERT's three embeddings, summed and normalized."""
    del mask_index_type  # the mask itself says it
    if position_ids is None:
        count = sizes_of(input_ids)[1]
        positions = position_embedding[: tf.cast(count, tf.int32)]
    else:
        positions = tf.gather(position_embedding, position_ids)
    total = tf.gather(word_embedding, input_ids) + positions
    if segment_ids is not None and segment_embedding is not None:
        total += tf.gather(segment_embedding, segment_ids)
    y = _layer_normalized(total, gamma, beta, epsilon)[0]
    if mask is None:
        lengths = tf.zeros([tf.shape(input_ids)[0]], tf.int32)
    else:
        lengths = tf.reduce_sum(tf.cast(tf.not_equal(mask, 0), tf.int32), 1)
    return single([y, lengths, total], output_count)


OPERATORS = {
    "SimplifiedLayerNormalization": simplified_layer_normalization,
    ("com.microsoft", "BiasGelu"): bias_gelu,
    ("com.microsoft", "BiasSoftmax"): bias_softmax,
    ("com.microsoft", "EmbedLayerNormalization"): embed_layer_normalization,
    ("com.microsoft", "FastGelu"): fast_gelu,
    ("com.microsoft", "FusedConv"): fused_conv,
    ("com.microsoft", "FusedGemm"): fused_gemm,
    ("com.microsoft", "FusedMatMul"): fused_mat_mul,
    ("com.microsoft", "Gelu"): plain_gelu,
    ("com.microsoft", "NhwcConv"): nhwc_fused_conv,
    ("com.microsoft", "NhwcFusedConv"): nhwc_fused_conv,
    ("com.microsoft", "NhwcMaxPool"): nhwc_max_pool,
    ("com.microsoft", "QuickGelu"): quick_gelu,
    ("com.microsoft", "SimplifiedLayerNormalization"): simplified_layer_normalization,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_simplified_layer_normalization,
    ("com.microsoft", "TransposeMatMul"): fused_mat_mul,
}
