"""Signal and noise of one output over all samples together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from convkit.metrics import Array

_BLOCK = 1 << 20


@dataclass
class Pool:
    """Energies of a reference, of a candidate, of their product and of their difference.

    Quantization noise is much alike from sample to sample and the signal is not, so the ratio of a
    single sample says more of the sample than of the model.
    """

    reference: float = 0.0
    candidate: float = 0.0
    product: float = 0.0
    noise: float = 0.0

    def add(self, reference: Array, candidate: Array) -> None:
        """Takes in one sample: arrays of one shape, all finite."""
        r, c = reference.reshape(-1), candidate.reshape(-1)
        for start in range(0, r.size, _BLOCK):
            a, b = (array[start : start + _BLOCK].astype(np.float64) for array in (r, c))
            self.reference += float(a @ a)
            self.candidate += float(b @ b)
            self.product += float(a @ b)
            self.noise += float((a - b) @ (a - b))

    @property
    def sqnr_db(self) -> float:
        """As `metrics.sqnr_db` of all samples joined."""
        if self.noise == 0.0:
            return math.inf
        return 10 * math.log10(self.reference / self.noise) if self.reference > 0 else -math.inf

    @property
    def cosine(self) -> float:
        """As `metrics.cosine` of all samples joined."""
        norms = math.sqrt(self.reference) * math.sqrt(self.candidate)
        if norms == 0.0:
            return 1.0 if self.reference == self.candidate == 0.0 else 0.0
        return min(1.0, max(-1.0, self.product / norms))
