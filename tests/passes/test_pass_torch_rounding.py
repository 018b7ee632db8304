"""How torch-fp16 and torch-bf16 round. The references are PyTorch and exact fractions."""

from __future__ import annotations

import fractions
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from convkit.passes.torch_bf16 import to_bf16
from convkit.passes.torch_fp16 import to_fp16
from convkit.passes.torch_streaming import OverflowsError

torch = pytest.importorskip("torch", reason="PyTorch is the reference for rounding")


@pytest.mark.parametrize(
    ("lowered", "target"),
    [(to_fp16, torch.float16), (to_bf16, torch.bfloat16)],
    ids=["fp16", "bf16"],
)
def test_rounding_is_that_of_pytorch_for_random_bit_patterns(
    lowered: Callable[[memoryview, str], memoryview], target: Any
) -> None:
    bits = np.random.default_rng(11).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    wanted = torch.from_numpy(bits.view(np.float32)).to(target)
    finite = wanted.isfinite().numpy()
    wide = np.ascontiguousarray(bits[finite])
    # Half of all patterns lie beyond fp16; scaled ones fall on its normal and subnormal values.
    scaled = np.ldexp(wide.view(np.float32) % 1, -12).astype(np.float32)
    for values in (wide.view(np.float32), scaled):
        reference = torch.from_numpy(values).to(target).view(torch.int16).numpy()
        found = np.frombuffer(lowered(values.view(np.uint8).data, "F32"), np.int16)
        assert np.array_equal(found, reference)


def test_doubles_near_ties_are_rounded_to_the_nearest() -> None:
    generator = np.random.default_rng(2)
    ties = 1 + generator.integers(0, 128, 500) / 128 + 1 / 256
    values = np.ldexp(ties + generator.choice([-1, 0, 1], 500) * 2.0**-45, -130)  # subnormals too
    values = np.concatenate([values, np.ldexp(values, 200), -values])
    bits = np.frombuffer(to_bf16(values.view(np.uint8).data, "F64"), np.uint16).astype(np.uint32)
    for value, code in zip(values, bits, strict=True):
        below, found, above = (
            fractions.Fraction(float(np.uint32(c << 16).view(np.float32)))
            for c in (int(code) - 1, int(code), int(code) + 1)
        )
        distance = abs(found - fractions.Fraction(float(value)))
        for neighbour in (below, above):
            other = abs(neighbour - fractions.Fraction(float(value)))
            assert distance < other or (distance == other and code % 2 == 0)


def test_doubles_are_rounded_once() -> None:
    just_above_a_tie = np.array([1 + 2**-8 + 2**-40, -1 - 2**-8 - 2**-40, 1 + 2**-8])
    bf16 = np.frombuffer(to_bf16(just_above_a_tie.view(np.uint8).data, "F64"), np.uint16)
    values = (bf16.astype(np.uint32) << 16).view(np.float32)
    # Through float32 the first two would become ties, and ties go to even, that is to 1.
    assert [fractions.Fraction(float(v)) for v in values] == [
        fractions.Fraction(129, 128),
        fractions.Fraction(-129, 128),
        1,
    ]


def test_infinities_and_nans_stay_what_they_are() -> None:
    special = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)
    half = np.frombuffer(to_fp16(special.view(np.uint8).data, "F32"), np.float16)
    assert np.array_equal(half, special.astype(np.float16), equal_nan=True)
    assert np.signbit(half[3])


@pytest.mark.parametrize(
    ("lowered", "largest", "first_beyond"),
    [(to_fp16, 65519.996, 65520.0), (to_bf16, 3.3895e38, 3.4e38)],
    ids=["fp16", "bf16"],
)
def test_a_finite_value_never_becomes_infinite(
    lowered: Callable[[memoryview, str], memoryview], largest: float, first_beyond: float
) -> None:
    lowered(np.float32([largest]).view(np.uint8).data, "F32")
    with pytest.raises(OverflowsError):
        lowered(np.float32([-first_beyond]).view(np.uint8).data, "F32")
