"""Mathematical operators that tf2onnx lacks or gets wrong, in terms of those that it translates.

Each function has the inputs of an operator; its keyword-only parameters are attributes. Results are
cast to the types that the operator gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_LANCZOS = (
    *(676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059),
    *(12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7),
)
"""Source: Lanczos, A precision approximation of the gamma function, 1964; g = 7, nine terms."""
_LANCZOS_G = 7.0

_ERFINV_CENTRE = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_ERFINV_TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)
"""Source: Giles, Approximating the erfinv function, GPU Computing Gems, 2012, single precision."""

_I0E_SMALL = (1.0, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.0360768, 0.0045813)
_I0E_LARGE = (
    *(0.39894228, 0.01328592, 0.00225319, -0.00157565, 0.00916281, -0.02057706),
    *(0.02635537, -0.01647633, 0.00392377),
)
_I1E_SMALL = (0.5, 0.87890594, 0.51498869, 0.15084934, 0.02658733, 0.00301532, 0.00032411)
_I1E_LARGE = (
    *(0.39894228, -0.03988024, -0.00362018, 0.00163801, -0.01031555, 0.02282967),
    *(-0.02895312, 0.01787654, -0.00420059),
)
_BESSEL_SPLIT = 3.75
"""Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 9.8.1 to 9.8.4."""


def erfc(x: tf.Tensor) -> tf.Tensor:
    """1 - erf(x)."""
    return tf.ones([], x.dtype) - tf.math.erf(x)


def expm1(x: tf.Tensor) -> tf.Tensor:
    """exp(x) - 1, near zero over tanh, which loses no digits there."""
    half = tf.tanh(tf.clip_by_value(x, _like(x, -1), _like(x, 1)) * _like(x, 0.5))
    near = 2 * half / (1 - half)
    return tf.where(tf.abs(x) < 1, near, tf.exp(x) - 1)


def log1p(x: tf.Tensor) -> tf.Tensor:
    """log(1 + x), near zero with the digits that 1 + x drops put back.

    Source: Kahan's form, log(u) x / (u - 1) with u = 1 + x.
    """
    shifted = 1 + x
    gained = shifted - 1
    safe = tf.where(tf.equal(gained, 0), tf.ones_like(x), gained)
    is_plain = tf.equal(gained, 0) | (tf.abs(x) >= 1)
    corrected = tf.math.log(tf.where(is_plain, 1 + safe, shifted)) * x / safe
    return tf.where(tf.equal(gained, 0), x, tf.where(is_plain, tf.math.log(shifted), corrected))


def erfinv(x: tf.Tensor) -> tf.Tensor:
    """The inverse of erf, accurate to single precision."""
    w = -tf.math.log((1 - x) * (1 + x))
    centre = _polynomial(_ERFINV_CENTRE, w - 2.5)
    tail = _polynomial(_ERFINV_TAIL, tf.sqrt(tf.maximum(w, _like(w, 5))) - 3)
    inside = tf.where(w < 5, centre, tail) * x
    return tf.where(tf.equal(tf.abs(x), 1), x * _like(x, math.inf), inside)


def ndtri(p: tf.Tensor) -> tf.Tensor:
    """The normal quantile function, by `erfinv`."""
    return _like(p, math.sqrt(2)) * erfinv(2 * p - 1)


def lgamma(x: tf.Tensor) -> tf.Tensor:
    """The logarithm of |gamma(x)|, below a half by reflection."""
    is_small = x < 0.5
    z = tf.where(is_small, -x, x - 1)
    t = z + _like(x, _LANCZOS_G + 0.5)
    log_large = _half_log_two_pi(x) + (z + 0.5) * tf.math.log(t) - t + tf.math.log(_lanczos(z))
    whole = tf.floor(x)
    sine = tf.abs(tf.sin(_like(x, math.pi) * (x - whole)))
    reflected = _like(x, math.log(math.pi)) - tf.math.log(sine) - log_large
    return tf.where(is_small, reflected, log_large)


def digamma(x: tf.Tensor) -> tf.Tensor:
    """The logarithmic derivative of gamma: recurrence up to 6, then the asymptotic series.

    Source: Bernardo, Algorithm AS 103, 1976.
    """
    is_negative = x <= 0
    y = tf.where(is_negative, 1 - x, x)
    total = tf.zeros_like(y)
    for _ in range(6):
        is_low = y < 6
        total -= tf.where(is_low, 1 / y, tf.zeros_like(y))
        y = tf.where(is_low, y + 1, y)
    inverse = 1 / (y * y)
    series = inverse * (1 / 12 - inverse * (1 / 120 - inverse * (1 / 252 - inverse / 240)))
    positive = total + tf.math.log(y) - 0.5 / y - series
    turn = _like(x, math.pi) * (x - tf.floor(x))
    return tf.where(is_negative, positive - math.pi * tf.cos(turn) / tf.sin(turn), positive)


def bessel_i0e(x: tf.Tensor) -> tf.Tensor:
    """exp(-|x|) times the modified Bessel function of order 0, to about 2e-7."""
    size = tf.abs(x)
    t = tf.square(tf.minimum(size, _like(x, _BESSEL_SPLIT)) / _BESSEL_SPLIT)
    small = tf.exp(-size) * _polynomial(_I0E_SMALL[::-1], t)
    large = tf.maximum(size, _like(x, _BESSEL_SPLIT))
    tail = _polynomial(_I0E_LARGE[::-1], _BESSEL_SPLIT / large) / tf.sqrt(large)
    return tf.where(size <= _BESSEL_SPLIT, small, tail)


def bessel_i1e(x: tf.Tensor) -> tf.Tensor:
    """exp(-|x|) times the modified Bessel function of order 1, to about 2e-7."""
    size = tf.abs(x)
    t = tf.square(tf.minimum(size, _like(x, _BESSEL_SPLIT)) / _BESSEL_SPLIT)
    small = tf.exp(-size) * size * _polynomial(_I1E_SMALL[::-1], t)
    large = tf.maximum(size, _like(x, _BESSEL_SPLIT))
    tail = _polynomial(_I1E_LARGE[::-1], _BESSEL_SPLIT / large) / tf.sqrt(large)
    return tf.sign(x) * tf.where(size <= _BESSEL_SPLIT, small, tail)


def xlogy(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The product x log(y), zero where x is."""
    return _zero_where_zero(x, x * tf.math.log(_one_where_zero(x, y)))


def xlog1py(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The product x log(1 + y), zero where x is."""
    return _zero_where_zero(x, x * tf.math.log1p(_one_where_zero(x, y)))


def xdivy(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The quotient x / y, zero where x is."""
    return _zero_where_zero(x, x / _one_where_zero(x, y))


def mul_no_nan(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The product x y, zero where y is."""
    return _zero_where_zero(y, x * y)


def truncate_div(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The quotient x / y rounded towards zero; whole numbers divide so in ONNX."""
    if x.dtype.is_integer:
        return _integer_quotient(x, y)
    ratio = x / y
    return tf.where(ratio < 0, tf.math.ceil(ratio), tf.floor(ratio))


def truncate_mod(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """What `truncate_div` leaves."""
    return x - y * truncate_div(x, y)


def floor_div(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The quotient x / y rounded down."""
    if x.dtype.is_floating:
        return tf.floor(x / y)
    quotient = _integer_quotient(x, y)
    rest = x - quotient * y
    is_above = tf.not_equal(rest, 0) & tf.not_equal(rest < 0, y < 0)
    return quotient - tf.cast(is_above, x.dtype)


def floor_mod(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """What `floor_div` leaves: zero, or of the sign of y."""
    return x - y * floor_div(x, y)


def euclidean_norm(x: tf.Tensor, axis: tf.Tensor, *, keep_dims: bool = False) -> tf.Tensor:
    """The root of the sum of squares."""
    return tf.sqrt(tf.reduce_sum(x * x, axis=_static(axis), keepdims=bool(keep_dims)))


def cumulative_logsumexp(
    x: tf.Tensor, axis: tf.Tensor, *, exclusive: bool = False, reverse: bool = False
) -> tf.Tensor:
    """log(cumsum(exp(x))), shifted by the greatest element."""
    axis = _static(axis)
    greatest = tf.reduce_max(x, axis=axis, keepdims=True)
    summed = tf.cumsum(
        tf.exp(x - greatest), axis=axis, exclusive=bool(exclusive), reverse=bool(reverse)
    )
    return tf.math.log(summed) + greatest


def in_top_k(predictions: tf.Tensor, targets: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """Whether fewer than k classes score above the target; not for infinite scores."""
    scores = tf.gather(predictions, targets[:, tf.newaxis], axis=1, batch_dims=1)
    above = tf.reduce_sum(tf.cast(predictions > scores, tf.int32), axis=1)
    is_finite = tf.reduce_all(tf.math.is_finite(scores), axis=1)
    return (above < tf.cast(k, tf.int32)) & is_finite


def lower_bound(edges: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """How many edges of a row lie below each value."""
    is_below = edges[:, tf.newaxis, :] < values[:, :, tf.newaxis]
    return tf.reduce_sum(tf.cast(is_below, tf.int32), axis=2)


def upper_bound(edges: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """How many edges of a row do not lie above each value."""
    is_reached = edges[:, tf.newaxis, :] <= values[:, :, tf.newaxis]
    return tf.reduce_sum(tf.cast(is_reached, tf.int32), axis=2)


def bucketize(x: tf.Tensor, *, boundaries: Sequence[float] = ()) -> tf.Tensor:
    """Which bucket each element falls into."""
    edges = tf.constant(boundaries, tf.float32)
    reached = tf.cast(x, tf.float32)[..., tf.newaxis] >= edges
    return tf.reduce_sum(tf.cast(reached, tf.int32), axis=-1)


def histogram_fixed_width(x: tf.Tensor, limits: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """How many elements fall into each of equal bins; those outside fall into the outer ones."""
    bins = tf.cast(count, x.dtype)
    place = tf.floor((tf.reshape(x, [-1]) - limits[0]) / (limits[1] - limits[0]) * bins)
    index = tf.cast(tf.minimum(tf.maximum(place, 0), bins - 1), tf.int32)
    is_there = tf.equal(index[:, tf.newaxis], tf.range(count)[tf.newaxis, :])
    return tf.reduce_sum(tf.cast(is_there, tf.int32), axis=0)


def nth_element(x: tf.Tensor, n: tf.Tensor, *, reverse: bool = False) -> tf.Tensor:
    """The n-th smallest (greatest with `reverse`) of each row."""
    least = x if reverse else -x
    values = tf.math.top_k(least, tf.cast(n, tf.int32) + 1).values[..., -1]
    return values if reverse else -values


def approx_top_k(
    x: tf.Tensor,
    *,
    k: int = 1,
    reduction_dimension: int = -1,
    is_max_k: bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k greatest (least) elements, exactly."""
    rank = len(x.shape)
    axis = reduction_dimension % rank
    order = [i for i in range(rank) if i != axis] + [axis]
    back = [order.index(i) for i in range(rank)]
    moved = tf.transpose(x, order)
    values, index = tf.math.top_k(moved if is_max_k else -moved, k)
    values = values if is_max_k else -values
    return tf.transpose(values, back), tf.transpose(index, back)


def broadcast_args(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """The shape that two shapes broadcast to."""
    rank = max(first.shape[0], second.shape[0])
    one = [
        tf.concat([tf.ones([rank - shape.shape[0]], shape.dtype), shape], 0)
        for shape in (first, second)
    ]
    return tf.where(tf.equal(one[0], 1), one[1], one[0])


def cross(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """The vector product over the last axis."""
    turned_a = tf.gather(a, [1, 2, 0], axis=-1), tf.gather(a, [2, 0, 1], axis=-1)
    turned_b = tf.gather(b, [2, 0, 1], axis=-1), tf.gather(b, [1, 2, 0], axis=-1)
    return turned_a[0] * turned_b[0] - turned_a[1] * turned_b[1]


def population_count(x: tf.Tensor) -> tf.Tensor:
    """How many bits of each element are set."""
    bits = x.dtype.size * 8
    rest = tf.cast(x, tf.int64)
    if bits < 64:
        rest = floor_mod(rest, tf.constant(1 << bits, tf.int64))
    total = tf.zeros_like(rest)
    for _ in range(bits):
        total += floor_mod(rest, tf.constant(2, tf.int64))
        rest = floor_div(rest, tf.constant(2, tf.int64))
    return tf.cast(total, tf.uint8)


def tanh_grad(y: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    """The derivative of tanh, from its value."""
    return dy * (1 - y * y)


def sigmoid_grad(y: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    """The derivative of the logistic function, from its value."""
    return dy * y * (1 - y)


def relu_grad(dy: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The derivative of max(x, 0)."""
    return dy * tf.cast(x > 0, dy.dtype)


def rsqrt_grad(y: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    """The derivative of 1 / sqrt(x), from its value."""
    return -0.5 * dy * y * y * y


def sqrt_grad(y: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    """The derivative of sqrt(x), from its value."""
    return 0.5 * dy / y


def _integer_quotient(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    # tf2onnx makes a plain Div of RealDiv, and Div of whole numbers rounds towards zero in ONNX.
    return tf.raw_ops.Div(x=x, y=y)


def _zero_where_zero(x: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.equal(x, 0), tf.zeros_like(value), value)


def _one_where_zero(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.equal(x, 0), tf.ones_like(y), y)


def _half_log_two_pi(x: tf.Tensor) -> tf.Tensor:
    return _like(x, 0.5 * math.log(2 * math.pi))


def _lanczos(z: tf.Tensor) -> tf.Tensor:
    total = _like(z, 0.99999999999980993)
    for index, coefficient in enumerate(_LANCZOS, 1):
        total += _like(z, coefficient) / (z + index)
    return total


def _polynomial(coefficients: Sequence[float], x: tf.Tensor) -> tf.Tensor:
    """Highest power first."""
    total = tf.zeros_like(x)
    for coefficient in coefficients:
        total = total * x + _like(x, coefficient)
    return total


def _like(x: tf.Tensor, value: float) -> tf.Tensor:
    return tf.constant(value, x.dtype)


def _static(axis: tf.Tensor) -> Any:
    return np.asarray(tf.get_static_value(axis)).tolist()


EXPANSIONS: Mapping[str, Callable[..., Any]] = {
    "ApproxTopK": approx_top_k,
    "BesselI0e": bessel_i0e,
    "BesselI1e": bessel_i1e,
    "BroadcastArgs": broadcast_args,
    "Bucketize": bucketize,
    "Cross": cross,
    "CumulativeLogsumexp": cumulative_logsumexp,
    "Digamma": digamma,
    "Erfc": erfc,
    "Erfinv": erfinv,
    "EuclideanNorm": euclidean_norm,
    "Expm1": expm1,
    "FloorDiv": floor_div,
    "FloorMod": floor_mod,
    "HistogramFixedWidth": histogram_fixed_width,
    "InTopKV2": in_top_k,
    "Lgamma": lgamma,
    "Log1p": log1p,
    "LowerBound": lower_bound,
    "MulNoNan": mul_no_nan,
    "Ndtri": ndtri,
    "NthElement": nth_element,
    "PopulationCount": population_count,
    "ReluGrad": relu_grad,
    "RsqrtGrad": rsqrt_grad,
    "SigmoidGrad": sigmoid_grad,
    "SqrtGrad": sqrt_grad,
    "TanhGrad": tanh_grad,
    "TruncateDiv": truncate_div,
    "TruncateMod": truncate_mod,
    "UpperBound": upper_bound,
    "Xdivy": xdivy,
    "Xlog1py": xlog1py,
    "Xlogy": xlogy,
}
