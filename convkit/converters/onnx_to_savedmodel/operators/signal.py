"""Fourier transforms, windows and mel bands."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    Int,
    Number,
    known_int,
    normal_axis,
    rank_of,
    scalar,
    sizes_of,
)


def dft(
    x: tf.Tensor,
    dft_length: Int | None = None,
    axis: Int | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> tf.Tensor:
    """ONNX DFT; the last axis holds the real part, or real and imaginary part.

    Forwards in float64, as TensorFlow's float32 transform leaves 1e-6 where the result is zero;
    backwards such noise is divided by the length.
    """
    swap = _swap(rank_of(x), -2 if axis is None else axis)
    moved = x if inverse else tf.cast(x, tf.float64)
    if swap is not None:
        moved = tf.transpose(moved, swap)
        moved = tf.ensure_shape(moved, [None] * (rank_of(x) - 1) + [x.shape[-1]])
    complex_part = _complex(moved, is_onesided=bool(onesided) and not inverse)
    if dft_length is None:
        length = sizes_of(moved)[-2]
        length = 2 * (length - 1) if onesided and inverse else length
    else:
        known = known_int(dft_length)
        length = scalar(dft_length, tf.int64) if known is None else known
    y = _transformed(complex_part, length, bool(inverse), bool(onesided))
    y = tf.cast(_parts(y), x.dtype)
    if swap is not None:
        y = tf.transpose(y, swap)
    return tf.ensure_shape(y, [None] * rank_of(x))


def _swap(rank: int, axis: Int) -> Any:
    """The order that exchanges an axis with the one before the last; None for no change."""
    static = known_int(axis)
    if static is not None:
        place = normal_axis(static, rank)
        if place == rank - 2:
            return None
        order = list(range(rank))
        order[place], order[-2] = rank - 2, place
        return order
    place = tf.math.floormod(scalar(axis, tf.int32), rank)
    order = tf.range(rank)
    return tf.where(order == place, rank - 2, tf.where(order == rank - 2, place, order))


def _complex(x: tf.Tensor, *, is_onesided: bool) -> tf.Tensor:
    """Real or complex numbers out of their parts, in a dtype that has a transform.

    Where the number of parts is known at run time only, half a transform means real numbers.
    """
    wide = x if x.dtype in (tf.float32, tf.float64) else tf.cast(x, tf.float32)
    count = wide.shape[-1]
    if count == 1 or (count is None and is_onesided):
        return wide[..., 0]
    imaginary = wide[..., 1] if count is not None else tf.reduce_sum(wide[..., 1:2], -1)
    return tf.complex(wide[..., 0], imaginary)


def _parts(x: tf.Tensor) -> tf.Tensor:
    return tf.stack([tf.math.real(x), tf.math.imag(x)], -1) if x.dtype.is_complex else x[..., None]


def _transformed(x: tf.Tensor, length: Any, inverse: bool, onesided: bool) -> tf.Tensor:
    """The transform along the last axis, cut or filled with zeros to the length."""
    count = tf.cast(length, tf.int32)
    if onesided and inverse:
        x = x if x.dtype.is_complex else tf.cast(x, _complex_dtype(x))
        return tf.signal.irfft(_fitted(x, count // 2 + 1), [count])
    if onesided:
        return tf.signal.rfft(_fitted(x, count), [count])
    x = x if x.dtype.is_complex else tf.cast(x, _complex_dtype(x))
    fitted = _fitted(x, count)
    return tf.signal.ifft(fitted) if inverse else tf.signal.fft(fitted)


def _complex_dtype(x: tf.Tensor) -> tf.DType:
    return tf.complex128 if x.dtype == tf.float64 else tf.complex64


def _fitted(x: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    static = tf.get_static_value(count)
    if static is not None and x.shape[-1] == int(static):
        return x
    missing = tf.maximum(count - tf.shape(x)[-1], 0)
    rows = tf.zeros([rank_of(x) - 1, 2], tf.int32)
    filled = tf.pad(x, tf.concat([rows, tf.stack([0, missing])[None]], 0))
    return filled[..., :count]


def stft(
    signal: tf.Tensor,
    frame_step: Int,
    window: tf.Tensor | None = None,
    frame_length: Int | None = None,
    *,
    onesided: int = 1,
) -> tf.Tensor:
    """ONNX STFT: (batch, frames, frequencies, 2)."""
    x = _complex(signal, is_onesided=bool(onesided))
    if frame_length is not None:
        length: Any = scalar(frame_length, tf.int32)
    else:
        length = tf.shape(signal if window is None else window)[0 if window is not None else 1]
    frames = tf.signal.frame(x, length, scalar(frame_step, tf.int32), axis=1)
    if window is not None:
        frames *= tf.cast(window, frames.dtype)
    y = _transformed(frames, length, False, bool(onesided) and not x.dtype.is_complex)
    return tf.ensure_shape(tf.cast(_parts(y), signal.dtype), [None, None, None, 2])


def _angles(size: Int, periodic: int) -> tf.Tensor:
    count = scalar(size, tf.int64)
    span = tf.cast(count if periodic else count - 1, tf.float64)
    return 2 * math.pi * tf.cast(tf.range(count), tf.float64) / span


def hann_window(
    size: Int, *, output_datatype: tf.DType | None = tf.float32, periodic: int = 1
) -> tf.Tensor:
    """ONNX HannWindow."""
    y = 0.5 - 0.5 * tf.cos(_angles(size, periodic))
    return tf.cast(y, output_datatype or tf.float32)


def hamming_window(
    size: Int, *, output_datatype: tf.DType | None = tf.float32, periodic: int = 1
) -> tf.Tensor:
    """ONNX HammingWindow."""
    y = 25 / 46 - 21 / 46 * tf.cos(_angles(size, periodic))
    return tf.cast(y, output_datatype or tf.float32)


def blackman_window(
    size: Int, *, output_datatype: tf.DType | None = tf.float32, periodic: int = 1
) -> tf.Tensor:
    """ONNX BlackmanWindow."""
    angles = _angles(size, periodic)
    y = 0.42 - 0.5 * tf.cos(angles) + 0.08 * tf.cos(2 * angles)
    return tf.cast(y, output_datatype or tf.float32)


def mel_weight_matrix(
    num_mel_bins: Int,
    dft_length: Int,
    sample_rate: Int,
    lower_edge_hertz: Number,
    upper_edge_hertz: Number,
    *,
    output_datatype: tf.DType | None = tf.float32,
) -> tf.Tensor:
    """ONNX MelWeightMatrix: (frequencies, bands), triangles with a peak of 1.

    Source: mel(f) = 2595 * log10(1 + f / 700) in the operator's documentation.
    """
    bands, length = scalar(num_mel_bins, tf.int64), scalar(dft_length, tf.int64)
    low, high = (
        2595 * tf.math.log1p(scalar(edge, tf.float64) / 700) / math.log(10)
        for edge in (lower_edge_hertz, upper_edge_hertz)
    )
    step = (high - low) / tf.cast(bands + 2, tf.float64)
    mels = tf.cast(tf.range(bands + 2), tf.float64) * step + low
    hertz = 700 * tf.math.expm1(mels / 2595 * math.log(10))
    rate = scalar(sample_rate, tf.float64)
    edges = tf.math.floordiv(tf.cast(length + 1, tf.float64) * hertz, rate)
    left, centre, right = edges[None, :-2], edges[None, 1:-1], edges[None, 2:]
    at = tf.cast(tf.range(length // 2 + 1), tf.float64)[:, None]
    rising = tf.where(
        tf.equal(left, centre),
        tf.cast(tf.equal(at, centre), tf.float64),
        tf.where((at >= left) & (at <= centre), (at - left) / tf.maximum(centre - left, 1), 0.0),
    )
    falling = (right - at) / tf.maximum(right - centre, 1)
    y = tf.where((at >= centre) & (at < right), falling, rising)
    return tf.cast(y, output_datatype or tf.float32)


OPERATORS = {
    "BlackmanWindow": blackman_window,
    "DFT": dft,
    "HammingWindow": hamming_window,
    "HannWindow": hann_window,
    "MelWeightMatrix": mel_weight_matrix,
    "STFT": stft,
}
