"""PyTorch's fused inference kernels for attention, spelled out in ordinary operators.

Tracing a Transformer in evaluation mode records `aten::_transformer_encoder_layer_fwd` or
`aten::_native_multi_head_attention`, which no exporter knows.
Source: PyTorch, aten/src/ATen/native/transformers/attention.cpp and transformer.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_KEY_PADDING, _BOTH = 1, 2
"""Mask types: 0 attention (length, length), 1 key padding (batch, length), 2 both, expanded."""


def multi_head_attention(
    query: Any, key: Any, value: Any, width: int, heads: int,
    in_weight: Any, in_bias: Any, out_weight: Any, out_bias: Any,
    mask: Any = None, need_weights: bool = True, average_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """Attention of (batch, length, width) inputs; True in a boolean mask hides.

    Returns:
        (batch, length, width), and weights (batch, length, length) averaged over heads,
        (batch, heads, length, length) not averaged, or None.
    """
    from torch.nn import functional

    sources = (query, key, value)
    weights, biases = in_weight.chunk(3), in_bias.chunk(3)
    parts = [functional.linear(*each) for each in zip(sources, weights, biases, strict=True)]
    q, k, v = (p.unflatten(-1, (heads, width // heads)).transpose(1, 2) for p in parts)
    scores = (q * (width // heads) ** -0.5) @ k.transpose(-2, -1)  # (batch, heads, length, length)
    if mask is not None:
        scores = scores.masked_fill(_expanded(mask, mask_type), float("-inf"))
    attention = scores.softmax(-1)
    mixed = (attention @ v).transpose(1, 2).flatten(-2)  # (batch, length, width)
    result = functional.linear(mixed, out_weight, out_bias)
    if not need_weights:
        return result, None
    return result, attention.mean(1) if average_weights else attention


def encoder_layer(
    source: Any, width: int, heads: int,
    in_weight: Any, in_bias: Any, out_weight: Any, out_bias: Any,
    use_gelu: bool, norm_first: bool, eps: float,
    norm1_weight: Any, norm1_bias: Any, norm2_weight: Any, norm2_bias: Any,
    up_weight: Any, up_bias: Any, down_weight: Any, down_bias: Any,
    mask: Any = None, mask_type: int | None = None,
) -> Any:  # fmt: skip
    """A Transformer encoder layer on (batch, length, width)."""
    import torch
    from torch.nn import functional

    def first_norm(x: Any) -> Any:
        return functional.layer_norm(x, (width,), norm1_weight, norm1_bias, eps)

    def second_norm(x: Any) -> Any:
        return functional.layer_norm(x, (width,), norm2_weight, norm2_bias, eps)

    def attend(x: Any) -> Any:
        return multi_head_attention(
            x, x, x, width, heads, in_weight, in_bias, out_weight, out_bias,
            mask, False, True, mask_type,
        )[0]  # fmt: skip

    def feed_forward(x: Any) -> Any:
        hidden = functional.linear(x, up_weight, up_bias)
        hidden = functional.gelu(hidden) if use_gelu else torch.relu(hidden)
        return functional.linear(hidden, down_weight, down_bias)

    if norm_first:
        source = source + attend(first_norm(source))
        return source + feed_forward(second_norm(source))
    source = first_norm(source + attend(source))
    return second_norm(source + feed_forward(source))


def _expanded(mask: Any, mask_type: int | None) -> Any:
    """A mask as it broadcasts over (batch, heads, length, length)."""
    mask = mask != 0
    if mask_type == _KEY_PADDING:
        return mask[:, None, None, :]
    return mask if mask_type == _BOTH or mask.dim() == 4 else mask[None, None]


FAST_PATHS: Mapping[str, Callable[..., Any]] = {
    "aten::_native_multi_head_attention": multi_head_attention,
    "aten::_transformer_encoder_layer_fwd": encoder_layer,
}
"""Node kind -> the same in ordinary operators."""
