"""Attention and rotary positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    as_shape,
    rank_of,
    single,
    sizes_of,
)

_HALVES = (tf.float16, tf.bfloat16)


@dataclass(frozen=True)
class Mask:
    """Which keys a query may attend, besides what a mask tensor says.

    Attributes:
        is_causal: none after the query's own position.
        left: how many positions before it at most; -1 for all.
        right: how many after it at most; -1 for all.
        offset: the position of the first query: one for all, or one per batch.
        lengths: how many keys of each batch are real, or None.
    """

    is_causal: bool
    left: int
    right: int
    offset: Any
    lengths: tf.Tensor | None

    def allowed(self, query_count: tf.Tensor, key_count: tf.Tensor) -> tf.Tensor | None:
        """(queries, keys) or (batch, 1, queries, keys); None where everything is allowed."""
        offset = tf.reshape(tf.cast(self.offset, tf.int64), [-1, 1, 1, 1])
        distance = offset + tf.range(query_count)[:, None] - tf.range(key_count)[None, :]
        conditions = []
        if self.is_causal:
            conditions.append(distance >= 0)
        if self.left >= 0:
            conditions.append(distance <= self.left)
        if self.right >= 0:
            conditions.append(-distance <= self.right)
        if self.lengths is not None:
            length = tf.reshape(tf.cast(self.lengths, tf.int64), [-1, 1, 1, 1])
            conditions.append(tf.range(key_count) < length)
        result = None
        for condition in conditions:
            result = condition if result is None else tf.logical_and(result, condition)
        return result


def attention(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    attn_mask: tf.Tensor | None = None,
    past_key: tf.Tensor | None = None,
    past_value: tf.Tensor | None = None,
    nonpad_kv_seqlen: tf.Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: tf.DType | None = None,
    output_count: int = 1,
) -> Any:
    """ONNX Attention.

    Args:
        q: (batch, heads, queries, size), or (batch, queries, heads * size).
        k: likewise with the heads of keys, of which each may serve several of queries.
        v: likewise.
        attn_mask: boolean, or numbers to add, broadcast to (batch, heads, queries, keys).
        past_key: keys to go before `k`.
        past_value: values to go before `v`.
        nonpad_kv_seqlen: how many keys of each batch are real.
        is_causal: whether later keys are hidden.
        kv_num_heads: heads in `k` of three dimensions.
        left_window_size: how far back keys are seen; -1 for all.
        q_num_heads: heads in `q` of three dimensions.
        qk_matmul_output_mode: what the fourth output is: the products (0), capped (1), with the
            mask (2), or the shares (3).
        right_window_size: how far ahead keys are seen; -1 for all.
        scale: by what products are multiplied; the inverse root of the size if None.
        softcap: bound of the products, smoothly; 0 for none.
        softmax_precision: the dtype of the softmax.
        output_count: how many of result, keys, values and products to give.
    """
    is_flat = rank_of(q) == 3
    q = by_head(q, q_num_heads)
    k, v = by_head(k, kv_num_heads), by_head(v, kv_num_heads)
    offset = _offset(q, past_key, nonpad_kv_seqlen)
    if past_key is not None:
        k, v = tf.concat([past_key, k], 2), tf.concat([past_value, v], 2)
    mask = Mask(bool(is_causal), left_window_size, right_window_size, offset, nonpad_kv_seqlen)
    bias = _bias(q, k, attn_mask, mask)
    products = _products(q, k, scale)
    capped = products
    if softcap:
        bound = tf.constant(softcap, products.dtype)
        capped = tf.tanh(products / bound) * bound
    scores = capped if bias is None else capped + bias
    shares = _shares(scores, bias, softmax_precision)
    shares = tf.cast(shares, q.dtype)
    y = tf.cast(_weighted(shares, v), q.dtype)
    y = merged(y) if is_flat else y
    if output_count < 4:
        return single([y, k, v], output_count)
    seen = (products, capped, scores, shares)[qk_matmul_output_mode]
    return y, k, v, tf.cast(seen, q.dtype)


def by_head(x: tf.Tensor, heads: int | None) -> tf.Tensor:
    """(batch, heads, positions, size)."""
    if rank_of(x) == 4:
        return x
    if heads is None:
        raise ValueError("Attention over three dimensions needs the number of heads")
    batch, count, width = sizes_of(x)
    split = tf.reshape(x, as_shape([batch, count, heads, width // heads]))
    return tf.transpose(split, [0, 2, 1, 3])


def merged(x: tf.Tensor) -> tf.Tensor:
    """(batch, heads, positions, size) as (batch, positions, heads * size)."""
    batch, heads, count, size = sizes_of(x)
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), as_shape([batch, count, heads * size]))


def _offset(q: tf.Tensor, past_key: tf.Tensor | None, lengths: tf.Tensor | None) -> Any:
    """How many keys stand before the first query."""
    if past_key is not None:
        return sizes_of(past_key)[2]
    if lengths is not None:
        return tf.cast(lengths, tf.int64) - sizes_of(q)[2]
    return 0


def _bias(q: tf.Tensor, k: tf.Tensor, attn_mask: tf.Tensor | None, mask: Mask) -> tf.Tensor | None:
    """What is added to the products; minus infinity where a key is hidden."""
    queries, keys = tf.cast(sizes_of(q)[2], tf.int64), tf.cast(sizes_of(k)[2], tf.int64)
    allowed = mask.allowed(queries, keys)
    low = tf.constant(float("-inf"), q.dtype)
    nothing = tf.zeros([], q.dtype)
    bias = None if allowed is None else tf.where(allowed, nothing, low)
    if attn_mask is None:
        return bias
    if attn_mask.dtype == tf.bool:
        attn_mask = tf.where(attn_mask, nothing, low)
    attn_mask = tf.cast(attn_mask, q.dtype)
    if attn_mask.shape[-1] is None or attn_mask.shape[-1] != k.shape[2]:
        # A shorter mask hides the keys beyond it.
        missing = keys - tf.shape(attn_mask, out_type=tf.int64)[-1]
        rows = tf.zeros([rank_of(attn_mask) - 1, 2], tf.int64)
        last = tf.stack([tf.zeros([], tf.int64), tf.maximum(missing, 0)])[None]
        attn_mask = tf.pad(attn_mask, tf.concat([rows, last], 0), constant_values=low)
    return attn_mask if bias is None else bias + attn_mask


def _products(q: tf.Tensor, k: tf.Tensor, scale: float | None) -> tf.Tensor:
    """Scaled products (batch, heads, queries, keys); both sides get the root of the scale."""
    if scale is None:
        size = sizes_of(q)[3]
        factor: Any = tf.cast(size, tf.float32) ** -0.25 if tf.is_tensor(size) else size**-0.25
    else:
        factor = scale**0.5
    factor = tf.cast(factor, q.dtype)
    return grouped_product(q * factor, k * factor, transpose=True)


def _weighted(shares: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    return grouped_product(shares, tf.cast(v, shares.dtype), transpose=False)


def grouped_product(a: tf.Tensor, b: tf.Tensor, transpose: bool) -> tf.Tensor:
    """Products by head, where each head of `b` serves one or several consecutive heads of `a`.

    Halves are added up in float32.
    """
    dtype = a.dtype
    if dtype in _HALVES:
        a, b = tf.cast(a, tf.float32), tf.cast(b, tf.float32)
    batch, heads, rows, depth = sizes_of(a)
    shared = sizes_of(b)[1]
    if tf.is_tensor(heads) or tf.is_tensor(shared):
        b = tf.repeat(b, heads // shared, axis=1)
    if tf.is_tensor(heads) or tf.is_tensor(shared) or heads == shared:
        return tf.cast(tf.matmul(a, b, transpose_b=transpose), dtype)
    stacked = tf.reshape(a, as_shape([batch, shared, heads // shared * rows, depth]))
    y = tf.matmul(stacked, b, transpose_b=transpose)
    return tf.cast(tf.reshape(y, as_shape([batch, heads, rows, sizes_of(y)[3]])), dtype)


def _shares(scores: tf.Tensor, bias: tf.Tensor | None, precision: tf.DType | None) -> tf.Tensor:
    """The softmax over keys; a query without any key gets zeros, not NaN."""
    wide = scores if precision is None else tf.cast(scores, precision)
    if wide.dtype in _HALVES:
        # Step by step as the reference: each one rounded, the sum in float32.
        top = tf.reduce_max(wide, -1, keepdims=True)
        top = tf.where(tf.math.is_inf(top), tf.zeros_like(top), top)
        powers = tf.exp(wide - top)
        total = tf.reduce_sum(tf.cast(powers, tf.float32), -1, keepdims=True)
        shares = powers / tf.cast(tf.where(tf.equal(total, 0), 1.0, total), wide.dtype)
    else:
        shares = tf.nn.softmax(wide)
    if bias is None:
        return shares
    top = tf.reduce_max(bias, -1, keepdims=True)
    hidden = tf.equal(top, tf.constant(float("-inf"), bias.dtype))
    return tf.where(hidden, tf.zeros_like(shares), shares)


def rotary_embedding(
    x: tf.Tensor,
    cos_cache: tf.Tensor,
    sin_cache: tf.Tensor,
    position_ids: tf.Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> tf.Tensor:
    """ONNX RotaryEmbedding.

    Args:
        x: (batch, heads, positions, size), or (batch, positions, heads * size).
        cos_cache: (batch, positions, half the rotated size); with `position_ids` a table
            (positions, half the rotated size).
        sin_cache: likewise.
        position_ids: (batch, positions).
        interleaved: whether pairs are neighbours, not the two halves.
        num_heads: heads in `x` of three dimensions.
        rotary_embedding_dim: how much of the size is rotated; 0 for all.
    """
    heads = x
    if rank_of(x) == 3:
        batch, count, width = sizes_of(x)
        heads = tf.reshape(x, as_shape([batch, count, num_heads, width // (num_heads or 1)]))
    else:
        heads = tf.transpose(x, [0, 2, 1, 3])
    if position_ids is not None:
        cos_cache = tf.gather(cos_cache, position_ids)
        sin_cache = tf.gather(sin_cache, position_ids)
    cos, sin = cos_cache[:, :, None, :], sin_cache[:, :, None, :]
    y = rotated(heads, cos, sin, bool(interleaved), rotary_embedding_dim)
    if rank_of(x) == 3:
        return tf.reshape(y, as_shape(sizes_of(x)))
    return tf.transpose(y, [0, 2, 1, 3])


def rotated(
    x: tf.Tensor, cos: tf.Tensor, sin: tf.Tensor, interleaved: bool, size: int
) -> tf.Tensor:
    """Pairs along the last axis turned by angles; `size` elements are, 0 for all."""
    turned, rest = (x, None) if not size else (x[..., :size], x[..., size:])
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = tf.split(turned, 2, -1)
    real = cos * first - sin * second
    imaginary = sin * first + cos * second
    if interleaved:
        y = tf.stack([real, imaginary], -1)
        y = tf.reshape(y, as_shape([*sizes_of(y)[:-2], sizes_of(real)[-1] * 2]))
    else:
        y = tf.concat([real, imaginary], -1)
    return y if rest is None else tf.concat([y, rest], -1)


OPERATORS = {"Attention": attention, "RotaryEmbedding": rotary_embedding}
