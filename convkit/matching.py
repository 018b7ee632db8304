"""Fits the inputs of one model to another: by name, else by order; which sizes both take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convkit.artifact import TensorSpec
from convkit.step import Feeds

Array = np.ndarray[Any, Any]


def lost_dimensions(
    reference: Sequence[TensorSpec], candidate: Sequence[TensorSpec]
) -> tuple[str, ...]:
    """Dynamic dimensions of the reference's inputs that the candidate's specs fix."""
    fixed = {spec.name: spec.shape for spec in candidate}
    lost = []
    for spec in reference:
        shape = fixed.get(spec.name, ())
        if len(shape) == len(spec.shape):
            pairs = zip(spec.shape, shape, strict=True)
            lost += [
                f"{spec.name}.{a}" for a, b in pairs if isinstance(a, str) and isinstance(b, int)
            ]
    return tuple(lost)


def accepts(specs: Sequence[TensorSpec], feeds: Feeds) -> bool:
    """Whether feeds fit the fixed dimensions of specs; names are matched, else order."""
    arrays = list(feeds.values())
    for index, spec in enumerate(specs):
        array = feeds.get(spec.name, arrays[index] if index < len(arrays) else None)
        if array is None or array.ndim != len(spec.shape):
            continue
        pairs = zip(spec.shape, array.shape, strict=True)
        if any(isinstance(size, int) and size != actual for size, actual in pairs):
            return False
    return True


def fit_feeds(feeds: Feeds, source: Sequence[TensorSpec], target: Sequence[TensorSpec]) -> Feeds:
    """Feeds for a model with other input names or dtypes: by name, else by order; values cast."""
    names = [spec.name for spec in target]
    if set(names) <= set(feeds):
        chosen = {name: feeds[name] for name in names}
    else:
        ordered = [feeds[spec.name] for spec in source if spec.name in feeds] or list(
            feeds.values()
        )
        chosen = dict(zip(names, ordered, strict=False))
    dtypes = {spec.name: spec.dtype for spec in target}
    return {name: _cast(array, dtypes[name]) for name, array in chosen.items()}


def _cast(array: Array, dtype: str) -> Array:
    if array.dtype.name == dtype:
        return array
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(dtype)
