"""Rows that are hard to quantize alike, and importances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SCHEME_TYPES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS",
)  # fmt: skip


def rows(length: int, count: int, seed: int) -> Iterator[tuple[str, Array]]:
    """Name -> finite float32 (count, length), length a multiple of 16."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal((count, length))
    groups = (count, length // 16, 1)
    yield "gaussian", normal
    yield "heavy-tailed", random.standard_t(1.2, (count, length))
    yield "zeros", normal * 0
    yield "constant", normal * 0 + 0.37
    yield "negative constant", normal * 0 - 0.37
    yield "all positive", np.abs(normal)
    yield "all negative", -np.abs(normal)
    yield "far above zero", normal * 0.01 + 5
    yield "far below zero", normal * 1e-6 - 5
    yield "one outlier", np.where(np.arange(length) == length // 3, 1000, normal * 0.01)
    yield "one element", np.where(np.arange(length) == length // 3, -7, normal * 0)
    yield "sparse", np.where(random.random((count, length)) < 0.05, normal, 0)
    yield "sparse negative", np.where(random.random((count, length)) < 0.05, -np.abs(normal), 0)
    yield "small integers", random.integers(-3, 4, (count, length)).astype(float)
    yield (
        "groups of any size",
        normal.reshape(*groups[:2], 16) * 10 ** random.uniform(-9, 9, groups),
    )
    yield "groups anywhere", normal.reshape(*groups[:2], 16) + 10 ** random.uniform(-3, 3, groups)
    yield "any size", normal * 10 ** random.uniform(-38, 30, (count, length))
    yield "float32's largest", np.sign(normal) * float(np.finfo(np.float32).max)
    for exponent in (-44, -40, -30, -22, -18, -15, -14, -10, -8, -7, -6, -5, 5, 10, 19, 20, 30, 37):
        yield f"times 1e{exponent}", normal * 10.0**exponent


def float32(values: Array, length: int) -> Array:
    return values.astype(np.float32).reshape(-1, length)


def importances(length: int, seed: int) -> Iterator[tuple[str, Array | None]]:
    """Name -> float32 (length,), or None."""
    random = np.random.default_rng(seed)
    squares = random.standard_normal(length) ** 2
    half = np.where(np.arange(length) < length // 2, 0, squares)
    yield "none", None
    yield "squares", squares.astype(np.float32)
    yield "half zero", half.astype(np.float32)
    yield "zero", np.zeros(length, np.float32)
    yield "any size", (10 ** random.uniform(-12, 8, length)).astype(np.float32)
