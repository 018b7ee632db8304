"""Host values: parameters that are Python numbers where they are known, tensors where they are not.

Types that PyTorch has no arithmetic for are handled here too. Elements of `torch.int4`, `uint4`,
`int2` and `uint2` travel one per element in `int8` or `uint8` tensors, float4 (E2M1) in
`float8_e4m3fn`, which holds each of its values exactly; the narrow type is known to the operators
that create or read it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# A size that `torch.export` keeps symbolic counts as an int here.
Ints = Sequence[int] | torch.Tensor
Int = int | torch.Tensor
Floats = Sequence[float] | torch.Tensor
Number = float | torch.Tensor

# Integer types that torch stores but has few kernels for, and the type that computes for them.
WIDER_TYPE = {
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}
# A type of the same size that every kernel that only moves elements accepts.
MOVABLE_TYPE = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
    torch.float8_e4m3fn: torch.uint8,
    torch.float8_e4m3fnuz: torch.uint8,
    torch.float8_e5m2: torch.uint8,
    torch.float8_e5m2fnuz: torch.uint8,
    torch.float8_e8m0fnu: torch.uint8,
}


def as_ints(value: Ints) -> list[int]:
    """The integers of `value`; a tensor is read."""
    return sizes_in(value) if isinstance(value, torch.Tensor) else list(value)


def sizes_in(values: torch.Tensor) -> list[int]:
    """The integers in a tensor, which `torch.export` records as sizes known at run time only."""
    return list(values.reshape(-1).tolist())


def as_int(value: Int) -> int:
    """The integer in `value`; a tensor has one element."""
    if isinstance(value, torch.Tensor):
        return sizes_in(value.reshape(1))[0]
    return value


def as_floats(value: Floats) -> list[float]:
    """The numbers of `value`."""
    if isinstance(value, torch.Tensor):
        return list(value.reshape(-1).tolist())
    return list(value)


def as_number(value: Number) -> float:
    """The number in `value`; a tensor has one element."""
    if isinstance(value, torch.Tensor):
        return value.reshape(()).item()
    return value


def as_int_tensor(value: Ints, like: torch.Tensor) -> torch.Tensor:
    """`value` as a 1-D int64 tensor on the device of `like`."""
    if isinstance(value, torch.Tensor):
        return value.reshape(-1).to(torch.int64)
    return torch.tensor(list(value), dtype=torch.int64, device=like.device)


def as_scalar(value: Number, like: torch.Tensor) -> torch.Tensor:
    """`value` as a tensor without dimensions, of the dtype and device of `like`."""
    if isinstance(value, torch.Tensor):
        return value.reshape(()).to(like.dtype)
    return torch.scalar_tensor(value, dtype=like.dtype, device=like.device)


def positive_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    return axis + rank if axis < 0 else axis


def widened(x: torch.Tensor) -> torch.Tensor:
    """`x` in a type that has arithmetic; only uint16, uint32 and uint64 change.

    uint64 becomes int64 with the same bits: sums and products stay right modulo 2**64.
    """
    wider = WIDER_TYPE.get(x.dtype)
    return x if wider is None else x.to(wider)


def ordered(x: torch.Tensor) -> torch.Tensor:
    """`x` in a signed type in which its elements compare as in their own type.

    uint64 loses its top bit's meaning when it becomes int64; flipping that bit restores the order.
    """
    if x.dtype == torch.uint64:
        return x.view(torch.int64) ^ torch.iinfo(torch.int64).min
    return widened(x)


def from_ordered(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `ordered`."""
    if dtype == torch.uint64:
        return (x ^ torch.iinfo(torch.int64).min).view(torch.uint64)
    return x.to(dtype)


def movable(x: torch.Tensor) -> torch.Tensor:
    """`x` reinterpreted as a type of its size that gather, where, flip and their like accept."""
    other = MOVABLE_TYPE.get(x.dtype)
    return x if other is None else x.view(other)


def moved(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `movable`: `x` reinterpreted as `dtype`."""
    return x if x.dtype == dtype else x.view(dtype)
