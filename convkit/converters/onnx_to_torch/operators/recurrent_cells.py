"""One step of each recurrent network, with any of ONNX's activation functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Activation = Callable[[torch.Tensor], torch.Tensor]
Cell = Callable[..., tuple[torch.Tensor, ...]]

# Name -> (does it take alpha, does it take beta, their defaults).
# Source: the table of activation functions in the ONNX specification of LSTM.
ACTIVATION_PARAMETERS = {
    "relu": (False, False, 0.0, 0.0),
    "tanh": (False, False, 0.0, 0.0),
    "sigmoid": (False, False, 0.0, 0.0),
    "softsign": (False, False, 0.0, 0.0),
    "softplus": (False, False, 0.0, 0.0),
    "affine": (True, True, 1.0, 0.0),
    "leakyrelu": (True, False, 0.01, 0.0),
    "thresholdedrelu": (True, False, 1.0, 0.0),
    "scaledtanh": (True, True, 1.0, 1.0),
    "hardsigmoid": (True, True, 0.2, 0.5),
    "elu": (True, False, 1.0, 0.0),
}


def activation_function(name: str, alpha: float, beta: float) -> Activation:
    """The activation function of that (lower-case) name."""
    functions: dict[str, Activation] = {
        "relu": F.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "softsign": F.softsign,
        "softplus": F.softplus,
        "affine": lambda x: alpha * x + beta,
        "leakyrelu": lambda x: F.leaky_relu(x, alpha),
        "thresholdedrelu": lambda x: torch.where(x > alpha, x, 0),
        "scaledtanh": lambda x: alpha * torch.tanh(beta * x),
        "hardsigmoid": lambda x: torch.clamp(alpha * x + beta, 0, 1),
        "elu": lambda x: F.elu(x, alpha),
    }
    return functions[name]


def chosen_activations(
    names: list[str],
    alphas: list[float] | None,
    betas: list[float] | None,
    clip: float | None,
) -> list[Activation]:
    """The functions of all gates in order; each takes its alpha and beta from the lists' front."""
    remaining_alphas, remaining_betas = list(alphas or []), list(betas or [])
    functions = []
    for name in names:
        takes_alpha, takes_beta, alpha, beta = ACTIVATION_PARAMETERS[name.lower()]
        if takes_alpha and remaining_alphas:
            alpha = remaining_alphas.pop(0)
        if takes_beta and remaining_betas:
            beta = remaining_betas.pop(0)
        functions.append(clipped(activation_function(name.lower(), alpha, beta), clip))
    return functions


def clipped(function: Activation, clip: float | None) -> Activation:
    """`function` of its input limited to `[-clip, clip]`."""
    if clip is None:
        return function
    return lambda x: function(torch.clamp(x, -clip, clip))


def rnn_cell(recurrence: torch.Tensor, activations: list[Activation]) -> Cell:
    """The plain network: `f(input part + R h)`."""
    (f,) = activations

    def step(part: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (f(part + F.linear(h, recurrence)),)

    return step


def gru_cell(
    recurrence: torch.Tensor,
    recurrence_bias: torch.Tensor | None,
    activations: list[Activation],
    linear_before_reset: int,
) -> Cell:
    """The gated recurrent unit; gates in the order update, reset, hidden.

    `recurrence_bias` is that of the hidden gate; the others' are in the input part.
    """
    f, g = activations
    size = recurrence.shape[1]
    # Copies: an exported loop refuses two views of one tensor.
    gates, hidden = recurrence[: 2 * size].clone(), recurrence[2 * size :].clone()

    def step(part: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        update, reset = f(part[..., : 2 * size] + F.linear(h, gates)).chunk(2, -1)
        if linear_before_reset:
            candidate = reset * F.linear(h, hidden, recurrence_bias)
        else:
            candidate = F.linear(reset * h, hidden, recurrence_bias)
        candidate = g(part[..., 2 * size :] + candidate)
        return ((1 - update) * candidate + update * h,)

    return step


def lstm_cell(
    recurrence: torch.Tensor,
    peepholes: torch.Tensor | None,
    activations: list[Activation],
    input_forget: int,
) -> Cell:
    """Long short-term memory; gates in the order input, output, forget, cell."""
    f, g, h_activation = activations
    if peepholes is None:
        peek_input = peek_output = peek_forget = torch.zeros((), dtype=recurrence.dtype)
    else:
        peek_input, peek_output, peek_forget = peepholes.chunk(3)

    def step(part: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        enter, leave, forget, fresh = (part + F.linear(h, recurrence)).chunk(4, -1)
        enter = f(enter + peek_input * c)
        forget = 1 - enter if input_forget else f(forget + peek_forget * c)
        cell = forget * c + enter * g(fresh)
        leave = f(leave + peek_output * cell)
        return leave * h_activation(cell), cell

    return step
