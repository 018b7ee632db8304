"""Attention, rotary position embedding, and the masks they need."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def split_heads(x: torch.Tensor, heads: int | None) -> torch.Tensor:
    """(batch, length, heads * size) as (batch, heads, length, size)."""
    return x.reshape(x.shape[0], x.shape[1], heads or 1, -1).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """(batch, heads, length, size) as (batch, length, heads * size)."""
    return x.transpose(1, 2).flatten(2)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    past_key: torch.Tensor | None = None,
    past_value: torch.Tensor | None = None,
    nonpad_kv_seqlen: torch.Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: torch.dtype | None = None,
    output_count: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX Attention of (batch, heads, length, size) or (batch, length, heads * size)."""
    packed = q.dim() == 3
    if packed:
        q = split_heads(q, q_num_heads)
        k, v = split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    windowed = left_window_size >= 0 or right_window_size >= 0
    simple_causal = bool(is_causal) and past_key is None and nonpad_kv_seqlen is None
    allowed = None
    if nonpad_kv_seqlen is not None or windowed or (is_causal and not simple_causal):
        allowed = visible_keys(
            q, k, past, nonpad_kv_seqlen, bool(is_causal), left_window_size, right_window_size
        )
    plain = output_count < 4 and not softcap and softmax_precision is None
    if simple_causal and allowed is None and (attn_mask is not None or not plain):
        allowed = visible_keys(q, k, 0, None, True, -1, -1)
    bias = combined_mask(attn_mask, allowed, k.shape[2], q.dtype)
    factor = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    weights = q.new_zeros(0)  # replaced where it is an output
    if plain:
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            bias,
            is_causal=simple_causal and bias is None,
            scale=factor,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    else:
        y, weights = explicit_attention(
            q, k, v, bias, factor, softcap, softmax_precision, qk_matmul_output_mode
        )
    y = merge_heads(y) if packed else y
    return y if output_count == 1 else (y, k, v, weights)[:output_count]


def visible_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    past: int,
    lengths: torch.Tensor | None,
    causal: bool,
    left: int,
    right: int,
) -> torch.Tensor:
    """Which keys each query may see: (queries, keys), or (batch, 1, queries, keys).

    Queries follow `past` keys, or end where the batch entry's `lengths` end.
    """
    query = torch.arange(q.shape[2], device=q.device).unsqueeze(1) + past
    key = torch.arange(k.shape[2], device=q.device)
    if lengths is not None:
        ends = lengths.reshape(-1, 1, 1, 1)
        query = query + (ends - q.shape[2])
    seen = torch.ones_like(query <= key)
    if lengths is not None:
        seen = seen & (key < ends)
    if causal:
        seen = seen & (key <= query)
    if left >= 0:
        seen = seen & (key >= query - left)
    if right >= 0:
        seen = seen & (key <= query + right)
    return seen


def combined_mask(
    mask: torch.Tensor | None, allowed: torch.Tensor | None, keys: int, dtype: torch.dtype
) -> torch.Tensor | None:
    """A boolean or additive mask of all `keys`, forbidding what either argument forbids."""
    if mask is None:
        return allowed
    beyond = keys - mask.shape[-1]
    if not isinstance(beyond, int) or beyond > 0:
        mask = F.pad(mask, (0, beyond), value=False if mask.dtype == torch.bool else -torch.inf)
    if mask.dtype == torch.bool:
        mask = mask if allowed is None else mask & allowed
    else:
        mask = mask.to(dtype)
        mask = mask if allowed is None else torch.where(allowed, mask, -torch.inf)
    return mask if mask.dim() > 1 else mask.unsqueeze(0)


def repeated_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values shared by groups of query heads, repeated for each of them."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def explicit_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float,
    precision: torch.dtype | None,
    output_mode: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in steps, with the scores as they are after the step that `output_mode` names.

    Queries that see no key give zeros.
    """
    k, v = repeated_heads(k, q.shape[1]), repeated_heads(v, q.shape[1])
    root = math.sqrt(scale)
    scores = raw = torch.matmul(q * root, (k * root).mT)
    if softcap:
        scores = capped = softcap * torch.tanh(scores / softcap)
    else:
        capped = scores
    blind = torch.zeros((), dtype=torch.bool, device=q.device)
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill(~bias, -torch.inf)
        blind = (bias == -torch.inf).all(-1, keepdim=True)
        scores = scores + bias
    chances = torch.softmax(scores, -1, dtype=precision or q.dtype)
    chances = torch.where(blind, 0, chances).to(q.dtype)
    shown = (raw, capped, scores, chances)[output_mode]
    return torch.matmul(chances, v), shown.to(q.dtype)


def rotary_embedding(
    x: torch.Tensor,
    cos_cache: torch.Tensor,
    sin_cache: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> torch.Tensor:
    """ONNX RotaryEmbedding of (batch, heads, length, size) or (batch, length, heads * size).

    The caches are (positions, half size), or without `position_ids` (batch, length, half size).
    """
    if position_ids is not None:
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    y = split_heads(x, num_heads) if x.dim() == 3 else x
    y = rotated(
        y, cos_cache.unsqueeze(1), sin_cache.unsqueeze(1), interleaved, rotary_embedding_dim
    )
    return merge_heads(y) if x.dim() == 3 else y


def rotated(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: int, width: int
) -> torch.Tensor:
    """Pairs of elements of the last axis turned by their angles; only the first `width`, if given.

    Source: Su et al. 2021, RoFormer. Pairs are neighbours if `interleaved`, else halves apart.
    """
    turning = x[..., :width] if width else x
    if interleaved:
        real, imaginary = turning[..., 0::2], turning[..., 1::2]
    else:
        real, imaginary = turning.chunk(2, -1)
    cos, sin = cos[..., : real.shape[-1]], sin[..., : real.shape[-1]]
    turned = (cos * real - sin * imaginary, sin * real + cos * imaginary)
    y = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat([y, x[..., width:]], -1) if width else y


def linear_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_state: torch.Tensor | None = None,
    decay: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
    output_count: int = 2,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX LinearAttention: one state per key head, (key size, value size), updated token by token.

    Source: the recurrences of the ONNX specification (linear, gated, delta, gated delta).
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (
        split_heads(x.to(exact), heads)
        for x, heads in ((query, q_num_heads), (key, kv_num_heads), (value, kv_num_heads))
    )
    factor = scale or 1 / math.sqrt(q.shape[3])
    groups = q_num_heads // kv_num_heads
    if past_state is None:
        state = torch.zeros(*k.shape[:2], k.shape[3], v.shape[3], dtype=exact, device=q.device)
    else:
        state = past_state.to(exact)
    # (batch, heads, length, key size or 1) and (batch, heads or 1, length, 1)
    fading = None if decay is None else torch.exp(split_heads(decay.to(exact), kv_num_heads))
    rate = None if beta is None else beta.to(exact).transpose(1, 2).unsqueeze(3)
    outputs = []
    for step in range(q.shape[2]):
        key_now, fresh = k[:, :, step].unsqueeze(3), v[:, :, step].unsqueeze(2)
        if fading is not None and update_rule in ("gated", "gated_delta"):
            state = state * fading[:, :, step].unsqueeze(3)
        if rate is not None and update_rule in ("delta", "gated_delta"):
            fresh = rate[:, :, step].unsqueeze(3) * (fresh - torch.matmul(key_now.mT, state))
        state = state + key_now * fresh
        seen = state.repeat_interleave(groups, 1)
        outputs.append(torch.matmul(q[:, :, step].unsqueeze(2), seen) * factor)
    y = merge_heads(torch.cat(outputs, 2)).to(query.dtype)
    kept = query.dtype if past_state is None else past_state.dtype
    return y if output_count == 1 else (y, state.to(kept))


OPERATORS = {
    "Attention": attention,
    "LinearAttention": linear_attention,
    "RotaryEmbedding": rotary_embedding,
}
