"""Inputs for models: seeded random by spec, the shape sets that verification uses, files of samples.

Import this module inside functions where start-up matters: it imports numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convkit.artifact import TensorSpec
from convkit.step import Feeds, Sizes

BATCH_NAMES = ("batch", "batch_size", "n")
DEFAULT_SIZES: Mapping[str, int] = {"batch": 2}
_DEFAULT_SIZE = 16
_DEFAULT_IDS = (0, 100)


def draw(
    specs: Sequence[TensorSpec],
    sizes: Sizes,
    seed: int,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Feeds:
    """Seeded arrays for input specs.

    Floats are standard normal, or uniform within their range; integers are uniform in [low, high]
    (0 to 100 without a range); booleans are fair coins.

    Args:
        specs: inputs to draw for.
        sizes: sizes of dynamic dimensions; a batch dimension missing here is 2, others 16.
        seed: the same seed and sizes give the same arrays.
        ranges: input name -> (low, high), both ends included.
    """
    generator = np.random.default_rng(seed)
    ranges = ranges or {}
    return {spec.name: _draw_one(spec, sizes, generator, ranges.get(spec.name)) for spec in specs}


def shape_of(spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """The concrete shape of a spec under these sizes, defaults filled in."""
    return tuple(size if isinstance(size, int) else size_of(size, sizes) for size in spec.shape)


def size_of(name: str, sizes: Sizes) -> int:
    """The size of a dynamic dimension under these sizes: batch 2, anything else 16, unless given."""
    if name in sizes:
        return sizes[name]
    return 2 if is_batch(name) else _DEFAULT_SIZE


def is_batch(name: str) -> bool:
    """Whether the name of a dynamic dimension means the batch."""
    return name.lower() in BATCH_NAMES


def _draw_one(
    spec: TensorSpec,
    sizes: Sizes,
    generator: np.random.Generator,
    limits: tuple[float, float] | None,
) -> np.ndarray[Any, Any]:
    shape = shape_of(spec, sizes)
    if spec.dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if spec.dtype.startswith(("int", "uint")):
        low, high = limits or _DEFAULT_IDS
        return generator.integers(int(low), int(high), shape, endpoint=True).astype(spec.dtype)
    if limits is not None:
        return generator.uniform(*limits, shape).astype(spec.dtype)
    if spec.dtype == "bfloat16":
        import ml_dtypes

        return generator.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
    return generator.standard_normal(shape).astype(spec.dtype)
