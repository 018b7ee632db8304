"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 with one scale, and perhaps a minimum.

Value = d * (level - middle) in Q4_0, Q5_0 and Q8_0; d * level + m in Q4_1 and Q5_1. d and m are
halves. Without an importance, the extreme elements give d and m; with one, searches do. Q8_0 knows
no importance.

Source: ggml, `src/ggml-common.h` (`block_q4_0` ...) and `src/ggml-quants.c`
(`quantize_row_q4_0_ref`, `quantize_row_q4_0_impl`, and the same of the others).
"""

from __future__ import annotations

from convkit.ggml.kernels.blocks import Heads, Lanes, OneBlock, half_bytes, quantize_blocks
from convkit.ggml.kernels.body import Body, Bytes, Tile, Variable, turned
from convkit.ggml.kernels.half import to_half
from convkit.ggml.kernels.machine import Arguments
from convkit.ggml.kernels.searches import (
    Candidates,
    affine_scale,
    largest_element,
    signed_scale,
)
from convkit.ggml.kernels.values import LANES, Floats, Ints, where

_LENGTH = 32


def _reciprocal(scale: Floats) -> Floats:
    """1 / scale, 0 for 0."""
    return where(scale.equals(0), 0, 1 / scale)


def _write_levels(out: Bytes, at: int, lower: Ints, upper: Ints, bit_count: int) -> None:
    """Writes the levels of two times 16 elements: fifth bits, if any, then pairs of four."""
    if bit_count == 5:
        out.write_mask(at, (lower & 16).differs(0))
        out.write_mask(at + 2, (upper & 16).differs(0))
        at += 4
    out.write(at, (lower & 15) | ((upper & 15) << 4))


def _signed(
    body: Body, arguments: Arguments, is_important: bool, bit_count: int, block_bytes: int
) -> None:
    middle: int = 2 ** (bit_count - 1)
    factors, weights = body.float_room(1), body.float_room(_LENGTH)

    def settle(lanes: Lanes) -> Heads:
        if is_important:
            lanes.weigh(0, weights, _LENGTH, lanes.row_variance())
            found = signed_scale(body, lanes.tile, weights, _LENGTH, middle)
            factors[0] = found.factor
            return {0: half_bytes(to_half(found.scale))}
        _, largest = largest_element(body, lanes.tile, _LENGTH)
        d = largest / -middle
        factors[0] = _reciprocal(d)
        return {0: half_bytes(to_half(d))}

    def level(block: OneBlock, first: int) -> Ints:
        scaled: Floats = block.values.vector(first) * factors.spread(0, block.lane)
        if not is_important:
            return (scaled + (middle + 0.5)).truncated().at_most(2 * middle - 1)
        found = Variable(scaled.nearest().clipped(-middle, middle - 1) + middle)
        with body.when(factors.is_zero(0, block.lane)):
            found.value = body.ints(0)
        return found.value

    def write(block: OneBlock) -> None:
        _write_levels(block.out, 2, level(block, 0), level(block, LANES), bit_count)

    quantize_blocks(body, arguments, _LENGTH, block_bytes, settle, write)


def _with_minimum(
    body: Body, arguments: Arguments, is_important: bool, bit_count: int, block_bytes: int
) -> None:
    top: int = 2**bit_count - 1
    factors, offsets = body.float_room(1), body.float_room(1)
    weights, levels = body.float_room(_LENGTH), body.float_room(_LENGTH)

    def settle(lanes: Lanes) -> Heads:
        if is_important:
            lanes.weigh(0, weights, _LENGTH, lanes.row_variance())
            candidates = Candidates(top, -0.9, 0.05, 36)
            found = affine_scale(body, lanes.tile, weights, levels, _LENGTH, candidates)
            factors[0], offsets[0] = found.factor, found.offset
            return {0: [*half_bytes(to_half(found.scale)), *half_bytes(to_half(found.minimum))]}
        low, high = _extremes(body, lanes.tile)
        d = (high - low) / top
        factors[0], offsets[0] = _reciprocal(d), low
        return {0: [*half_bytes(to_half(d)), *half_bytes(to_half(low))]}

    def level(block: OneBlock, first: int) -> Ints:
        factor, offset = factors.spread(0, block.lane), offsets.spread(0, block.lane)
        scaled: Floats = (block.values.vector(first) - offset) * factor
        if is_important:
            return scaled.nearest().clipped(0, top)
        return (scaled + 0.5).truncated().at_most(top)

    def write(block: OneBlock) -> None:
        _write_levels(block.out, 4, level(block, 0), level(block, LANES), bit_count)

    quantize_blocks(body, arguments, _LENGTH, block_bytes, settle, write)


def _extremes(body: Body, tile: Tile[Floats]) -> tuple[Floats, Floats]:
    """The smallest and the largest element."""
    low, high = Variable(tile[0]), Variable(tile[0])
    with body.loop(1, _LENGTH) as i:
        low.value = where(tile[i] < low.value, tile[i], low.value)
        high.value = where(tile[i] > high.value, tile[i], high.value)
    return low.value, high.value


def mean_squares(body: Body, arguments: Arguments) -> None:
    """Builds the kernel that writes the mean square of each row, added up from first to last.

    Rows are its blocks, their length is `row_blocks`, and as many of 16 as it takes are written.
    """
    length, last = arguments.row_blocks, arguments.count - 1
    with body.loop(0, arguments.count, LANES) as first:
        rows = [
            arguments.values.from_element((first + lane).at_most(last) * length)
            for lane in range(LANES)
        ]
        total = Variable(body.floats(0))
        with body.loop(0, length, LANES) as i:
            for x in turned(rows, i):
                total.value += x * x
        arguments.variances.write(first, total.value / body.counted(length))


def q4_0(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: d, 16 bytes of levels."""
    _signed(body, arguments, is_important, 4, 18)


def q5_0(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: d, 4 bytes of the levels' fifth bits, 16 of the others."""
    _signed(body, arguments, is_important, 5, 22)


def q4_1(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: d, m, 16 bytes of levels."""
    _with_minimum(body, arguments, is_important, 4, 20)


def q5_1(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: d, m, 4 bytes of the levels' fifth bits, 16 of the others."""
    _with_minimum(body, arguments, is_important, 5, 24)


def q8_0(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: d, 32 levels."""
    factors = body.float_room(1)

    def settle(lanes: Lanes) -> Heads:
        size, _ = largest_element(body, lanes.tile, _LENGTH)
        d = size / 127
        factors[0] = _reciprocal(d)
        return {0: half_bytes(to_half(d))}

    def write(block: OneBlock) -> None:
        for i in range(0, _LENGTH, LANES):
            scaled = block.values.vector(i) * factors.spread(0, block.lane)
            block.out.write(2 + i, scaled.nearest_away())

    quantize_blocks(body, arguments, _LENGTH, 34, settle, write)
