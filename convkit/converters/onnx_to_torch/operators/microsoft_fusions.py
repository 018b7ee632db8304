"""ONNX Runtime's fused activations, norms, products and convolutions (com.microsoft)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.activation import gelu
from convkit.converters.onnx_to_torch.operators.convolution import conv
from convkit.converters.onnx_to_torch.operators.matrix import gemm
from convkit.converters.onnx_to_torch.operators.normalization import rms_normalization
from convkit.converters.onnx_to_torch.operators.pooling import max_pool


def bias_gelu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """com.microsoft BiasGelu: the exact Gelu of `a + b`."""
    return F.gelu(a + b)


def fast_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """com.microsoft FastGelu: Gelu by tanh, with an optional bias."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(x: torch.Tensor, *, alpha: float = 1.702) -> torch.Tensor:
    """com.microsoft QuickGelu: `x * sigmoid(alpha * x)`."""
    return x * torch.sigmoid(alpha * x)


def bias_softmax(
    data: torch.Tensor, bias: torch.Tensor, *, axis: int = 1, is_inner_broadcast: int
) -> torch.Tensor:
    """com.microsoft BiasSoftmax: Softmax of `data + bias` over all axes from `axis` on."""
    at = axis % data.dim()
    if is_inner_broadcast:
        shifted = data + bias.reshape([1] * (data.dim() - bias.dim()) + list(bias.shape))
    else:
        shifted = data + bias.reshape(
            list(bias.shape[:at]) + [1] * (data.dim() - bias.dim()) + list(bias.shape[at:])
        )
    return F.softmax(shifted.flatten(at), -1).reshape(data.shape)


def fused_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> torch.Tensor:
    """com.microsoft FusedMatMul: `alpha * A @ B`, matrices or batch axes transposed on request."""
    left, right = inner_first(a, transBatchA), inner_first(b, transBatchB)
    left = left.mT if transA and left.dim() > 1 else left
    right = right.mT if transB and right.dim() > 1 else right
    y = torch.matmul(left, right)
    return y if alpha == 1.0 else alpha * y


def inner_first(x: torch.Tensor, wanted: int) -> torch.Tensor:
    """`x` with its first axis moved before its last, which is what `transBatch` means."""
    return x.movedim(0, -2) if wanted else x


def activated(x: torch.Tensor, activation: str | None, parameters: list[float]) -> torch.Tensor:
    """`x` through the activation that a fused operator names; an empty name is none.

    Raises:
        NotImplementedError: ONNX Runtime fuses no such activation.
    """
    if not activation:
        return x
    name = activation.lower()
    if name == "leakyrelu":
        return F.leaky_relu(x, parameters[0] if parameters else 0.01)
    if name == "clip":
        return torch.clamp(x, parameters[0], parameters[1])
    if name == "hardsigmoid":
        return torch.clamp(parameters[0] * x + parameters[1], 0, 1)
    simple: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "relu": F.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "gelu": gelu,
    }
    if name not in simple:
        raise NotImplementedError(f"The fused activation {activation}.")
    return simple[name](x)


def fused_gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> torch.Tensor:
    """com.microsoft FusedGemm: Gemm, then an activation."""
    given = (activation_alpha, activation_beta, activation_gamma)
    parameters = [value for value in given if value is not None]
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(y, activation, parameters)


def fused_conv(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
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
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """com.microsoft NhwcConv and NhwcFusedConv: FusedConv with channels last (not in `w`)."""
    y = fused_conv(
        x.movedim(-1, 1),
        w,
        b,
        None if z is None else z.movedim(-1, 1),
        activation=activation,
        activation_params=activation_params,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return y.movedim(1, -1)


def nhwc_max_pool(
    x: torch.Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """com.microsoft NhwcMaxPool: MaxPool with channels last."""
    y = max_pool(
        x.movedim(-1, 1),
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        dilations=dilations,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
        output_count=1,
    )
    return y.movedim(1, -1) if isinstance(y, torch.Tensor) else y[0]


def simplified_layer_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX Runtime's SimplifiedLayerNormalization: RMSNormalization, and the factor it used."""
    y = rms_normalization(x, scale, axis=axis, epsilon=epsilon)
    if output_count == 1:
        return y
    axes = list(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.float32)
    return y, torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)


def skip_layer_normalization(
    input: torch.Tensor,
    skip: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """com.microsoft SkipLayerNormalization of `input + skip + bias`, which is the fourth output."""
    total = input + skip if bias is None else input + skip + bias
    y = F.layer_norm(total, list(gamma.shape), gamma, beta, epsilon)
    if output_count == 1:
        return y
    wide = total.to(torch.float32)
    mean = wide.mean(-1, keepdim=True)
    inverse = torch.rsqrt(wide.var(-1, correction=0, keepdim=True) + epsilon)
    return (y, mean, inverse, total)[:output_count]


def skip_simplified_layer_normalization(
    input: torch.Tensor,
    skip: torch.Tensor,
    gamma: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """com.microsoft SkipSimplifiedLayerNormalization of `input + skip + bias`."""
    total = input + skip if bias is None else input + skip + bias
    y = rms_normalization(total, gamma, epsilon=epsilon)
    if output_count == 1:
        return y
    wide = total.to(torch.float32)
    inverse = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + epsilon)
    return (y, torch.zeros_like(inverse), inverse, total)[:output_count]


def embed_layer_normalization(
    input_ids: torch.Tensor,
    segment_ids: torch.Tensor | None,
    word_embedding: torch.Tensor,
    position_embedding: torch.Tensor,
    segment_embedding: torch.Tensor | None,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int | None = None,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """com.microsoft EmbedLayerNormalization: BERT's three embeddings, summed and normalized."""
    if position_ids is None:
        positions = position_embedding[: input_ids.shape[1]]
    else:
        positions = position_embedding[position_ids]
    total = word_embedding[input_ids] + positions
    if segment_ids is not None and segment_embedding is not None:
        total = total + segment_embedding[segment_ids]
    y = F.layer_norm(total, list(gamma.shape), gamma, beta, epsilon)
    if output_count == 1:
        return y
    if mask is None:
        count = torch.zeros(input_ids.shape[0], dtype=torch.int32, device=input_ids.device)
    else:
        count = (mask != 0).sum(1).to(torch.int32)
    return (y, count, total)[:output_count]


OPERATORS = {
    "SimplifiedLayerNormalization": simplified_layer_normalization,
    ("com.microsoft", "BiasGelu"): bias_gelu,
    ("com.microsoft", "BiasSoftmax"): bias_softmax,
    ("com.microsoft", "EmbedLayerNormalization"): embed_layer_normalization,
    ("com.microsoft", "FastGelu"): fast_gelu,
    ("com.microsoft", "FusedConv"): fused_conv,
    ("com.microsoft", "FusedGemm"): fused_gemm,
    ("com.microsoft", "FusedMatMul"): fused_matmul,
    ("com.microsoft", "Gelu"): gelu,
    ("com.microsoft", "NhwcConv"): nhwc_fused_conv,
    ("com.microsoft", "NhwcFusedConv"): nhwc_fused_conv,
    ("com.microsoft", "NhwcMaxPool"): nhwc_max_pool,
    ("com.microsoft", "QuickGelu"): quick_gelu,
    ("com.microsoft", "SimplifiedLayerNormalization"): simplified_layer_normalization,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_simplified_layer_normalization,
    ("com.microsoft", "TransposeMatMul"): fused_matmul,
}
