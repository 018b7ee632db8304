"""Activation functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# The constants that `F.selu` has built in; a model that writes them out in float32 means the same.
SELU_ALPHA = 1.67326319217681884765625
SELU_GAMMA = 1.05070102214813232421875


def relu(x: torch.Tensor) -> torch.Tensor:
    """ONNX Relu."""
    return F.relu(x)


def leaky_relu(x: torch.Tensor, *, alpha: float = 0.01) -> torch.Tensor:
    """ONNX LeakyRelu."""
    return F.leaky_relu(x, alpha)


def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """ONNX PRelu; `slope` broadcasts to `x`."""
    return torch.where(x < 0, slope * x, x)


def elu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """ONNX Elu."""
    return F.elu(x, alpha)


def celu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """ONNX Celu."""
    return F.celu(x, alpha)


def selu(x: torch.Tensor, *, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA) -> torch.Tensor:
    """ONNX Selu."""
    if abs(alpha - SELU_ALPHA) < 1e-6 and abs(gamma - SELU_GAMMA) < 1e-6:
        return F.selu(x)
    return gamma * F.elu(x, alpha)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """ONNX Sigmoid."""
    return torch.sigmoid(x)


def hard_sigmoid(x: torch.Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> torch.Tensor:
    """ONNX HardSigmoid: `alpha * x + beta` between 0 and 1."""
    return torch.clamp(alpha * x + beta, 0, 1)


def hard_swish(x: torch.Tensor) -> torch.Tensor:
    """ONNX HardSwish."""
    return F.hardswish(x)


def tanh(x: torch.Tensor) -> torch.Tensor:
    """ONNX Tanh."""
    return torch.tanh(x)


def gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    """ONNX Gelu, exact or with tanh."""
    return F.gelu(x, approximate=approximate)


def mish(x: torch.Tensor) -> torch.Tensor:
    """ONNX Mish."""
    return F.mish(x)


def softplus(x: torch.Tensor) -> torch.Tensor:
    """ONNX Softplus; above 40 even float64 cannot tell it from `x`."""
    return F.softplus(x, threshold=40)


def softsign(x: torch.Tensor) -> torch.Tensor:
    """ONNX Softsign."""
    return F.softsign(x)


def swish(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """ONNX Swish: `x * sigmoid(alpha * x)`."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def swiglu(a: torch.Tensor, b: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """ONNX SwiGLU: `a` through Swish gates `b`."""
    return swish(a, alpha=alpha) * b


def shrink(x: torch.Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> torch.Tensor:
    """ONNX Shrink."""
    zero = torch.zeros_like(x)
    below, above = (x + bias).to(x.dtype), (x - bias).to(x.dtype)
    return torch.where(x < -lambd, below, torch.where(x > lambd, above, zero))


def thresholded_relu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """ONNX ThresholdedRelu."""
    return torch.where(x > alpha, x, 0)


def softmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    """ONNX Softmax along one axis."""
    return F.softmax(x, axis)


def log_softmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    """ONNX LogSoftmax along one axis."""
    return F.log_softmax(x, axis)


def hardmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    """ONNX Hardmax: 1 at the first maximum along the axis, else 0."""
    first = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


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
    "Tanh": tanh,
    "ThresholdedRelu": thresholded_relu,
}
