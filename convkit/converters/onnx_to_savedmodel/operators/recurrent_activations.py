"""Activation functions of recurrent operators, named with their own parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

Activation = Callable[[tf.Tensor], tf.Tensor]


def _affine(alpha: float, beta: float) -> Activation:
    return lambda x: x * tf.constant(alpha, x.dtype) + tf.constant(beta, x.dtype)


def _scaled_tanh(alpha: float, beta: float) -> Activation:
    return lambda x: tf.constant(alpha, x.dtype) * tf.tanh(tf.constant(beta, x.dtype) * x)


def _hard_sigmoid(alpha: float, beta: float) -> Activation:
    return lambda x: tf.clip_by_value(_affine(alpha, beta)(x), 0, 1)


def _leaky_relu(alpha: float, beta: float) -> Activation:
    return lambda x: tf.where(x < 0, x * tf.constant(alpha, x.dtype), x)


def _thresholded_relu(alpha: float, beta: float) -> Activation:
    return lambda x: tf.where(x >= tf.constant(alpha, x.dtype), x, tf.zeros_like(x))


def _elu(alpha: float, beta: float) -> Activation:
    return lambda x: tf.where(x < 0, tf.constant(alpha, x.dtype) * tf.math.expm1(x), x)


_PLAIN: dict[str, Activation] = {
    "relu": tf.nn.relu,
    "sigmoid": tf.sigmoid,
    "softplus": tf.nn.softplus,
    "softsign": tf.nn.softsign,
    "tanh": tf.tanh,
}
_PARAMETRIC: dict[str, tuple[Callable[[float, float], Activation], float | None, float | None]] = {
    "affine": (_affine, 1.0, 0.0),
    "elu": (_elu, 1.0, None),
    "hardsigmoid": (_hard_sigmoid, 0.2, 0.5),
    "leakyrelu": (_leaky_relu, 0.01, None),
    "scaledtanh": (_scaled_tanh, 1.0, 1.0),
    "thresholdedrelu": (_thresholded_relu, 1.0, None),
}
"""Maker, and the defaults of alpha and beta; None where the function has no such parameter."""


def activations_of(
    names: Sequence[str],
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
) -> list[Activation]:
    """The functions by their ONNX names; parameters are taken in order by those that have them.

    Raises:
        ValueError: an unknown name.
    """
    alpha_queue, beta_queue = list(alphas or []), list(betas or [])
    found = []
    for name in names:
        key = name.lower()
        if key in _PLAIN:
            found.append(_PLAIN[key])
            continue
        if key not in _PARAMETRIC:
            raise ValueError(f"unknown activation of a recurrent operator: {name}")
        make, alpha, beta = _PARAMETRIC[key]
        if alpha is not None and alpha_queue:
            alpha = alpha_queue.pop(0)
        if beta is not None and beta_queue:
            beta = beta_queue.pop(0)
        found.append(make(alpha or 0.0, beta or 0.0))
    return found
