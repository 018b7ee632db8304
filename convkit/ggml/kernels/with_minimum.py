"""Q2_K, Q4_K and Q5_K: blocks of 256 in sub-blocks, each with a scale and a minimum.

Value = d * scale * level - dmin * minimum. d and dmin are halves, one each per block; scales and
minima are integers of 4 (Q2_K) or 6 bits, one each per sub-block of 16 (Q2_K) or 32 elements. Where
a rounded scale is 0, the levels of the search remain.

Source: ggml, `src/ggml-common.h` (`block_q2_K`, `block_q4_K`, `block_q5_K`) and `src/ggml-quants.c`
(`quantize_row_q2_K_ref`, `quantize_row_q2_K_impl`, and the same of the others).
"""

from __future__ import annotations

from convkit.ggml.kernels.blocks import (
    LENGTH,
    Heads,
    Lanes,
    OneBlock,
    half_bytes,
    quantize_blocks,
)
from convkit.ggml.kernels.body import Body, Tile, Variable
from convkit.ggml.kernels.half import from_half, to_half
from convkit.ggml.kernels.machine import Arguments
from convkit.ggml.kernels.searches import Candidates, affine_scale, positive_scale
from convkit.ggml.kernels.values import LANES, Floats, Ints, Number, where


class _SubBlocks:
    """What is known of the sub-blocks of 16 blocks; of each kind, a vector for each sub-block."""

    def __init__(self, body: Body, count: int, top: int, is_important: bool) -> None:
        self._body, self._count, self._top, self._is_important = body, count, top, is_important
        self._length = LENGTH // count
        # Of the search: scales, minima negated, what its levels are, what the elements weigh.
        self._scales, self._minima = body.float_room(count), body.float_room(count)
        self._factors, self._offsets = body.float_room(count), body.float_room(count)
        self._weights = body.float_room(count)
        # After rounding: d * scale, dmin * minimum.
        self._steps, self._shifts = body.float_room(count), body.float_room(count)

    def search(self, lanes: Lanes, candidates: Candidates) -> None:
        """Finds scales and minima."""
        length = self._length
        weights, levels = self._body.float_room(length), self._body.float_room(length)
        variance = self._body.floats(0)
        if self._is_important:
            candidates = Candidates(self._top, -0.9, 0.05, 36)
            variance = lanes.square_sum(0, LENGTH) * (1 if length == 16 else 2) / LENGTH
        with self._body.loop(0, self._count) as sub:
            first = sub * length
            if self._is_important:
                self._weights[sub] = lanes.weigh(first, weights, length, variance)
            else:
                self._weigh_alike(lanes, first, weights)
            found = affine_scale(
                self._body, lanes.tile.rows_from(first), weights, levels, length, candidates
            )
            self._scales[sub], self._minima[sub] = found.scale, -found.minimum
            self._factors[sub], self._offsets[sub] = found.factor, found.offset

    def _weigh_alike(self, lanes: Lanes, first: Number, weights: Tile[Floats]) -> None:
        """An element weighs its magnitude, and in sub-blocks of 32 the root mean square more."""
        mean = (lanes.square_sum(first, self._length) / self._length).root()
        with self._body.loop(0, self._length) as i:
            size = lanes.tile[first + i].magnitude()
            weights[i] = size if self._length == 16 else mean + size

    def rounded_scales(self, top: int) -> tuple[Ints, list[Ints]]:
        """d, and bytes that multiply with it to scales."""
        return self._rounded(self._scales, top)

    def rounded_minima(self, top: int) -> tuple[Ints, list[Ints]]:
        """dmin, and bytes that multiply with it to minima."""
        return self._rounded(self._minima, top)

    def _rounded(self, numbers: Tile[Floats], top: int) -> tuple[Ints, list[Ints]]:
        """A search may find a negative scale, for which 0 is no bound: its byte wraps around."""
        if self._is_important:
            levels = self._body.int_room(self._count)
            scale = positive_scale(self._body, numbers, self._weights, levels, self._count, top)
            return to_half(scale), [levels[i] for i in range(self._count)]
        largest = self._body.floats(0)
        for i in range(self._count):
            largest = where(numbers[i] > largest, numbers[i], largest)
        factor = where(largest > 0, self._body.floats(top) / largest, 0)
        near = [(factor * numbers[i]).nearest() & 255 for i in range(self._count)]
        return to_half(largest / top), near

    def keep(self, d: Ints, scales: list[Ints], dmin: Ints, minima: list[Ints]) -> None:
        """Keeps what was rounded, for `levels`."""
        for sub, (scale, minimum) in enumerate(zip(scales, minima, strict=True)):
            self._steps[sub] = from_half(d) * scale.as_floats()
            self._shifts[sub] = from_half(dmin) * minimum.as_floats()

    def levels(self, block: OneBlock, first: int) -> Ints:
        """The levels of 16 elements of one block from number `first`."""
        sub, lane, x = first // self._length, block.lane, block.values.vector(first)
        fitted = (x + self._shifts.spread(sub, lane)) / self._steps.spread(sub, lane)
        level = Variable(fitted.nearest())
        with self._body.when(self._steps.is_zero(sub, lane)):
            factor, offset = self._factors.spread(sub, lane), self._offsets.spread(sub, lane)
            level.value = (factor * (x - offset)).nearest()
        return level.value.clipped(0, self._top)


def _six_bit_head(subs: _SubBlocks, is_limited: bool) -> Heads:
    """d, dmin, and 8 scales and 8 minima of 6 bits in 12 bytes."""
    d, scales = subs.rounded_scales(63)
    dmin, minima = subs.rounded_minima(63)
    if is_limited:
        scales, minima = ([each.at_most(63) for each in those] for those in (scales, minima))
    # The last four's upper two bits lie above the six bits of the first four.
    first = [(scales[i] | ((scales[i + 4] >> 4) << 6)) & 255 for i in range(4)]
    second = [(minima[i] | ((minima[i + 4] >> 4) << 6)) & 255 for i in range(4)]
    third = [(scales[i] & 15) | ((minima[i] & 15) << 4) for i in range(4, 8)]
    # Read back, because a byte that wrapped around spills into another.
    scales = [each & 63 for each in first]
    scales += [(low & 15) | ((high >> 6) << 4) for low, high in zip(third, first, strict=True)]
    minima = [each & 63 for each in second]
    minima += [(low >> 4) | ((high >> 6) << 4) for low, high in zip(third, second, strict=True)]
    subs.keep(d, scales, dmin, minima)
    return {0: [*half_bytes(d), *half_bytes(dmin), *first, *second, *third]}


def q4_k(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: d, dmin, 12 bytes of scales and minima, 128 bytes of levels."""
    subs = _SubBlocks(body, 8, 15, is_important)

    def settle(lanes: Lanes) -> Heads:
        subs.search(lanes, Candidates(15, -1.0, 0.1, 20))
        return _six_bit_head(subs, is_limited=not is_important)

    def write(block: OneBlock) -> None:
        for first in range(0, LENGTH, 64):
            for i in range(0, 32, LANES):
                lower, upper = (subs.levels(block, first + i + side) for side in (0, 32))
                block.out.write(16 + first // 2 + i, lower | (upper << 4))

    quantize_blocks(body, arguments, LENGTH, 144, settle, write)


def q5_k(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: as Q4_K, with 32 bytes of the levels' fifth bits before the others."""
    subs = _SubBlocks(body, 8, 31, is_important)

    def settle(lanes: Lanes) -> Heads:
        subs.search(lanes, Candidates(31, -0.5, 0.1, 15))
        return _six_bit_head(subs, is_limited=True)

    def write(block: OneBlock) -> None:
        for i in range(0, 32, LANES):
            fifth = body.ints(0)
            for pair in range(4):
                first = pair * 64 + i
                lower, upper = subs.levels(block, first), subs.levels(block, first + 32)
                fifth |= ((lower >> 4) | ((upper >> 4) << 1)) << (2 * pair)
                block.out.write(48 + pair * 32 + i, (lower & 15) | ((upper & 15) << 4))
            block.out.write(16 + i, fifth)

    quantize_blocks(body, arguments, LENGTH, 176, settle, write)


def q2_k(body: Body, arguments: Arguments, is_important: bool) -> None:
    """Builds the kernel: 16 bytes of scales and minima, 64 of levels, d, dmin."""
    subs = _SubBlocks(body, 16, 3, is_important)

    def settle(lanes: Lanes) -> Heads:
        subs.search(lanes, Candidates(3, -0.5, 0.1, 15, by_magnitude=True))
        d, scales = subs.rounded_scales(15)
        dmin, minima = subs.rounded_minima(15)
        both = [(low | (high << 4)) & 255 for low, high in zip(scales, minima, strict=True)]
        subs.keep(d, [each & 15 for each in both], dmin, [each >> 4 for each in both])
        return {0: both, 80: [*half_bytes(d), *half_bytes(dmin)]}

    def write(block: OneBlock) -> None:
        for half in range(2):
            for i in range(0, 32, LANES):
                packed = body.ints(0)
                for quarter in range(4):
                    level = subs.levels(block, half * 128 + quarter * 32 + i)
                    packed |= level << (2 * quarter)
                block.out.write(16 + half * 32 + i, packed)

    quantize_blocks(body, arguments, LENGTH, 84, settle, write)
