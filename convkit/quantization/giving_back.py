"""Chooses the layers that return to float: as cheap a set as keeps a limit, by few measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from convkit.quantization.sensitivity import Sensitivity

Strain = Callable[[frozenset[str]], float]
"""How far off a model is with the layers of these names in float: what it loses, or the like."""

Lost = Callable[[Sequence[Sensitivity]], float]

MOST_SPARED = 10
"""Measurements that are spent on doing without layers again."""


@dataclass(frozen=True)
class Choice:
    """A set of layers, and how far off the model is with it.

    Attributes:
        keep: names of the layers in float.
        strain: with them.
        keeps_limit: whether that is little enough.
    """

    keep: frozenset[str]
    strain: float
    keeps_limit: bool


def chosen(ranking: Sequence[Sensitivity], strain: Strain, limit: float) -> Choice:
    """The cheapest set found that keeps the limit; else the best one seen.

    The ranking's first 1, 2, 4 ... layers are given back until the limit is kept, then the number
    is halved in between, then those of least worth are quantized again, as many as the limit
    allows. Where the ranking by worth leads nowhere, that by noise alone is tried. At least one
    layer stays quantized.

    Args:
        ranking: most worth giving back first.
        strain: measures; it is asked some `2 log2(n) + MOST_SPARED` times.
        limit: of the strain.
    """
    seen: dict[frozenset[str], float] = {}

    def lost(several: Sequence[Sensitivity]) -> float:
        keep = _names(several)
        if keep not in seen:
            seen[keep] = strain(keep)
        return seen[keep]

    for order in (ranking, sorted(ranking, key=lambda each: -each.noise_share)):
        count = _least(order, lost, limit)
        if count is not None:
            keep = _names(_without_needless(order[:count], lost, limit))
            return Choice(keep, seen[keep], True)
    keep = min(seen, key=lambda each: (seen[each], len(each)))
    return Choice(keep, seen[keep], False)


def _least(order: Sequence[Sensitivity], lost: Lost, limit: float) -> int | None:
    """How many of the first suffice; None where all but one do not."""
    if lost(()) <= limit:
        return 0
    low, high, most = 0, 1, len(order) - 1
    while high < most and lost(order[:high]) > limit:
        low, high = high, min(2 * high, most)
    if most < 1 or lost(order[:high]) > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if lost(order[:middle]) <= limit else (middle, high)
    return high


def _without_needless(
    kept: Sequence[Sensitivity], lost: Lost, limit: float
) -> Sequence[Sensitivity]:
    """The same set without what it can do without: most price for least noise goes first."""
    order = sorted(kept, key=lambda each: each.worth)
    size, begin = max(1, len(order) // 2), 0
    for _ in range(MOST_SPARED):
        if begin >= len(order):
            break
        tried = order[begin : begin + size]
        rest = [each for each in kept if each not in tried]
        if lost(rest) <= limit:
            kept = rest
            order = order[:begin] + order[begin + size :]
        elif size > 1:
            size = (size + 1) // 2
        else:
            begin += 1
    return kept


def _names(several: Sequence[Sensitivity]) -> frozenset[str]:
    return frozenset(name for each in several for name in each.names)
