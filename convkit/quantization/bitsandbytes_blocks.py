"""Weights in bitsandbytes' ways: 4-bit codes in blocks, 8-bit integers per row, bit for bit.

Everything works on a few rows at a time, so a weight is never in memory whole.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023 (section 3, appendix
E), and "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022 (section 3.1). The
order of operations is that of bitsandbytes 0.50 (`quantize_4bit`, `int8_vectorwise_quant` of its
default backend; `quantize_blockwise` of the CPU's).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NESTED_BLOCK = 256
"""Scales that share a scale where scales are quantized too."""

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Weights that may share a scale: what bitsandbytes has kernels for."""

_LEAST = np.float32(1e-38)
"""Blocks of zeros are divided by this."""

_STEPS = np.float32(65535)
"""Between -1 and 1, for scales that are quantized too."""

_SMALL = 1 / 64
"""In rows with a larger weight, those below 2^-14 come to less than 127 * 2^-14 * 64 = 0.497.

That is zero, however half precision rounds numbers so small.
"""

_STRIP = 1 << 16
"""Elements that are compared with all bounds while they are in a core's cache."""

CODES: Mapping[str, Array] = {
    "nf4": np.array(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
            -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
            0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ],
        np.float32,
    ),
    "fp4": np.array(
        [0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32
    ) / np.float32(12),
}  # fmt: skip
"""What the sixteen codes stand for, in parts of the largest weight of a block.

`nf4` has as many values of a normal distribution around each; `fp4` is a sign, two bits of exponent
and one of mantissa, the largest being 1.
"""


@functools.cache
def _bounds(kind: str) -> tuple[Array, bytes | None]:
    """Where one code ends and the next begins, ascending; and pairs of ranks as pairs of codes.

    None where codes ascend with what they stand for.
    """
    codes = CODES[kind]
    order = np.argsort(codes, kind="stable")
    ascending = codes[order]
    bounds = (ascending[:-1] + ascending[1:]) / np.float32(2)
    if np.array_equal(order, np.arange(16)):
        return bounds, None
    pairs = np.arange(256)
    return bounds, (order[pairs >> 4] << 4 | order[pairs & 15]).astype(np.uint8).tobytes()


def four_bits(values: Array, kind: str, block_size: int) -> tuple[Array, Array]:
    """Codes and scales of weights.

    Args:
        values: float32 (count,), beginning with a block.
        kind: `nf4` or `fp4`.
        block_size: weights that share a scale, an even number.

    Returns:
        Two codes a byte, the first in the upper half, uint8 (count / 2); the largest magnitude of
        each block, float32 (blocks). These are NaN or infinite where a weight is.
    """
    count = values.size
    whole = count - count % block_size
    blocks = values[:whole].reshape(-1, block_size)
    absmax = np.abs(blocks).max(axis=1, initial=0)
    scaled = np.empty(count + count % 2, np.float32)
    with np.errstate(invalid="ignore"):
        inverse = np.float32(1) / np.maximum(absmax, _LEAST)
        np.multiply(blocks, inverse[:, None], out=scaled[:whole].reshape(-1, block_size))
        if whole < count:  # the last block is divided by its largest, not multiplied
            rest = np.maximum(np.abs(values[whole:]).max(), _LEAST)
            np.divide(values[whole:], rest, out=scaled[whole:count])
            absmax = np.append(absmax, rest)
    scaled[count:] = 0
    bounds, pairs = _bounds(kind)
    packed = _packed(_ranks(scaled, bounds))
    if pairs is not None:
        packed = np.frombuffer(packed.tobytes().translate(pairs), np.uint8)
    return packed, absmax


def _ranks(values: Array, bounds: Array) -> Array:
    """How many of the bounds are below each value: uint8."""
    ranks = np.empty(values.size, np.uint8)
    mask = np.empty(min(_STRIP, values.size), bool)
    for begin in range(0, values.size, _STRIP):
        strip, counted = values[begin : begin + _STRIP], ranks[begin : begin + _STRIP]
        above = mask[: strip.size]
        np.greater(strip, bounds[0], out=counted.view(bool))
        for bound in bounds[1:]:
            np.greater(strip, bound, out=above)
            counted += above.view(np.uint8)
    return ranks


def _packed(codes: Array) -> Array:
    """Two codes a byte, the first in the upper half."""
    words = codes.view("<u2")
    return (words << 4 | words >> 8).astype(np.uint8)


@functools.cache
def dynamic_map() -> Array:
    """What the 256 codes of quantized scales stand for, ascending: float32.

    A sign, then as many zeros as the decimal exponent is below, then a linear fraction.

    Source: Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2015, section 2.2;
    bitsandbytes `create_dynamic_map`, whose fractions are means of neighbours.
    """
    values = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for bits in range(7):
        edges = _evenly(0.1, 1.0, 2**bits + 1)
        means = (edges[:-1] + edges[1:]) / np.float32(2)
        decade = np.float32(10.0 ** (bits - 6)) * means
        values += [decade, -decade]
    return np.sort(np.concatenate(values))


def _evenly(first: float, last: float, count: int) -> Array:
    """Evenly spaced float32, counted from whichever end is nearer and rounded once.

    So does PyTorch's `linspace`, with fused multiplications and additions.
    """
    low, high = np.float32(first), np.float32(last)
    step = np.float64((high - low) / np.float32(count - 1))
    ranks = np.arange(count, dtype=np.float64)
    nearer = np.where(ranks < count // 2, low + step * ranks, high - step * ranks[::-1])
    return np.asarray(nearer, np.float32)


def nested(absmax: Array) -> tuple[Array, Array, float]:
    """Scales quantized in their turn.

    Args:
        absmax: float32 (blocks).

    Returns:
        Codes, uint8 (blocks); the largest of each block of 256, float32; what was subtracted.
    """
    import torch

    # As PyTorch sums, whose rounding depends on its order of addition.
    offset = torch.from_numpy(absmax).mean()
    centred = absmax - np.float32(offset.item())
    count = -(-absmax.size // NESTED_BLOCK)
    padded = np.zeros(count * NESTED_BLOCK, np.float32)
    padded[: absmax.size] = centred
    blocks = padded.reshape(count, NESTED_BLOCK)
    largest = np.abs(blocks).max(axis=1)
    inverse = np.float32(1) / np.where(largest > 0, largest, np.float32(1))
    scaled = np.clip(blocks * inverse[:, None], -1, 1)
    steps = (scaled.reshape(-1) + np.float32(1)) * np.float32(0.5)  # from 0 to 1
    codes = _codes_of_steps()[(_STEPS * steps + np.float32(0.5)).astype(np.uint16)]
    codes.reshape(count, NESTED_BLOCK)[largest <= 0] = 0
    return codes[: absmax.size], largest, float(offset.item())


@functools.cache
def _codes_of_steps() -> Array:
    """The code nearest to each of 65,536 even steps from -1 to 1, the lower of two: uint8.

    To these steps values are rounded first, so next to a bound the farther code may be taken.
    """
    codes = dynamic_map()
    values = np.float32(2) * np.arange(65536, dtype=np.float32) / _STEPS - np.float32(1)
    bounds = (codes[:-1] + codes[1:]) * np.float32(0.5)
    return np.asarray(np.searchsorted(bounds, values), np.uint8)


def eight_bits(rows: Array) -> tuple[Array, Array]:
    """Integers and scales of rows of weights.

    Args:
        rows: float32 (rows, columns).

    Returns:
        Integers, int8 (rows, columns); the largest magnitude of each row, float32 (rows), NaN or
        infinite where a weight is, or is beyond half precision, to which all are rounded first.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        absmax = np.abs(rows).max(axis=1, initial=0).astype(np.float16).astype(np.float32)
        half = _to_eleven_bits(rows)
        is_small = absmax < _SMALL
        if is_small.any():
            half[is_small] = rows[is_small].astype(np.float16)
        half *= (np.float32(1) / absmax * np.float32(127))[:, None]
        half[absmax == 0] = 0
        return np.rint(half, out=half).astype(np.int8), absmax


def _to_eleven_bits(values: Array) -> Array:
    """Values rounded as half precision does it where its numbers are normal: to nearest, even."""
    bits = values.view(np.uint32)
    rounded = bits >> 13
    rounded &= 1
    rounded += 0x0FFF
    rounded += bits
    rounded &= np.uint32(0xFFFFE000)
    return rounded.view(np.float32)
