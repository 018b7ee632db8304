"""ggml's searches for the scale of a block, for 16 blocks at a time.

Each goes through candidate scales and fits levels to each, with the same order of operations as in
ggml, so that the same candidate wins. Blocks lie in tiles: a tile's i-th vector holds the i-th
element of each block.

Source: ggml, `src/ggml-quants.c` (`make_qkx2_quants`, `make_qkx3_quants`, `make_qx_quants`,
`make_qp_quants`, `make_q3_quants`).
"""

from __future__ import annotations

from dataclasses import dataclass

from convkit.ggml.kernels.body import Body, Tile, Variable
from convkit.ggml.kernels.values import Floats, Ints, Mask, where

ZERO_BELOW = 1e-15
"""A block of nothing larger counts as zero."""


@dataclass(frozen=True)
class Candidates:
    """Candidates for 1 / scale: (top + start + i * step) / range for i = 0 ... tries.

    Attributes:
        top: the highest level.
        start: the first candidate's distance from `top`.
        step: between candidates.
        tries: candidates after the first.
        by_magnitude: errors are summed by magnitude, not squared.
    """

    top: int
    start: float
    step: float
    tries: int
    by_magnitude: bool = False

    def penalty(self, difference: Floats) -> Floats:
        """What a difference counts."""
        return difference.magnitude() if self.by_magnitude else difference * difference


@dataclass(frozen=True)
class Affine:
    """x ~ scale * level + minimum, and the levels: nearest(factor * (x - offset))."""

    scale: Floats
    minimum: Floats
    factor: Floats
    offset: Floats


def affine_scale(
    body: Body, tile: Tile[Floats], weights: Tile[Floats], levels: Tile[Floats], length: int,
    candidates: Candidates,
) -> Affine:  # fmt: skip
    """Scale and minimum, which is at most 0; levels are 0 to `candidates.top`.

    The range is from the best minimum so far to the largest element: that each success moves the
    candidates after it is part of the result. Where all elements are equal and not positive, scale
    and factor are 0.

    Args:
        body: what is built.
        tile: the blocks.
        weights: of their elements.
        levels: room for as many vectors.
        length: elements of a block.
        candidates: the scales to try.
    """
    top = candidates.top
    x = tile[0]
    low, high = Variable(x), Variable(x)
    weight_sum, x_sum = Variable(weights[0]), Variable(weights[0] * x)
    with body.loop(1, length) as i:
        x = tile[i]
        low.value = where(x < low.value, x, low.value)
        high.value = where(x > high.value, x, high.value)
        weight_sum.value += weights[i]
        x_sum.value += weights[i] * x
    largest = high.value
    smallest = where(low.value > 0, 0, low.value)
    is_flat = largest.equals(smallest)
    factor = body.floats(top) / (largest - smallest)
    scale, minimum = Variable(1 / factor), Variable(smallest)
    best_factor, offset = Variable(factor), Variable(smallest)
    least = Variable(body.floats(0))
    with body.loop(0, length) as i:
        level = (factor * (tile[i] - smallest)).nearest().clipped(0, top).as_floats()
        difference = scale.value * level + smallest - tile[i]
        least.value += weights[i] * candidates.penalty(difference)
    with body.loop(0, candidates.tries + 1) as attempt:
        low_now = minimum.value
        shift = body.counted(attempt) * candidates.step + candidates.start
        factor = (shift + top) / (largest - low_now)
        level_sum, square_sum, product_sum = (Variable(body.floats(0)) for _ in range(3))
        with body.loop(0, length) as i:
            level = (factor * (tile[i] - low_now)).nearest().clipped(0, top).as_floats()
            levels[i] = level
            weighted = weights[i] * level
            level_sum.value += weighted
            square_sum.value += weighted * level
            product_sum.value += weighted * tile[i]
        firsts, squares, products = level_sum.value, square_sum.value, product_sum.value
        determinant = weight_sum.value * squares - firsts * firsts
        new_scale = (weight_sum.value * products - x_sum.value * firsts) / determinant
        new_minimum = (squares * x_sum.value - firsts * products) / determinant
        is_positive = new_minimum > 0
        new_minimum = where(is_positive, 0, new_minimum)
        new_scale = where(is_positive, products / squares, new_scale)
        error = Variable(body.floats(0))
        with body.loop(0, length) as i:
            difference = new_scale * levels[i] + new_minimum - tile[i]
            error.value += weights[i] * candidates.penalty(difference)
        is_better = (determinant > 0) & (error.value < least.value)
        least.value = where(is_better, error.value, least.value)
        scale.value = where(is_better, new_scale, scale.value)
        minimum.value = where(is_better, new_minimum, low_now)
        best_factor.value = where(is_better, factor, best_factor.value)
        offset.value = where(is_better, low_now, offset.value)
    return Affine(
        where(is_flat, 0, scale.value),
        where(is_flat, smallest, minimum.value),
        where(is_flat, 0, best_factor.value),
        where(is_flat, smallest, offset.value),
    )


@dataclass(frozen=True)
class Signed:
    """x ~ scale * level; levels are nearest(factor * x). Both are 0 in blocks that count as 0."""

    scale: Floats
    factor: Floats
    is_zero: Mask


def largest_element(body: Body, tile: Tile[Floats], length: int) -> tuple[Floats, Floats]:
    """The largest magnitude, and the first element that has it."""
    size, largest = Variable(body.floats(0)), Variable(body.floats(0))
    with body.loop(0, length) as i:
        is_larger = tile[i].magnitude() > size.value
        size.value = where(is_larger, tile[i].magnitude(), size.value)
        largest.value = where(is_larger, tile[i], largest.value)
    return size.value, largest.value


def signed_scale(
    body: Body, tile: Tile[Floats], weights: Tile[Floats], length: int, top: int,
    *, is_finite: bool = True,
) -> Signed:  # fmt: skip
    """A scale for levels from -top to top - 1; the largest element comes near level -top.

    Args:
        body: what is built.
        tile: the blocks.
        weights: of their elements.
        length: elements of a block.
        top: the lowest level's magnitude.
        is_finite: no element is infinite or NaN.
    """
    size, largest = largest_element(body, tile, length)
    scale, best, best_factor = (Variable(body.floats(0)) for _ in range(3))

    def attempt(shift: Floats, is_first: bool) -> None:
        factor = -(shift * 0.1 + top) / largest
        product_sum, square_sum = Variable(body.floats(0)), Variable(body.floats(0))
        with body.loop(0, length) as i:
            if is_finite:  # then factor * x is at most top + 0.9
                level = (factor * tile[i]).rounded().clipped(-top, top - 1)
            else:
                level = (factor * tile[i]).nearest().clipped(-top, top - 1).as_floats()
            product_sum.value += weights[i] * tile[i] * level
            square_sum.value += weights[i] * level * level
        products, squares = product_sum.value, square_sum.value
        fitted = products / squares
        if is_first:
            scale.value = where(squares.equals(0), 0, fitted)
            best.value, best_factor.value = scale.value * products, factor
        else:
            is_better = (squares > 0) & (products * products > best.value * squares)
            scale.value = where(is_better, fitted, scale.value)
            best.value = where(is_better, fitted * products, best.value)
            best_factor.value = where(is_better, factor, best_factor.value)

    attempt(body.floats(0), is_first=True)
    with body.loop(0, 18) as i:  # from -0.9 to 0.9 without 0
        shift = body.counted(i) - 9
        attempt(where(shift < 0, shift, shift + 1), is_first=False)
    is_zero = size < ZERO_BELOW
    return Signed(where(is_zero, 0, scale.value), where(is_zero, 0, best_factor.value), is_zero)


def positive_scale(
    body: Body, tile: Tile[Floats], weights: Tile[Floats], levels: Tile[Ints], length: int, top: int
) -> Floats:
    """A scale for levels from 0 to `top` of numbers that are not negative.

    Scales are tried first; then levels change one by one while the fit improves. As in ggml a level
    is a byte: what is negative after all wraps around.

    Args:
        body: what is built.
        tile: the numbers.
        weights: theirs.
        levels: where to write their levels.
        length: how many numbers.
        top: the highest level.

    Returns:
        The scale; 0 where all numbers count as zero.
    """
    size = body.floats(0)
    for i in range(length):
        size = where(size > tile[i], size, tile[i])
    best_factor = Variable(body.floats(top) / size)
    scale = 1 / best_factor.value
    least = Variable(body.floats(0))
    for i in range(length):
        level = (best_factor.value * tile[i]).nearest() & 255
        difference = tile[i] - scale * level.as_floats()
        least.value += weights[i] * difference * difference
    with body.loop(0, 8) as attempt:  # from -0.4 to 0.4 without 0
        shift = body.counted(attempt) - 4
        factor = (where(shift < 0, shift, shift + 1) * 0.1 + top) / size
        scale = 1 / factor
        error = body.floats(0)
        for i in range(length):
            level = (factor * tile[i]).nearest().at_most(top)
            difference = tile[i] - scale * level.as_floats()
            error = error + weights[i] * difference * difference
        is_better = error < least.value
        least.value = where(is_better, error, least.value)
        best_factor.value = where(is_better, factor, best_factor.value)
    product_sum, square_sum = Variable(body.floats(0)), Variable(body.floats(0))
    for i in range(length):
        level = (best_factor.value * tile[i]).nearest().at_most(top)
        levels[i] = level & 255
        number = level.as_floats()
        product_sum.value += weights[i] * tile[i] * number
        square_sum.value += weights[i] * number * number
    with body.loop(0, 5), body.loop(0, length) as k:
        x, weight, old = tile[k], weights[k], levels[k]
        number = old.as_floats()
        products = product_sum.value - weight * x * number
        squares = square_sum.value - weight * number * number
        new = (x * squares / products).nearest().at_most(top)
        is_usable = (products > 0) & (squares > 0) & new.differs(old)
        number = new.as_floats()
        products = products + weight * x * number
        squares = squares + weight * number * number
        is_better = is_usable & _fits_better(products, squares, product_sum, square_sum)
        levels[k] = where(is_better, new & 255, old)
        product_sum.value = where(is_better, products, product_sum.value)
        square_sum.value = where(is_better, squares, square_sum.value)
    is_zero = size < ZERO_BELOW
    for i in range(length):
        levels[i] = where(is_zero, 0, levels[i])
    scale = where(square_sum.value > 0, product_sum.value / square_sum.value, 0)
    return where(is_zero, 0, scale)


def _fits_better(
    products: Floats, squares: Floats, product_sum: Variable[Floats], square_sum: Variable[Floats]
) -> Mask:
    former = product_sum.value
    return products * products * square_sum.value > former * former * squares


def refined_signed_scale(
    body: Body, tile: Tile[Floats], levels: Tile[Floats], length: int, top: int
) -> Floats:
    """A scale for levels from -top to top - 1, elements weighted with their squares.

    Levels change one by one while the fit improves.

    Args:
        body: what is built.
        tile: the blocks.
        levels: where to write their levels, plus `top`; 0 where a block counts as zero.
        length: elements of a block.
        top: the lowest level's magnitude.

    Returns:
        The scale; 0 where a block counts as zero.
    """
    size, largest = largest_element(body, tile, length)
    factor = body.floats(-top) / largest
    product_sum, square_sum = Variable(body.floats(0)), Variable(body.floats(0))
    with body.loop(0, length) as i:
        level = (factor * tile[i]).rounded().clipped(-top, top - 1)
        levels[i] = level
        weight = tile[i] * tile[i]
        product_sum.value += weight * tile[i] * level
        square_sum.value += weight * level * level
    with body.loop(0, 5), body.loop(0, length) as i:
        x, weight, old = tile[i], tile[i] * tile[i], levels[i]
        products = product_sum.value - weight * x * old
        squares = square_sum.value - weight * old * old
        new = (x * squares / products).nearest().clipped(-top, top - 1).as_floats()
        is_usable = (products > 0) & ((new < old) | (new > old))
        products = products + weight * x * new
        squares = squares + weight * new * new
        is_better = _fits_better(products, squares, product_sum, square_sum)
        is_better = is_better & is_usable & (squares > 0)
        levels[i] = where(is_better, new, old)
        product_sum.value = where(is_better, products, product_sum.value)
        square_sum.value = where(is_better, squares, square_sum.value)
    is_zero = size < ZERO_BELOW
    with body.loop(0, length) as i:
        levels[i] = where(is_zero, 0, levels[i] + top)
    scale = where(square_sum.value > 0, product_sum.value / square_sum.value, 0)
    return where(is_zero, 0, scale)
