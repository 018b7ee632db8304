"""Blocks, 16 at a time: brought into a tile, searched, rounded and written.

The 16 blocks are the lanes while scales are searched for and rounded. Then they are gone through
one by one, to find the levels that fit the rounded scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from convkit.ggml.kernels.body import Body, Bytes, Elements, Tile, Variable, gathered, turned
from convkit.ggml.kernels.machine import Arguments
from convkit.ggml.kernels.values import LANES, Floats, Ints, Number, Whole, transposed, where

LENGTH = 256
"""Elements of the larger blocks."""

Heads = Mapping[int, Sequence[Ints]]
"""Place in a block -> at most 16 consecutive bytes, a vector each."""


@dataclass(frozen=True)
class Lanes:
    """16 blocks as lanes.

    Attributes:
        body: what is built.
        tile: their elements.
        importance: from where each block's begins.
        variances: where the mean square of each block's row lies.
    """

    body: Body
    tile: Tile[Floats]
    importance: list[Elements]
    variances: list[Elements]

    def row_variance(self) -> Floats:
        """The mean square of each block's row, as the kernel was given it."""
        return gathered(self.variances)

    def square_sum(self, first: Whole, length: int) -> Floats:
        """The sum of squares of `length` elements."""
        total = Variable(self.body.floats(0))
        with self.body.loop(first, first + length) as i:
            total.value += self.tile[i] * self.tile[i]
        return total.value

    def weigh_by_square(self, first: Whole, weights: Tile[Floats], length: int) -> None:
        """Makes squares the weights."""
        with self.body.loop(0, length) as i:
            weights[i] = self.tile[first + i] * self.tile[first + i]

    def turn_importance(self, first: Whole, weights: Tile[Floats], length: int) -> None:
        """Makes the importance of `length` elements their weights."""
        with self.body.loop(0, length, LANES) as i:
            for k, vector in enumerate(turned(self.importance, first + i)):
                weights[i + k] = vector

    def weigh(self, first: Whole, weights: Tile[Floats], length: int, variance: Floats) -> Floats:
        """Makes importance * sqrt(variance + x^2) the weights, and gives their sum."""
        self.turn_importance(first, weights, length)
        total = Variable(self.body.floats(0))
        with self.body.loop(0, length) as i:
            x = self.tile[first + i]
            weights[i] = weights[i] * (x * x + variance).root()
            total.value += weights[i]
        return total.value


@dataclass(frozen=True)
class OneBlock:
    """One of the 16 blocks.

    Attributes:
        values: its elements.
        lane: its number.
        out: where it is written.
    """

    values: Elements
    lane: Number
    out: Bytes


def quantize_blocks(
    body: Body,
    arguments: Arguments,
    length: int,
    block_bytes: int,
    settle: Callable[[Lanes], Heads],
    write: Callable[[OneBlock], None],
) -> None:
    """Builds a kernel.

    Args:
        body: what is built.
        arguments: the kernel's.
        length: elements of a block.
        block_bytes: bytes of a block.
        settle: finds and rounds scales, and gives the bytes that tell them.
        write: finds the levels of one block and writes them.
    """
    tile = body.float_room(length)
    last = arguments.count - 1
    with body.loop(0, arguments.count, LANES) as first:
        # Lanes beyond the last block hold the last once more.
        numbers = [(first + lane).at_most(last) for lane in range(LANES)]
        blocks = [arguments.values.from_element(number * length) for number in numbers]
        importance = [
            arguments.importance.from_element(number % arguments.row_blocks * length)
            for number in numbers
        ]
        variances = [
            arguments.variances.from_element(number // arguments.row_blocks) for number in numbers
        ]
        with body.loop(0, length, LANES) as i:
            for k, vector in enumerate(turned(blocks, i)):
                tile[i + k] = vector
        heads = {
            place: (_by_block(body, rows), len(rows))
            for place, rows in settle(Lanes(body, tile, importance, variances)).items()
        }
        with body.loop(0, (arguments.count - first).at_most(LANES)) as lane:
            number = first + lane
            out = arguments.out.from_byte(number * block_bytes)
            for place, (head, count) in heads.items():
                out.write(place, head[lane], count)
            write(OneBlock(arguments.values.from_element(number * length), lane, out))


def _by_block(body: Body, rows: Sequence[Ints]) -> Tile[Ints]:
    """A vector of bytes for each block."""
    heads = body.int_room(LANES)
    padded = [*rows, *[rows[-1]] * (LANES - len(rows))]
    for lane, head in enumerate(transposed(padded)):
        heads[lane] = head
    return heads


def half_bytes(half: Ints) -> list[Ints]:
    """The two bytes of a half, the lower first."""
    return [half & 255, half >> 8]


def largest_of(body: Body, numbers: Tile[Floats], count: int) -> tuple[Floats, Floats]:
    """The largest magnitude, and the first number that has it."""
    size, largest = body.floats(0), body.floats(0)
    for i in range(count):
        is_larger = numbers[i].magnitude() > size
        size = where(is_larger, numbers[i].magnitude(), size)
        largest = where(is_larger, numbers[i], largest)
    return size, largest
