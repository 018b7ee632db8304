"""Random numbers, and dropout. A seed makes a run repeatable; the numbers are TensorFlow's own."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import Number, single

_HALVES = (tf.float16, tf.bfloat16)


def _seed(seed: float | None) -> int | None:
    """ONNX's seed is a float; TensorFlow's an integer."""
    return None if seed is None else hash(float(seed)) & 0x7FFFFFFF


def _normal(
    shape: Any, mean: float, scale: float, dtype: tf.DType, seed: float | None
) -> tf.Tensor:
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    return tf.cast(tf.random.normal(shape, mean, scale, wide, _seed(seed)), dtype)


def _uniform(shape: Any, low: float, high: float, dtype: tf.DType, seed: float | None) -> tf.Tensor:
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    return tf.cast(tf.random.uniform(shape, low, high, wide, _seed(seed)), dtype)


def random_normal(
    *,
    dtype: tf.DType | None = tf.float32,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    shape: list[int],
) -> tf.Tensor:
    """ONNX RandomNormal."""
    return _normal(shape, mean, scale, dtype or tf.float32, seed)


def random_normal_like(
    x: tf.Tensor,
    *,
    dtype: tf.DType | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> tf.Tensor:
    """ONNX RandomNormalLike."""
    return tf.ensure_shape(_normal(tf.shape(x), mean, scale, dtype or x.dtype, seed), x.shape)


def random_uniform(
    *,
    dtype: tf.DType | None = tf.float32,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
    shape: list[int],
) -> tf.Tensor:
    """ONNX RandomUniform."""
    return _uniform(shape, low, high, dtype or tf.float32, seed)


def random_uniform_like(
    x: tf.Tensor,
    *,
    dtype: tf.DType | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> tf.Tensor:
    """ONNX RandomUniformLike."""
    return tf.ensure_shape(_uniform(tf.shape(x), low, high, dtype or x.dtype, seed), x.shape)


def bernoulli(
    x: tf.Tensor, *, dtype: tf.DType | None = None, seed: float | None = None
) -> tf.Tensor:
    """ONNX Bernoulli: 1 with the probability that each element is."""
    wide = tf.cast(x, tf.float32) if x.dtype in _HALVES else x
    drawn = tf.random.uniform(tf.shape(x), dtype=wide.dtype, seed=_seed(seed))
    return tf.ensure_shape(tf.cast(drawn < wide, dtype or x.dtype), x.shape)


def multinomial(
    x: tf.Tensor,
    *,
    dtype: tf.DType | None = tf.int32,
    sample_size: int = 1,
    seed: float | None = None,
) -> tf.Tensor:
    """ONNX Multinomial from unnormalized log probabilities."""
    wide = tf.cast(x, tf.float32) if x.dtype in _HALVES else x
    drawn = tf.random.categorical(wide, sample_size, tf.int64, _seed(seed))
    return tf.cast(drawn, dtype or tf.int32)


def dropout(
    x: tf.Tensor,
    ratio: Number | None = None,
    training_mode: tf.Tensor | None = None,
    *,
    seed: int | None = None,
    output_count: int = 1,
) -> Any:
    """ONNX Dropout: nothing happens outside training."""
    training = None if training_mode is None else tf.get_static_value(training_mode)
    if training_mode is None or (training is not None and not training.any()):
        return single([tf.identity(x), tf.ones_like(x, tf.bool)], output_count)
    share = tf.cast(0.5 if ratio is None else ratio, tf.float32)
    share = tf.reshape(share, [])
    active = tf.reshape(training_mode, [])
    drawn = tf.random.uniform(tf.shape(x), seed=_seed(seed))
    kept = tf.logical_or(drawn >= share, tf.logical_not(active))
    factor = tf.where(active, tf.math.divide_no_nan(1.0, 1 - share), 1.0)
    scaled = x * tf.cast(factor, x.dtype)
    y = tf.where(kept, scaled, tf.zeros_like(x))
    return single([y, tf.ensure_shape(kept, x.shape)], output_count)


OPERATORS = {
    "Bernoulli": bernoulli,
    "Dropout": dropout,
    "Multinomial": multinomial,
    "RandomNormal": random_normal,
    "RandomNormalLike": random_normal_like,
    "RandomUniform": random_uniform,
    "RandomUniformLike": random_uniform_like,
}
