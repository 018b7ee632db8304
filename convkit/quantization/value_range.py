"""What the elements of a value lie between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Smallest and largest finite element of a value over all samples.

    Attributes:
        low, high: the smallest and the largest.
        count: elements of the value for the largest sample; 0 where nobody counted.
    """

    low: float
    high: float
    count: int = 0

    @property
    def absmax(self) -> float:
        """Largest magnitude of a finite element."""
        return max(abs(self.low), abs(self.high))

    def joined(self, other: Range) -> Range:
        """The range that holds both."""
        return Range(
            min(self.low, other.low), max(self.high, other.high), max(self.count, other.count)
        )


Ranges = Mapping[str, Range]
"""Value name -> range; a value that was not seen is missing."""
