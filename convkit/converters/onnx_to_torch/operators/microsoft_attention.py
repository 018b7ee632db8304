"""ONNX Runtime's attention operators (com.microsoft)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.attention import (
    explicit_attention,
    merge_heads,
    repeated_heads,
    rotated,
    split_heads,
)
from convkit.converters.onnx_to_torch.operators.quantization import integer_matmul
from convkit.converters.onnx_to_torch.operators.values import Int, as_int

# What ONNX Runtime adds to scores of masked keys unless told otherwise.
MASKED_SCORE = -10000.0


def attended(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    causal: bool,
    scale: float | None,
    wants_scores: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (batch, heads, length, size), and the scores where they are wanted.

    The last query sees all keys in a causal one.
    """
    factor = scale or 1 / math.sqrt(q.shape[3])
    if causal and (bias is not None or wants_scores or q.shape[2] is not k.shape[2]):
        query = torch.arange(q.shape[2], device=q.device).unsqueeze(1) + k.shape[2] - q.shape[2]
        seen = torch.arange(k.shape[2], device=q.device) <= query
        bias = seen if bias is None else torch.where(seen, bias, -torch.inf)
        causal = False
    if wants_scores:
        return explicit_attention(q, k, v, bias, factor, 0.0, None, 0)
    k, v = repeated_heads(k, q.shape[1]), repeated_heads(v, q.shape[1])
    return F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, scale=factor), q


def key_mask(mask: torch.Tensor, keys: int, batch: int) -> torch.Tensor:
    """Which keys each query may see, broadcast to (batch, heads, queries, keys).

    ONNX Runtime takes (batch) or (2 * batch) or (3 * batch + 2) lengths, or 0 and 1 as
    (batch, keys), (batch, queries, keys) or (batch, 1, queries, keys).
    """
    if mask.dim() == 1:
        position = torch.arange(keys, device=mask.device)
        seen = position < mask[:batch].unsqueeze(1)
        if mask.shape[0] == 2 * batch:  # ends, then starts
            seen = seen & (position >= mask[batch:].unsqueeze(1))
        return seen.reshape(batch, 1, 1, keys)
    seen = mask != 0
    if mask.dim() == 4:
        return seen[..., :keys]
    return seen.unsqueeze(1) if mask.dim() == 3 else seen.reshape(batch, 1, 1, -1)


def score_bias(
    seen: torch.Tensor | None,
    added: torch.Tensor | None,
    mask_filter_value: float | None,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """What is added to the scores for a mask of keys and a bias, either of which may be absent."""
    if seen is None:
        return added
    masked = MASKED_SCORE if mask_filter_value is None else mask_filter_value
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, masked)
    return bias if added is None else bias + added


def attention_of_input(
    input: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor | None = None,
    mask_index: torch.Tensor | None = None,
    past: torch.Tensor | None = None,
    attention_bias: torch.Tensor | None = None,
    past_sequence_length: torch.Tensor | None = None,
    *,
    mask_filter_value: float | None = None,
    num_heads: int,
    qkv_hidden_sizes: list[int] | None = None,
    scale: float | None = None,
    unidirectional: int = 0,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """com.microsoft Attention: projections to query, key and value, then attention."""
    projected = torch.matmul(input, weights)
    projected = projected if bias is None else projected + bias
    return attention_of_projection(
        projected,
        mask_index,
        past,
        attention_bias,
        mask_filter_value,
        num_heads,
        qkv_hidden_sizes,
        scale,
        unidirectional,
        output_count,
    )


def attention_of_projection(
    projected: torch.Tensor,
    mask_index: torch.Tensor | None,
    past: torch.Tensor | None,
    attention_bias: torch.Tensor | None,
    mask_filter_value: float | None,
    num_heads: int,
    qkv_hidden_sizes: list[int] | None,
    scale: float | None,
    unidirectional: int,
    output_count: int,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Attention of query, key and value side by side in the last axis."""
    sizes = qkv_hidden_sizes or [projected.shape[2] // 3] * 3
    q, k, v = (split_heads(part, num_heads) for part in projected.split(sizes, 2))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    seen = None if mask_index is None else key_mask(mask_index, k.shape[2], q.shape[0])
    bias = score_bias(seen, attention_bias, mask_filter_value, q.dtype)
    y = merge_heads(attended(q, k, v, bias, bool(unidirectional), scale)[0])
    return y if output_count == 1 else (y, torch.stack([k, v]))


def quantized_attention(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    input_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    mask_index: torch.Tensor | None = None,
    input_zero_point: torch.Tensor | None = None,
    weight_zero_point: torch.Tensor | None = None,
    past: torch.Tensor | None = None,
    *,
    mask_filter_value: float | None = None,
    num_heads: int,
    scale: float | None = None,
    unidirectional: int = 0,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """com.microsoft QAttention: Attention whose projections are products of integers."""
    total = integer_matmul(input, weight, input_zero_point, weight_zero_point)
    projected = total.to(input_scale.dtype) * (input_scale * weight_scale) + bias
    return attention_of_projection(
        projected,
        mask_index,
        past,
        None,
        mask_filter_value,
        num_heads,
        None,
        scale,
        unidirectional,
        output_count,
    )


def separate_heads(
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    bias: torch.Tensor | None,
    heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value as (batch, heads, length, size), however they were packed."""
    if query.dim() == 5:  # (batch, length, heads, 3, size)
        parts = [part.flatten(2) for part in query.unbind(3)]
    elif key is not None and value is None:  # (batch, length, heads, 2, size)
        parts = [query, *(part.flatten(2) for part in key.unbind(3))]
    else:
        parts = [part for part in (query, key, value) if part is not None]
    query = parts[0]
    if bias is not None:
        widths = [query.shape[2], query.shape[2], bias.shape[0] - 2 * query.shape[2]]
        shifts = bias.split(widths)
        parts = [
            part + shift if part.dim() == 3 else part + shift.reshape(heads, 1, -1)
            for part, shift in zip(parts, shifts, strict=True)
        ]
    q, k, v = (split_heads(part, heads) if part.dim() == 3 else part for part in parts)
    return q, k, v


def multi_head_attention(
    query: torch.Tensor,
    key: torch.Tensor | None = None,
    value: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
    attention_bias: torch.Tensor | None = None,
    past_key: torch.Tensor | None = None,
    past_value: torch.Tensor | None = None,
    *,
    mask_filter_value: float | None = None,
    num_heads: int,
    scale: float | None = None,
    unidirectional: int = 0,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """com.microsoft MultiHeadAttention; keys of four axes are already split by heads."""
    q, k, v = separate_heads(query, key, value, bias, num_heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    seen = None
    if key_padding_mask is not None:
        seen = key_mask(key_padding_mask, k.shape[2], q.shape[0])
    added = score_bias(seen, attention_bias, mask_filter_value, q.dtype)
    y, scores = attended(q, k, v, added, bool(unidirectional), scale, output_count == 4)
    y = merge_heads(y)
    return y if output_count == 1 else (y, k, v, scores)[:output_count]


def group_query_attention(
    query: torch.Tensor,
    key: torch.Tensor | None,
    value: torch.Tensor | None,
    past_key: torch.Tensor | None,
    past_value: torch.Tensor | None,
    seqlens_k: torch.Tensor,
    total_sequence_length: Int,
    cos_cache: torch.Tensor | None = None,
    sin_cache: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    attention_bias: torch.Tensor | None = None,
    head_sink: torch.Tensor | None = None,
    *,
    causal: int = 1,
    do_rotary: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    rotary_interleaved: int = 0,
    scale: float | None = None,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """com.microsoft GroupQueryAttention: causal attention with a cache of keys and values.

    `seqlens_k` holds each entry's number of keys, less one. New keys follow the entry's old ones in
    the cache, which is as long as the longest of the past and `total_sequence_length`.
    """
    if key is None or value is None:
        packed = split_heads(query, num_heads + 2 * kv_num_heads)
        q, k, v = packed.split([num_heads, kv_num_heads, kv_num_heads], 1)
    else:
        q = split_heads(query, num_heads)
        k, v = split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    length, total = q.shape[2], as_int(total_sequence_length)
    ends = seqlens_k.reshape(-1, 1).to(torch.int64) + 1
    first = torch.clamp(ends - length, min=0)  # where the new keys of each entry go
    position = first + torch.arange(length, device=q.device)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        turn = position if position_ids is None else position_ids
        cos, sin = cos_cache[turn].unsqueeze(1), sin_cache[turn].unsqueeze(1)
        width = 2 * cos_cache.shape[1]
        q, k = (rotated(x, cos, sin, rotary_interleaved, width) for x in (q, k))
    k = cached(past_key, k, position, total)
    v = cached(past_value, v, position, total)
    place, query_place = torch.arange(k.shape[2], device=q.device), position[:, None, :, None]
    seen = place < torch.clamp(ends, min=length).reshape(-1, 1, 1, 1)
    if causal:
        seen = seen & (place <= query_place)
    if local_window_size > 0:
        seen = seen & (place > query_place - local_window_size)
    bias = seen
    if attention_bias is not None:
        missing = k.shape[2] - attention_bias.shape[-1]
        bias = torch.where(seen, F.pad(attention_bias, (0, missing)), -torch.inf)
    sink = head_sink
    if sink is None and smooth_softmax > 0:
        sink = torch.zeros(num_heads, dtype=q.dtype, device=q.device)
    y = sunk_attention(q, k, v, bias, scale, softcap, sink)
    y = merge_heads(y)
    return y if output_count == 1 else (y, k, v)[:output_count]


def cached(
    past: torch.Tensor | None, x: torch.Tensor, position: torch.Tensor, total: int
) -> torch.Tensor:
    """The cache with new entries, (batch, heads, length, size), written at their positions."""
    if past is None:
        past = x.new_zeros(x.shape[0], x.shape[1], 0, x.shape[3])
    longer = torch.sym_max(past.shape[2], total) - past.shape[2]
    index = position[:, None, :, None].expand(x.shape)
    return torch.scatter(F.pad(past, (0, 0, 0, longer)), 2, index, x.to(past.dtype))


def sunk_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    scale: float | None,
    softcap: float,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """Attention whose softmax may have one more score per head, the sink, that selects nothing."""
    factor = scale or 1 / math.sqrt(q.shape[3])
    if sink is None and not softcap:
        k, v = repeated_heads(k, q.shape[1]), repeated_heads(v, q.shape[1])
        return F.scaled_dot_product_attention(q, k, v, bias, scale=factor)
    if sink is None:
        return explicit_attention(q, k, v, bias, factor, softcap, torch.float32, 0)[0]
    k, v = repeated_heads(k, q.shape[1]), repeated_heads(v, q.shape[1])
    scores = torch.matmul(q * factor, k.mT)
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    is_mask = bias.dtype == torch.bool
    scores = torch.where(bias, scores, -torch.inf) if is_mask else scores + bias
    extra = sink.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    chances = torch.softmax(torch.cat([scores, extra], -1), -1, dtype=torch.float32)
    return torch.matmul(chances[..., :-1].to(v.dtype), v)


def rotary_embedding_by_position(
    input: torch.Tensor,
    position_ids: torch.Tensor,
    cos_cache: torch.Tensor,
    sin_cache: torch.Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> torch.Tensor:
    """com.microsoft RotaryEmbedding; a single position is that of the first token."""
    length = input.shape[1] if input.dim() == 3 else input.shape[2]
    if position_ids.dim() == 1:
        position_ids = position_ids + torch.arange(length, device=input.device)
        position_ids = position_ids.unsqueeze(0)
    heads = num_heads or input.shape[-1] // (2 * cos_cache.shape[1])
    y = split_heads(input, heads) if input.dim() == 3 else input
    cos, sin = cos_cache[position_ids].unsqueeze(1), sin_cache[position_ids].unsqueeze(1)
    y = rotated(y, cos, sin, interleaved, rotary_embedding_dim)
    return merge_heads(y) if input.dim() == 3 else y


OPERATORS = {
    ("com.microsoft", "Attention"): attention_of_input,
    ("com.microsoft", "GroupQueryAttention"): group_query_attention,
    ("com.microsoft", "MultiHeadAttention"): multi_head_attention,
    ("com.microsoft", "QAttention"): quantized_attention,
    ("com.microsoft", "RotaryEmbedding"): rotary_embedding_by_position,
}
