"""Importance matrices: how large the inputs of each weight are, so that errors there weigh more.

Quantization minimises the error of outputs when it weighs each column of a weight with the mean
square of what enters it. Weights are named as in GGUF files.

Source: llama.cpp, `tools/imatrix/README.md` and `tools/quantize/quantize.cpp` (`load_imatrix`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convkit.errors import SamplesError
from convkit.ggml.mixture_rules import Role, role_of

Floats = NDArray[np.float32]


class SquaredInputs:
    """Sums of the squared inputs of one weight, and over how many inputs they run.

    A dense weight has one count; stacked experts have one each, as each sees inputs of its own.

    Args:
        sums: (counts, columns); any floats, kept in float32.
        counts: (counts,).

    Raises:
        ValueError: the shapes do not go together.
    """

    def __init__(self, sums: NDArray[Any], counts: NDArray[Any] | Sequence[float]) -> None:
        self.sums: Floats = np.asarray(sums, np.float32)
        self.counts: Floats = np.asarray(counts, np.float32)
        if self.sums.ndim != 2 or self.counts.shape != self.sums.shape[:1]:
            raise ValueError(f"sums {self.sums.shape} and counts {self.counts.shape}")

    @classmethod
    def stacked(cls, parts: Sequence[SquaredInputs]) -> SquaredInputs:
        """The inputs of stacked experts out of those of each."""
        return cls(
            np.concatenate([part.sums for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )

    @property
    def means(self) -> Floats:
        """Mean squares (counts, columns); ones for an expert that never had an input."""
        counts = self.counts[:, None]
        has_inputs = counts > 0
        means = np.divide(self.sums, counts, out=np.ones_like(self.sums), where=has_inputs)
        return means


@dataclass(frozen=True)
class Importance:
    """Importance data of a model. `name in importance` says whether a weight has some.

    Attributes:
        entries: name of a weight -> its inputs.
        datasets: the texts they come from.
        chunk_count: pieces of text that went through the model.
        chunk_size: tokens of a piece; counts are in tokens. 1 where counts are in pieces.
    """

    entries: Mapping[str, SquaredInputs] = field(default_factory=dict)
    datasets: Sequence[str] = ()
    chunk_count: int = 0
    chunk_size: int = 1

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def weights_of(self, name: str, shape: Sequence[int]) -> Floats | None:
        """What each column of a tensor weighs: float32 (matrices, columns).

        Args:
            name: of the tensor.
            shape: row-major: (rows, columns), or (matrices, rows, columns).

        Returns:
            None where there are no data, or data of another vocabulary for the embeddings.

        Raises:
            SamplesError: the data are of another model.
        """
        if name not in self.entries:
            return None
        matrices = shape[-3] if len(shape) > 2 else 1
        means = self.entries[name].means
        if means.size == matrices * shape[-1]:
            return means.reshape(matrices, shape[-1])
        if role_of(name) is Role.EMBEDDING:
            return None
        raise SamplesError(
            f"The importance data do not fit the model: '{name}' has {matrices} x {shape[-1]} "
            f"columns, the data have {means.size}.",
            hint="Use data that were collected with this model.",
        )
