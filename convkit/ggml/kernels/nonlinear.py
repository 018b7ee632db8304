"""IQ4_NL and IQ4_XS: levels are 16 values that lie denser around zero.

IQ4_NL has blocks of 32 with a half as scale: value = d * VALUES[level]. IQ4_XS has blocks of 256 in
8 sub-blocks of 32: value = d * scale * VALUES[level], scales of 6 bits.

Source: ggml, `src/ggml-common.h` (`block_iq4_nl`, `block_iq4_xs`, `kvalues_iq4nl`) and
`src/ggml-quants.c` (`quantize_row_iq4_nl_impl`).
"""

from __future__ import annotations

from itertools import pairwise

from convkit.ggml.kernels.blocks import (
    LENGTH,
    Heads,
    Lanes,
    OneBlock,
    half_bytes,
    largest_of,
    quantize_blocks,
)
from convkit.ggml.kernels.body import Body, Tile, Variable
from convkit.ggml.kernels.half import to_half
from convkit.ggml.kernels.machine import Arguments
from convkit.ggml.kernels.searches import ZERO_BELOW, largest_element
from convkit.ggml.kernels.values import LANES, Floats, Ints, where
from convkit.ggml.unpacking import NONLINEAR as VALUES

_BOUNDS = tuple((low + high) / 2 for low, high in pairwise(VALUES))
_SUB_LENGTH = 32


def _nearest_value(body: Body, numbers: Floats) -> Floats:
    """The nearest of VALUES, the larger of two as near."""
    nearest = body.floats(VALUES[0])
    for bound, value in zip(_BOUNDS, VALUES[1:], strict=True):
        nearest = where(numbers < bound, nearest, value)
    return nearest


def _nearest_level(body: Body, numbers: Floats) -> Ints:
    """The level of the nearest of VALUES."""
    level = body.ints(len(_BOUNDS))
    for bound in _BOUNDS:
        level = level - where(numbers < bound, body.ints(1), 0)
    return level


def _scale(body: Body, tile: Tile[Floats], weights: Tile[Floats]) -> Floats:
    """The scale of x ~ scale * value; 0 where a block counts as zero."""
    size, largest = largest_element(body, tile, _SUB_LENGTH)
    scale, best = Variable(body.floats(0)), Variable(body.floats(0))

    def attempt(factor: Floats, is_first: bool) -> None:
        product_sum, square_sum = Variable(body.floats(0)), Variable(body.floats(0))
        with body.loop(0, _SUB_LENGTH) as i:
            value = _nearest_value(body, factor * tile[i])
            weighted = weights[i] * value
            product_sum.value += weighted * tile[i]
            square_sum.value += weighted * value
        products, squares = product_sum.value, square_sum.value
        if is_first:
            scale.value = where(squares > 0, products / squares, 0)
            best.value = scale.value * products
        else:
            is_better = (squares > 0) & (products * products > best.value * squares)
            scale.value = where(is_better, products / squares, scale.value)
            best.value = where(is_better, scale.value * products, best.value)

    attempt(1 / (-largest / VALUES[0]), is_first=True)
    with body.loop(0, 15) as i:
        attempt((body.counted(i) - 7 + VALUES[0]) / largest, is_first=False)
    return where(size < ZERO_BELOW, 0, scale.value)


def iq4_xs(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: d, 2 bytes of the scales' upper bits, 4 of lower bits, 128 of levels."""
    subs = LENGTH // _SUB_LENGTH
    scales, factors = body.float_room(subs), body.float_room(subs)
    weights = body.float_room(_SUB_LENGTH)

    def settle(lanes: Lanes) -> Heads:
        variance = lanes.square_sum(0, LENGTH) * (2 / LENGTH)
        with body.loop(0, subs) as each:
            first = each * _SUB_LENGTH
            if is_important:
                lanes.weigh(first, weights, _SUB_LENGTH, variance)
            else:
                lanes.weigh_by_square(first, weights, _SUB_LENGTH)
            scales[each] = _scale(body, lanes.tile.rows_from(first), weights)
        _, largest = largest_of(body, scales, subs)
        d = -largest / 32
        reciprocal = where(d.equals(0), 0, 1 / d)
        rounded = []
        for sub in range(subs):
            scale = (reciprocal * scales[sub]).nearest().clipped(-32, 31)
            step = d * scale.as_floats()
            factors[sub] = where(step.equals(0), 0, 1 / step)
            rounded.append(scale + 32)
        high = [body.ints(0), body.ints(0)]
        for sub, scale in enumerate(rounded):
            high[sub // 4] = high[sub // 4] | ((scale >> 4) << (2 * (sub % 4)))
        low = [(rounded[i] & 15) | ((rounded[i + 1] & 15) << 4) for i in range(0, subs, 2)]
        return {0: [*half_bytes(to_half(d)), *high, *low]}

    def write(block: OneBlock) -> None:
        for sub in range(subs):
            factor, first = factors.spread(sub, block.lane), sub * _SUB_LENGTH
            lower, upper = (
                _nearest_level(body, factor * block.values.vector(first + i)) for i in (0, LANES)
            )
            block.out.write(8 + sub * LANES, lower | (upper << 4))

    quantize_blocks(body, arguments, LENGTH, 136, settle, write)


def iq4_nl(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: d, 16 bytes of levels."""
    weights, factors = body.float_room(_SUB_LENGTH), body.float_room(1)

    def settle(lanes: Lanes) -> Heads:
        if is_important:
            variance = lanes.square_sum(0, _SUB_LENGTH) * (2 / _SUB_LENGTH)
            lanes.weigh(0, weights, _SUB_LENGTH, variance)
        else:
            lanes.weigh_by_square(0, weights, _SUB_LENGTH)
        scale = _scale(body, lanes.tile, weights)
        factors[0] = where(scale.equals(0), 0, 1 / scale)
        return {0: half_bytes(to_half(scale))}

    def write(block: OneBlock) -> None:
        factor = factors.spread(0, block.lane)
        lower, upper = (_nearest_level(body, factor * block.values.vector(i)) for i in (0, LANES))
        block.out.write(2, lower | (upper << 4))

    quantize_blocks(body, arguments, _SUB_LENGTH, 18, settle, write)
