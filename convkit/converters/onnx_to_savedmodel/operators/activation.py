"""Activation functions."""

from __future__ import annotations

import math

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import FLOATS, normal_axis, rank_of


def _like(value: float, x: tf.Tensor) -> tf.Tensor:
    return tf.constant(value, x.dtype)


def relu(x: tf.Tensor) -> tf.Tensor:
    """ONNX Relu."""
    return tf.nn.relu(x)


def leaky_relu(x: tf.Tensor, *, alpha: float = 0.01) -> tf.Tensor:
    """ONNX LeakyRelu."""
    return tf.where(x < 0, x * _like(alpha, x), x) if alpha > 1 else tf.nn.leaky_relu(x, alpha)


def prelu(x: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """ONNX PRelu: the slope broadcasts to `x`."""
    return tf.where(x < 0, x * slope, x)


def thresholded_relu(x: tf.Tensor, *, alpha: float = 1.0) -> tf.Tensor:
    """ONNX ThresholdedRelu."""
    return tf.where(x > _like(alpha, x), x, tf.zeros_like(x))


def elu(x: tf.Tensor, *, alpha: float = 1.0) -> tf.Tensor:
    """ONNX Elu."""
    return tf.nn.elu(x) if alpha == 1 else tf.where(x < 0, _like(alpha, x) * tf.math.expm1(x), x)


def selu(
    x: tf.Tensor,
    *,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> tf.Tensor:
    """ONNX Selu."""
    return _like(gamma, x) * tf.where(x > 0, x, _like(alpha, x) * tf.math.expm1(x))


def celu(x: tf.Tensor, *, alpha: float = 1.0) -> tf.Tensor:
    """ONNX Celu."""
    scale = _like(alpha, x)
    return tf.maximum(x, 0) + tf.minimum(scale * tf.math.expm1(x / scale), 0)


def sigmoid(x: tf.Tensor) -> tf.Tensor:
    """ONNX Sigmoid."""
    return tf.sigmoid(x)


def hard_sigmoid(x: tf.Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> tf.Tensor:
    """ONNX HardSigmoid."""
    return tf.clip_by_value(x * _like(alpha, x) + _like(beta, x), _like(0, x), _like(1, x))


def hard_swish(x: tf.Tensor) -> tf.Tensor:
    """ONNX HardSwish."""
    return x * hard_sigmoid(x, alpha=1 / 6, beta=0.5)


def swish(x: tf.Tensor, *, alpha: float = 1.0) -> tf.Tensor:
    """ONNX Swish."""
    return x * tf.sigmoid(x if alpha == 1 else x * _like(alpha, x))


def swiglu(a: tf.Tensor, b: tf.Tensor, *, alpha: float = 1.0) -> tf.Tensor:
    """ONNX SwiGLU."""
    return swish(a, alpha=alpha) * b


def mish(x: tf.Tensor) -> tf.Tensor:
    """ONNX Mish."""
    return x * tf.tanh(tf.nn.softplus(x))


def softplus(x: tf.Tensor) -> tf.Tensor:
    """ONNX Softplus."""
    return tf.nn.softplus(x)


def softsign(x: tf.Tensor) -> tf.Tensor:
    """ONNX Softsign."""
    return tf.nn.softsign(x)


def shrink(x: tf.Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> tf.Tensor:
    """ONNX Shrink; integers are shrunk as floats and truncated."""
    if x.dtype not in FLOATS:
        wide = tf.float64 if x.dtype.size > 2 else tf.float32
        return tf.cast(shrink(tf.cast(x, wide), bias=bias, lambd=lambd), x.dtype)
    low, high, shift = _like(-lambd, x), _like(lambd, x), _like(bias, x)
    return tf.where(x < low, x + shift, tf.where(x > high, x - shift, tf.zeros_like(x)))


def gelu(x: tf.Tensor, *, approximate: str = "none") -> tf.Tensor:
    """ONNX Gelu.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", both forms.
    """
    if approximate == "tanh":
        inner = _like(math.sqrt(2 / math.pi), x) * (x + _like(0.044715, x) * x * x * x)
        return _like(0.5, x) * x * (_like(1, x) + tf.tanh(inner))
    return _like(0.5, x) * x * (_like(1, x) + tf.math.erf(x * _like(math.sqrt(0.5), x)))


def softmax(x: tf.Tensor, *, axis: int = -1) -> tf.Tensor:
    """ONNX Softmax along one axis."""
    return tf.nn.softmax(x, axis=axis)


def log_softmax(x: tf.Tensor, *, axis: int = -1) -> tf.Tensor:
    """ONNX LogSoftmax along one axis."""
    return tf.nn.log_softmax(x, axis=axis)


def hardmax(x: tf.Tensor, *, axis: int = -1) -> tf.Tensor:
    """ONNX Hardmax: 1 at the first greatest element, else 0."""
    axis = normal_axis(axis, rank_of(x))
    depth = tf.shape(x, out_type=tf.int64)[axis]
    hot = tf.one_hot(tf.argmax(x, axis), tf.cast(depth, tf.int32), dtype=x.dtype, axis=axis)
    return tf.ensure_shape(hot, x.shape)


OPERATORS = {
    "Celu": celu,
    "Elu": elu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Hardmax": hardmax,
    "LeakyRelu": leaky_relu,
    "LogSoftmax": log_softmax,
    "Mish": mish,
    "PRelu": prelu,
    "Relu": relu,
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": sigmoid,
    "Softmax": softmax,
    "Softplus": softplus,
    "Softsign": softsign,
    "SwiGLU": swiglu,
    "Swish": swish,
    "ThresholdedRelu": thresholded_relu,
}
