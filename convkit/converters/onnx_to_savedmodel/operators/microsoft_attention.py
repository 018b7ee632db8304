"""ONNX Runtime's attention operators (com.microsoft)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.attention import (
    by_head,
    grouped_product,
    merged,
    rotated,
)
from convkit.converters.onnx_to_savedmodel.operators.quantization import integer_product
from convkit.converters.onnx_to_savedmodel.operators.values import (
    Int,
    as_shape,
    rank_of,
    scalar,
    single,
    sizes_of,
)

_MASKED_SCORE = -10000.0
"""What ONNX Runtime adds to the scores of masked keys unless told otherwise."""


def attended(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    bias: tf.Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Attention of (batch, heads, positions, size), and its biased scores.

    The last query sees all keys in a causal one.
    """
    scores = _scores(q, k, scale)
    scores = scores if bias is None else scores + bias
    if is_causal:
        queries, keys = (tf.cast(sizes_of(x)[2], tf.int64) for x in (q, k))
        last = tf.range(queries)[:, None] + keys - queries
        seen = tf.range(keys)[None, :] <= last
        scores = tf.where(seen, scores, tf.constant(float("-inf"), scores.dtype))
    return grouped_product(tf.nn.softmax(scores), v, transpose=False), scores


def _scores(q: tf.Tensor, k: tf.Tensor, scale: float | None) -> tf.Tensor:
    size = sizes_of(q)[3]
    factor: Any = scale or (
        tf.math.rsqrt(tf.cast(size, tf.float32)) if tf.is_tensor(size) else size**-0.5
    )
    return grouped_product(q * tf.cast(factor, q.dtype), k, transpose=True)


def _seen_keys(mask: tf.Tensor, keys: Any, batch: Any) -> tf.Tensor:
    """Which keys each query may see, broadcast to (batch, heads, queries, keys).

    ONNX Runtime takes (batch) or (2 * batch) or (3 * batch + 2) lengths, or 0 and 1 as
    (batch, keys), (batch, queries, keys) or (batch, 1, queries, keys).
    """
    rank = rank_of(mask)
    if rank > 1:
        seen = tf.not_equal(mask, 0)
        if rank == 4:
            return seen[..., : tf.cast(keys, tf.int32)]
        return seen[:, None] if rank == 3 else seen[:, None, None]
    position = tf.range(tf.cast(keys, tf.int32))
    count = tf.cast(batch, tf.int32)
    seen = position < tf.cast(mask[:count], tf.int32)[:, None]
    # Either ends alone, or ends and then starts.
    total = tf.size(mask)
    starts = tf.cond(
        tf.equal(total, 2 * count),
        lambda: tf.cast(mask[count:], tf.int32),
        lambda: tf.zeros([count], tf.int32),
    )
    return tf.logical_and(seen, position >= starts[:, None])[:, None, None]


def _score_bias(
    mask: tf.Tensor | None,
    added: tf.Tensor | None,
    mask_filter_value: float | None,
    q: tf.Tensor,
    k: tf.Tensor,
) -> tf.Tensor | None:
    """What is added to the scores for a mask of keys and a bias, either of which may be absent."""
    if mask is None:
        return added
    seen = _seen_keys(mask, sizes_of(k)[2], sizes_of(q)[0])
    masked = _MASKED_SCORE if mask_filter_value is None else mask_filter_value
    bias = tf.where(seen, tf.zeros([], q.dtype), tf.constant(masked, q.dtype))
    return bias if added is None else bias + added


def attention_of_input(
    x: tf.Tensor,
    weights: tf.Tensor,
    bias: tf.Tensor | None = None,
    mask_index: tf.Tensor | None = None,
    past: tf.Tensor | None = None,
    attention_bias: tf.Tensor | None = None,
    past_sequence_length: tf.Tensor | None = None,
    *,
    mask_filter_value: float | None = None,
    num_heads: int,
    qkv_hidden_sizes: list[int] | None = None,
    scale: float | None = None,
    unidirectional: int = 0,
    output_count: int = 1,
) -> Any:
    """com.microsoft Attention: projections to query, key and value, then attention."""
    del past_sequence_length  # the past is as long as it says itself
    projected = tf.matmul(x, weights)
    projected = projected if bias is None else projected + bias
    sizes = qkv_hidden_sizes or 3
    return _of_projection(
        projected,
        mask_index,
        past,
        attention_bias,
        mask_filter_value,
        num_heads,
        sizes,
        scale,
        bool(unidirectional),
        output_count,
    )


def _of_projection(
    projected: tf.Tensor,
    mask_index: tf.Tensor | None,
    past: tf.Tensor | None,
    attention_bias: tf.Tensor | None,
    mask_filter_value: float | None,
    num_heads: int,
    sizes: Sequence[int] | int,
    scale: float | None,
    is_causal: bool,
    output_count: int,
) -> Any:
    """Attention of query, key and value side by side in the last axis."""
    q, k, v = (by_head(part, num_heads) for part in tf.split(projected, sizes, 2))
    if past is not None:
        k, v = tf.concat([past[0], k], 2), tf.concat([past[1], v], 2)
    bias = _score_bias(mask_index, attention_bias, mask_filter_value, q, k)
    y = merged(attended(q, k, v, bias, is_causal, scale)[0])
    return y if output_count == 1 else (y, tf.stack([k, v]))


def quantized_attention(
    x: tf.Tensor,
    weight: tf.Tensor,
    bias: tf.Tensor,
    input_scale: tf.Tensor,
    weight_scale: tf.Tensor,
    mask_index: tf.Tensor | None = None,
    input_zero_point: tf.Tensor | None = None,
    weight_zero_point: tf.Tensor | None = None,
    past: tf.Tensor | None = None,
    *,
    mask_filter_value: float | None = None,
    num_heads: int,
    scale: float | None = None,
    unidirectional: int = 0,
    output_count: int = 1,
) -> Any:
    """com.microsoft QAttention: Attention whose projections are products of integers."""
    total = integer_product(x, weight, input_zero_point, weight_zero_point)
    projected = tf.cast(total, input_scale.dtype) * (input_scale * weight_scale) + bias
    return _of_projection(
        projected,
        mask_index,
        past,
        None,
        mask_filter_value,
        num_heads,
        3,
        scale,
        bool(unidirectional),
        output_count,
    )


def multi_head_attention(
    query: tf.Tensor,
    key: tf.Tensor | None = None,
    value: tf.Tensor | None = None,
    bias: tf.Tensor | None = None,
    key_padding_mask: tf.Tensor | None = None,
    attention_bias: tf.Tensor | None = None,
    past_key: tf.Tensor | None = None,
    past_value: tf.Tensor | None = None,
    *,
    mask_filter_value: float | None = None,
    num_heads: int,
    scale: float | None = None,
    unidirectional: int = 0,
    output_count: int = 1,
) -> Any:
    """com.microsoft MultiHeadAttention; keys of four axes are already split by heads."""
    q, k, v = _separated(query, key, value, bias, num_heads)
    if past_key is not None:
        k, v = tf.concat([past_key, k], 2), tf.concat([past_value, v], 2)
    added = _score_bias(key_padding_mask, attention_bias, mask_filter_value, q, k)
    y, scores = attended(q, k, v, added, bool(unidirectional), scale)
    return single([merged(y), k, v, scores], output_count)


def _separated(
    query: tf.Tensor,
    key: tf.Tensor | None,
    value: tf.Tensor | None,
    bias: tf.Tensor | None,
    heads: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Query, key and value as (batch, heads, positions, size), however they were packed."""
    if rank_of(query) == 5:  # (batch, positions, heads, 3, size)
        query, key, value = (_flat(part) for part in tf.unstack(query, 3, 3))
    elif key is not None and rank_of(key) == 5:  # (batch, positions, heads, 2, size)
        key, value = (_flat(part) for part in tf.unstack(key, 2, 3))
    parts = [query, key, value]
    if bias is not None:
        width = int(query.shape[2])
        shifts = tf.split(bias, [width, width, int(bias.shape[0]) - 2 * width])
        parts = [
            part + (shift if rank_of(part) == 3 else tf.reshape(shift, [heads, 1, -1]))
            for part, shift in zip(parts, shifts, strict=True)
        ]
    q, k, v = (by_head(part, heads) for part in parts)
    return q, k, v


def _flat(x: tf.Tensor) -> tf.Tensor:
    batch, count, heads, size = sizes_of(x)
    return tf.reshape(x, as_shape([batch, count, heads * size]))


def group_query_attention(
    query: tf.Tensor,
    key: tf.Tensor | None = None,
    value: tf.Tensor | None = None,
    past_key: tf.Tensor | None = None,
    past_value: tf.Tensor | None = None,
    seqlens_k: tf.Tensor | None = None,
    total_sequence_length: Int = 0,
    cos_cache: tf.Tensor | None = None,
    sin_cache: tf.Tensor | None = None,
    position_ids: tf.Tensor | None = None,
    attention_bias: tf.Tensor | None = None,
    head_sink: tf.Tensor | None = None,
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
) -> Any:
    """com.microsoft GroupQueryAttention: causal attention with a cache of keys and values.

    `seqlens_k` holds each entry's number of keys, less one. New keys follow the entry's old ones in
    the cache, which is as long as the longest of the past and `total_sequence_length`.
    """
    if key is None:
        size = int(query.shape[2]) // (num_heads + 2 * kv_num_heads)
        widths = [num_heads * size, kv_num_heads * size, kv_num_heads * size]
        query, key, value = tf.split(query, widths, 2)
    q, k, v = by_head(query, num_heads), by_head(key, kv_num_heads), by_head(value, kv_num_heads)
    count = tf.cast(sizes_of(q)[2], tf.int64)
    ends = tf.cast(tf.reshape(seqlens_k, [-1, 1]), tf.int64) + 1
    position = tf.maximum(ends - count, 0) + tf.range(count)
    if do_rotary and cos_cache is not None:
        turn = position if position_ids is None else position_ids
        cos, sin = tf.gather(cos_cache, turn)[:, None], tf.gather(sin_cache, turn)[:, None]
        width = 2 * int(cos_cache.shape[1])
        q, k = (rotated(x, cos, sin, bool(rotary_interleaved), width) for x in (q, k))
    total = scalar(total_sequence_length, tf.int64)
    k, v = _cached(past_key, k, position, total), _cached(past_value, v, position, total)
    place = tf.range(tf.cast(sizes_of(k)[2], tf.int64))
    own = position[:, None, :, None]
    seen = place < tf.reshape(tf.maximum(ends, count), [-1, 1, 1, 1])
    if causal:
        seen = tf.logical_and(seen, place <= own)
    if local_window_size > 0:
        seen = tf.logical_and(seen, place > own - local_window_size)
    scores = _scores(q, k, scale)
    if softcap:
        scores = tf.tanh(scores / softcap) * softcap
    if attention_bias is not None:
        missing = tf.shape(k, out_type=tf.int64)[2] - tf.shape(attention_bias, out_type=tf.int64)[3]
        last = tf.stack([tf.zeros([], tf.int64), missing])[None]
        rows = tf.concat([tf.zeros([3, 2], tf.int64), last], 0)
        scores += tf.pad(attention_bias, rows)
    scores = tf.where(seen, scores, tf.constant(float("-inf"), scores.dtype))
    sink = head_sink
    if sink is None and smooth_softmax > 0:
        sink = tf.zeros([num_heads], q.dtype)
    y = merged(grouped_product(_sunk(scores, sink), v, transpose=False))
    return single([y, k, v], output_count)


def _cached(
    past: tf.Tensor | None, x: tf.Tensor, position: tf.Tensor, total: tf.Tensor
) -> tf.Tensor:
    """The cache with new entries, (batch, heads, positions, size), written at their positions."""
    batch, heads, count, size = sizes_of(x)
    if past is None:
        past = tf.zeros(as_shape([batch, heads, 0, size]), x.dtype)
    longer = tf.maximum(total - tf.shape(past, out_type=tf.int64)[2], 0)
    zero = tf.zeros([2], tf.int64)
    last = tf.stack([tf.zeros([], tf.int64), longer])
    rows = tf.transpose(tf.pad(past, tf.stack([zero, zero, last, zero])), [0, 2, 1, 3])
    owner = tf.broadcast_to(tf.range(tf.cast(batch, tf.int64))[:, None], tf.shape(position))
    index = tf.stack([owner, position], -1)
    new = tf.cast(tf.transpose(x, [0, 2, 1, 3]), past.dtype)
    del count
    return tf.transpose(tf.tensor_scatter_nd_update(rows, index, new), [0, 2, 1, 3])


def _sunk(scores: tf.Tensor, sink: tf.Tensor | None) -> tf.Tensor:
    """A softmax that may have one more score per head, the sink, that selects nothing."""
    if sink is None:
        return tf.nn.softmax(scores)
    extra = tf.reshape(tf.cast(sink, scores.dtype), [1, -1, 1, 1])
    shape = tf.concat([tf.shape(scores)[:3], [1]], 0)
    chances = tf.nn.softmax(tf.concat([scores, tf.broadcast_to(extra, shape)], -1))
    return chances[..., :-1]


def rotary_embedding_by_position(
    x: tf.Tensor,
    position_ids: tf.Tensor,
    cos_cache: tf.Tensor,
    sin_cache: tf.Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> tf.Tensor:
    """com.microsoft RotaryEmbedding; a single position is that of the first token."""
    del is_packed_batching, scale  # neither is used by the CPU's kernel
    is_flat = rank_of(x) == 3
    if rank_of(position_ids) == 1:
        count = sizes_of(x)[1 if is_flat else 2]
        position_ids = (position_ids + tf.range(tf.cast(count, position_ids.dtype)))[None]
    heads = num_heads or int(x.shape[-1]) // (2 * int(cos_cache.shape[1]))
    cos, sin = (tf.gather(cache, position_ids)[:, None] for cache in (cos_cache, sin_cache))
    y = rotated(by_head(x, heads), cos, sin, bool(interleaved), rotary_embedding_dim)
    return merged(y) if is_flat else y


OPERATORS = {
    ("com.microsoft", "Attention"): attention_of_input,
    ("com.microsoft", "GroupQueryAttention"): group_query_attention,
    ("com.microsoft", "MultiHeadAttention"): multi_head_attention,
    ("com.microsoft", "QAttention"): quantized_attention,
    ("com.microsoft", "RotaryEmbedding"): rotary_embedding_by_position,
}
