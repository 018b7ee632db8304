"""Recurrent networks: the inputs of all steps in one product, the steps in one loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.recurrent_activations import (
    Activation,
    activations_of,
)
from convkit.converters.onnx_to_savedmodel.operators.values import as_shape, single, sizes_of

State = tuple[tf.Tensor, ...]
Step = Callable[[tf.Tensor, State], State]
"""The state after a step, of which the first tensor is the output, from the step's input."""


def rnn(
    x: tf.Tensor,
    w: tf.Tensor,
    r: tf.Tensor,
    b: tf.Tensor | None = None,
    sequence_lens: tf.Tensor | None = None,
    initial_h: tf.Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_count: int = 1,
) -> Any:
    """ONNX RNN: h = f(x W + h R + b)."""
    del hidden_size  # the weights say it
    count = 2 if direction == "bidirectional" else 1
    functions = activations_of(activations or ["Tanh"] * count, activation_alpha, activation_beta)

    def direction_of(n: int) -> tuple[tf.Tensor, Step]:
        bias = _both_biases(b, n)
        recurrent = r[n]

        def step(at: tf.Tensor, state: State) -> State:
            total = at + tf.matmul(state[0], recurrent, transpose_b=True)
            return (functions[n](_clipped(total, clip)),)

        return _projected(_steps_first(x, layout), w[n], bias), step

    parts = [direction_of(n) for n in range(count)]
    outputs, states = _run(parts, direction, sequence_lens, [initial_h], layout, x, r)
    return single([outputs, states[0]], output_count)


def gru(
    x: tf.Tensor,
    w: tf.Tensor,
    r: tf.Tensor,
    b: tf.Tensor | None = None,
    sequence_lens: tf.Tensor | None = None,
    initial_h: tf.Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_count: int = 1,
) -> Any:
    """ONNX GRU, gates in the order update, reset, hidden."""
    del hidden_size
    count = 2 if direction == "bidirectional" else 1
    functions = activations_of(
        activations or ["Sigmoid", "Tanh"] * count, activation_alpha, activation_beta
    )

    def direction_of(n: int) -> tuple[tf.Tensor, Step]:
        f, g = functions[2 * n : 2 * n + 2]
        # The hidden gate's recurrent bias is inside the reset with linear_before_reset.
        own, inner = None, None
        if b is not None:
            own, recurrent = tf.split(b[n], 2)
            update, reset, inner = tf.split(recurrent, 3)
            rest = tf.zeros_like(inner) if linear_before_reset else inner
            own += tf.concat([update, reset, rest], 0)
        step = _gru_step(r[n], inner, f, g, clip, bool(linear_before_reset))
        return _projected(_steps_first(x, layout), w[n], own), step

    parts = [direction_of(n) for n in range(count)]
    outputs, states = _run(parts, direction, sequence_lens, [initial_h], layout, x, r)
    return single([outputs, states[0]], output_count)


def _gru_step(
    recurrent: tf.Tensor,
    inner: tf.Tensor | None,
    f: Activation,
    g: Activation,
    clip: float | None,
    linear_before_reset: bool,
) -> Step:
    """One step of a GRU.

    Source: the equations in the documentation of ONNX GRU.
    """
    for_update, for_reset, for_hidden = tf.split(recurrent, 3)
    for_gates = tf.concat([for_update, for_reset], 0)

    def reset_after(at: tf.Tensor, state: State) -> State:
        h = state[0]
        product = tf.split(tf.matmul(h, recurrent, transpose_b=True), 3, 1)
        own = tf.split(at, 3, 1)
        update = f(_clipped(own[0] + product[0], clip))
        reset = f(_clipped(own[1] + product[1], clip))
        hidden = product[2] if inner is None else product[2] + inner
        candidate = g(_clipped(own[2] + reset * hidden, clip))
        return (candidate + update * (h - candidate),)

    def reset_before(at: tf.Tensor, state: State) -> State:
        h = state[0]
        own = tf.split(at, 3, 1)
        product = tf.split(tf.matmul(h, for_gates, transpose_b=True), 2, 1)
        update = f(_clipped(own[0] + product[0], clip))
        reset = f(_clipped(own[1] + product[1], clip))
        hidden = tf.matmul(reset * h, for_hidden, transpose_b=True)
        candidate = g(_clipped(own[2] + hidden, clip))
        return (candidate + update * (h - candidate),)

    return reset_after if linear_before_reset else reset_before


def lstm(
    x: tf.Tensor,
    w: tf.Tensor,
    r: tf.Tensor,
    b: tf.Tensor | None = None,
    sequence_lens: tf.Tensor | None = None,
    initial_h: tf.Tensor | None = None,
    initial_c: tf.Tensor | None = None,
    p: tf.Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_count: int = 1,
) -> Any:
    """ONNX LSTM, gates in the order input, output, forget, cell; `p` are peepholes."""
    del hidden_size
    count = 2 if direction == "bidirectional" else 1
    names = activations or ["Sigmoid", "Tanh", "Tanh"] * count
    functions = activations_of(names, activation_alpha, activation_beta)

    def direction_of(n: int) -> tuple[tf.Tensor, Step]:
        peepholes = None if p is None else tf.split(p[n], 3)
        step = _lstm_step(r[n], peepholes, functions[3 * n : 3 * n + 3], clip, bool(input_forget))
        return _projected(_steps_first(x, layout), w[n], _both_biases(b, n)), step

    parts = [direction_of(n) for n in range(count)]
    initial = [initial_h, initial_c]
    outputs, states = _run(parts, direction, sequence_lens, initial, layout, x, r)
    return single([outputs, *states], output_count)


def _lstm_step(
    recurrent: tf.Tensor,
    peepholes: Sequence[tf.Tensor] | None,
    functions: Sequence[Activation],
    clip: float | None,
    input_forget: bool,
) -> Step:
    """One step of an LSTM.

    Source: the equations in the documentation of ONNX LSTM.
    """
    f, g, h_of = functions

    def step(at: tf.Tensor, state: State) -> State:
        h, c = state
        gates = at + tf.matmul(h, recurrent, transpose_b=True)
        entering, leaving, forgetting, candidate = tf.split(gates, 4, 1)
        if peepholes is not None:
            entering += peepholes[0] * c
            forgetting += peepholes[2] * c
        entering = f(_clipped(entering, clip))
        forgetting = 1 - entering if input_forget else f(_clipped(forgetting, clip))
        c = forgetting * c + entering * g(_clipped(candidate, clip))
        if peepholes is not None:
            leaving += peepholes[1] * c
        return f(_clipped(leaving, clip)) * h_of(c), c

    return step


def _clipped(x: tf.Tensor, bound: float | None) -> tf.Tensor:
    return x if not bound else tf.clip_by_value(x, -bound, bound)


def _both_biases(b: tf.Tensor | None, n: int) -> tf.Tensor | None:
    """The sum of the input's and the state's bias of a direction."""
    if b is None:
        return None
    own, recurrent = tf.split(b[n], 2)
    return own + recurrent


def _steps_first(x: tf.Tensor, layout: int) -> tf.Tensor:
    return tf.transpose(x, [1, 0, 2]) if layout else x


def _projected(x: tf.Tensor, w: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    """What the inputs of all steps give to the gates: (steps, batch, gates)."""
    steps, batch, features = sizes_of(x)
    flat = tf.reshape(x, as_shape([steps * batch, features]))
    y = tf.matmul(flat, w, transpose_b=True)
    y = y if bias is None else tf.nn.bias_add(y, bias)
    return tf.reshape(y, as_shape([steps, batch, sizes_of(w)[0]]))


def _run(
    parts: Sequence[tuple[tf.Tensor, Step]],
    direction: str,
    sequence_lens: tf.Tensor | None,
    initial: Sequence[tf.Tensor | None],
    layout: int,
    x: tf.Tensor,
    r: tf.Tensor,
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Outputs of all steps, and the last state, as ONNX lays them out."""
    batch = sizes_of(x)[0 if layout else 1]
    outputs, states = [], []
    for n, (projected, step) in enumerate(parts):
        backwards = direction == "reverse" or n == 1
        start = tuple(
            tf.zeros(as_shape([batch, sizes_of(r)[2]]), x.dtype)
            if value is None
            else (value[:, n] if layout else value[n])
            for value in initial
        )
        if backwards:
            projected = _reversed(projected, sequence_lens)
        output, state = _loop(projected, step, start, sequence_lens)
        outputs.append(_reversed(output, sequence_lens) if backwards else output)
        states.append(state)
    y = tf.stack(outputs, 1)
    last = [tf.stack(tensors, 1 if layout else 0) for tensors in zip(*states, strict=True)]
    return (tf.transpose(y, [2, 0, 1, 3]) if layout else y), last


def _reversed(x: tf.Tensor, sequence_lens: tf.Tensor | None) -> tf.Tensor:
    """(steps, batch, ...) backwards, each sequence within its own length."""
    if sequence_lens is None:
        return tf.reverse(x, [0])
    return tf.reverse_sequence(x, sequence_lens, seq_axis=0, batch_axis=1)


def _loop(
    projected: tf.Tensor, step: Step, start: State, sequence_lens: tf.Tensor | None
) -> tuple[tf.Tensor, State]:
    """Runs the steps one after another; a sequence that has ended keeps its state and gives 0."""
    count = tf.cast(sizes_of(projected)[0], tf.int32)
    inputs = tf.TensorArray(projected.dtype, count, element_shape=projected.shape[1:])
    inputs = inputs.unstack(projected)
    shape = start[0].shape
    outputs = tf.TensorArray(projected.dtype, count, element_shape=shape)

    def body(n: tf.Tensor, outputs: tf.TensorArray, *state: tf.Tensor) -> tuple[Any, ...]:
        new = step(inputs.read(n), state)
        out = new[0]
        if sequence_lens is not None:
            runs = (n < tf.cast(sequence_lens, tf.int32))[:, None]
            out = tf.where(runs, out, tf.zeros_like(out))
            new = tuple(tf.where(runs, a, b) for a, b in zip(new, state, strict=True))
        new = tuple(tf.ensure_shape(a, b.shape) for a, b in zip(new, start, strict=True))
        return n + 1, outputs.write(n, tf.ensure_shape(out, shape)), *new

    _, outputs, *state = tf.while_loop(
        lambda n, *_: n < count,
        body,
        (tf.constant(0), outputs, *start),
        maximum_iterations=count,
    )
    stacked = outputs.stack()
    return tf.ensure_shape(stacked, [projected.shape[0], *shape]), tuple(state)


OPERATORS = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
