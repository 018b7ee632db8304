"""Q3_K and Q6_K: blocks of 256 in 16 sub-blocks of 16, each with a scale of either sign.

Value = d * scale * level. d is a half; scales are integers of 6 (Q3_K) or 8 bits, levels of 3 or 6
bits. Where a rounded scale is 0, the levels of the search remain.

Source: ggml, `src/ggml-common.h` (`block_q3_K`, `block_q6_K`) and `src/ggml-quants.c`
(`quantize_row_q3_K_ref`, `quantize_row_q3_K_impl`, and the same of Q6_K).
"""

from __future__ import annotations

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
from convkit.ggml.kernels.half import from_half, to_half
from convkit.ggml.kernels.machine import Arguments
from convkit.ggml.kernels.searches import ZERO_BELOW, refined_signed_scale, signed_scale
from convkit.ggml.kernels.values import LANES, Floats, Ints, where

_SUBS, _SUB_LENGTH = 16, 16


class _SubBlocks:
    """What is known of the sub-blocks of 16 blocks; of each kind, a vector for each sub-block."""

    def __init__(self, body: Body, top: int) -> None:
        self._body, self._top = body, top
        self.scales = body.float_room(_SUBS)
        self.factors = body.float_room(_SUBS)
        self._steps = body.float_room(_SUBS)

    def keep(self, d: Ints, scales: list[Ints]) -> None:
        """Keeps what was rounded, for `levels`."""
        for sub, scale in enumerate(scales):
            self._steps[sub] = from_half(d) * scale.as_floats()

    def levels(self, block: OneBlock, first: int, searched: Tile[Floats] | None = None) -> Ints:
        """The levels, from 0, of 16 elements of one block from number `first`.

        Args:
            block: one of the 16.
            first: of the elements.
            searched: the search's levels, where no factor tells them.
        """
        sub, lane, x = first // _SUB_LENGTH, block.lane, block.values.vector(first)
        level = Variable(self._from_zero((x / self._steps.spread(sub, lane)).nearest()))
        with self._body.when(self._steps.is_zero(sub, lane)):
            if searched is None:
                factor = self.factors.spread(sub, lane)
                level.value = self._from_zero((factor * x).nearest())
                with self._body.when(self.factors.is_zero(sub, lane)):
                    level.value = self._body.ints(0)
            else:
                level.value = searched.column(first, lane).nearest()
        return level.value

    def _from_zero(self, level: Ints) -> Ints:
        return level.clipped(-self._top, self._top - 1) + self._top


def q6_k(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: 128 bytes of lower bits, 64 of upper bits, 16 scales, d."""
    subs = _SubBlocks(body, 32)
    weights = body.float_room(_SUB_LENGTH)

    def settle(lanes: Lanes) -> Heads:
        with body.loop(0, _SUBS) as each:
            first = each * _SUB_LENGTH
            if is_important:
                lanes.turn_importance(first, weights, _SUB_LENGTH)
            else:
                lanes.weigh_by_square(first, weights, _SUB_LENGTH)
            found = signed_scale(body, lanes.tile.rows_from(first), weights, _SUB_LENGTH, 32)
            subs.scales[each], subs.factors[each] = found.scale, found.factor
        size, largest = largest_of(body, subs.scales, _SUBS)
        is_zero = size < ZERO_BELOW
        factor = body.floats(-128) / largest
        d = where(is_zero, 0, to_half(1 / factor))
        scales = []
        for sub in range(_SUBS):
            scale = (factor * subs.scales[sub]).nearest().at_most(127)
            scales.append(where(is_zero, 0, scale))
            subs.factors[sub] = where(is_zero, 0, subs.factors[sub])
        subs.keep(d, scales)
        return {192: scales, 208: half_bytes(d)}

    def write(block: OneBlock) -> None:
        for half in range(2):
            for i in range(0, 32, LANES):
                quarters = [subs.levels(block, half * 128 + k * 32 + i) for k in range(4)]
                upper = body.ints(0)
                for k, level in enumerate(quarters):
                    upper |= (level >> 4) << (2 * k)
                for k in range(2):
                    lower = (quarters[k] & 15) | ((quarters[k + 2] & 15) << 4)
                    block.out.write(half * 64 + k * 32 + i, lower)
                block.out.write(128 + half * 32 + i, upper)

    quantize_blocks(body, arguments, LENGTH, 210, settle, write)


def q3_k(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: 32 bytes of third bits, 64 of lower bits, 12 bytes of scales, d."""
    subs = _SubBlocks(body, 4)
    searched = None if is_important else body.float_room(LENGTH)

    def settle(lanes: Lanes) -> Heads:
        if searched is None:
            d, scales = _important_q3_k_scales(body, lanes, subs)
        else:
            d, scales = _q3_k_scales(body, lanes, subs, searched)
        subs.keep(d, [scale - 32 for scale in scales])
        low = [scales[i] & 15 | ((scales[i + 8] & 15) << 4) for i in range(8)]
        high = [
            (scales[i] >> 4) | ((scales[i + 4] >> 4) << 2) | ((scales[i + 8] >> 4) << 4)
            | ((scales[i + 12] >> 4) << 6)
            for i in range(4)
        ]  # fmt: skip
        return {96: [*low, *high, *half_bytes(d)]}

    def write(block: OneBlock) -> None:
        for i in range(0, 32, LANES):
            third = body.ints(0)
            for half in range(2):
                packed = body.ints(0)
                for quarter in range(4):
                    level = subs.levels(block, half * 128 + quarter * 32 + i, searched)
                    packed |= (level & 3) << (2 * quarter)
                    third |= (level >> 2) << (half * 4 + quarter)
                block.out.write(32 + half * 32 + i, packed)
            block.out.write(i, third)

    quantize_blocks(body, arguments, LENGTH, 110, settle, write)


def _q3_k_scales(
    body: Body, lanes: Lanes, subs: _SubBlocks, searched: Tile[Floats]
) -> tuple[Ints, list[Ints]]:
    """d, and scales plus 32; the levels that were found go to `searched`."""
    with body.loop(0, _SUBS) as sub:
        first = sub * _SUB_LENGTH
        subs.scales[sub] = refined_signed_scale(
            body, lanes.tile.rows_from(first), searched.rows_from(first), _SUB_LENGTH, 4
        )
    _, largest = largest_of(body, subs.scales, _SUBS)
    is_zero = largest.equals(0)
    factor = body.floats(-32) / largest
    scales = [(factor * subs.scales[sub]).nearest().clipped(-32, 31) + 32 for sub in range(_SUBS)]
    return where(is_zero, 0, to_half(1 / factor)), [where(is_zero, 0, each) for each in scales]


def _important_q3_k_scales(body: Body, lanes: Lanes, subs: _SubBlocks) -> tuple[Ints, list[Ints]]:
    """d, and scales plus 32, rounded as the sub-blocks weigh."""
    weights, totals = body.float_room(_SUB_LENGTH), body.float_room(_SUBS)
    variance = lanes.square_sum(0, LENGTH) * 2 / LENGTH
    with body.loop(0, _SUBS) as sub:
        first = sub * _SUB_LENGTH
        totals[sub] = lanes.weigh(first, weights, _SUB_LENGTH, variance)
        found = signed_scale(body, lanes.tile.rows_from(first), weights, _SUB_LENGTH, 4)
        subs.scales[sub], subs.factors[sub] = found.scale, found.factor
    found = signed_scale(body, subs.scales, totals, _SUBS, 32, is_finite=False)
    scales = [
        (found.factor * subs.scales[sub]).nearest().clipped(-32, 31) + 32 for sub in range(_SUBS)
    ]
    return to_half(found.scale), [where(found.is_zero, 0, each) for each in scales]
