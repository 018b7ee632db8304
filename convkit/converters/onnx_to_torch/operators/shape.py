"""Shapes: reading them, changing them, repeating elements, making tensors of a shape."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.values import (
    Int,
    Ints,
    Number,
    as_int,
    as_int_tensor,
    as_ints,
    as_number,
    as_scalar,
    movable,
    moved,
    positive_axis,
)


def shape_tensor(sizes: list[int], like: torch.Tensor) -> torch.Tensor:
    """Sizes, some of which may be symbols, as a 1-D int64 tensor."""
    if not sizes:
        return torch.zeros(0, dtype=torch.int64, device=like.device)
    return torch.stack(
        [torch.scalar_tensor(size, dtype=torch.int64, device=like.device) for size in sizes]
    )


def shape_of(data: torch.Tensor, *, start: int = 0, end: int | None = None) -> torch.Tensor:
    """ONNX Shape, as a tensor."""
    return shape_tensor(list(data.shape)[start:end], data)


def size_of(data: torch.Tensor) -> torch.Tensor:
    """ONNX Size: the number of elements, as a tensor."""
    return torch.scalar_tensor(data.numel(), dtype=torch.int64, device=data.device)


def reshape(data: torch.Tensor, shape: Ints, *, allowzero: int = 0) -> torch.Tensor:
    """ONNX Reshape: -1 takes what remains, 0 copies the input's size unless `allowzero`."""
    if isinstance(shape, torch.Tensor):
        return data.reshape(resolved_shape(data, shape, allowzero))
    target = list(shape)
    if not allowzero:
        target = [
            data.shape[i] if isinstance(size, int) and size == 0 else size
            for i, size in enumerate(target)
        ]
    if -1 in [size for size in target if isinstance(size, int)] and is_empty(data):
        # PyTorch cannot tell what remains of nothing; count the sizes that are not zero.
        known = math.prod(size for size in target if size not in (-1, 0))
        remaining = 0 if 0 not in target else math.prod(s for s in data.shape if s) // known
        target = [remaining if size == -1 else size for size in target]
    return data.reshape(target)


def is_empty(data: torch.Tensor) -> bool:
    """Whether the tensor is known to have no elements."""
    return any(isinstance(size, int) and size == 0 for size in data.shape)


def resolved_shape(data: torch.Tensor, shape: torch.Tensor, allowzero: int) -> list[int]:
    """The shape that a run-time shape tensor asks for, its -1 and 0 filled in by arithmetic."""
    wanted = shape.reshape(-1).to(torch.int64)
    if not allowzero:
        own = shape_tensor(list(data.shape)[: wanted.shape[0]], data)
        own = F.pad(own, (0, wanted.shape[0] - own.shape[0]), value=1)
        wanted = torch.where(wanted == 0, own, wanted)
    known = torch.where(wanted == -1, 1, wanted).prod()
    remaining = torch.div(data.numel(), torch.clamp(known, min=1), rounding_mode="floor")
    return as_ints(torch.where(wanted == -1, remaining, wanted))


def squeeze(data: torch.Tensor, axes: Ints | None = None) -> torch.Tensor:
    """ONNX Squeeze: the named axes, each of size 1, or all axes of size 1."""
    if axes is None:
        return torch.squeeze(data)
    if isinstance(axes, torch.Tensor) and torch.compiler.is_exporting():
        rank = data.dim()
        gone = torch.stack([(axes.reshape(-1) % rank == axis).any() for axis in range(rank)])
        kept = torch.argsort(gone.to(torch.int64), stable=True)[: rank - axes.numel()]
        return data.reshape(shape_tensor(list(data.shape), data)[kept].tolist())
    y = data
    for axis in sorted({positive_axis(axis, data.dim()) for axis in as_ints(axes)}, reverse=True):
        # A size that is a symbol stays when squeezed; selecting always drops the axis.
        y = y.squeeze(axis) if isinstance(y.shape[axis], int) else y.select(axis, 0)
    return y


def unsqueeze(data: torch.Tensor, axes: Ints) -> torch.Tensor:
    """ONNX Unsqueeze: the axes are positions in the result."""
    if isinstance(axes, torch.Tensor) and torch.compiler.is_exporting():
        rank = data.dim() + axes.numel()
        new = torch.stack([(axes.reshape(-1) % rank == axis).any() for axis in range(rank)])
        own = torch.cat([shape_tensor(list(data.shape), data), new.new_ones(1, dtype=torch.int64)])
        place = torch.cumsum((~new).to(torch.int64), 0) - 1
        return data.reshape(torch.where(new, 1, own[place]).tolist())
    listed = as_ints(axes)
    y = data
    for axis in sorted(positive_axis(axis, data.dim() + len(listed)) for axis in listed):
        y = y.unsqueeze(axis)
    return y


def flatten(data: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    """ONNX Flatten to two dimensions, split before `axis`."""
    at = positive_axis(axis, data.dim())
    if at == 1 and data.dim() > 1:
        return torch.flatten(data, 1)
    return data.reshape(math.prod(data.shape[:at]), math.prod(data.shape[at:]))


def transpose(data: torch.Tensor, *, perm: list[int] | None = None) -> torch.Tensor:
    """ONNX Transpose; without `perm` the axes are reversed."""
    return data.permute(perm if perm is not None else list(range(data.dim()))[::-1])


def expand(data: torch.Tensor, shape: Ints) -> torch.Tensor:
    """ONNX Expand: `data` and `shape` broadcast to each other."""
    wanted = as_int_tensor(shape, data).shape[0] if isinstance(shape, torch.Tensor) else len(shape)
    rank = max(wanted, data.dim())
    own = [1] * (rank - data.dim()) + list(data.shape)
    if isinstance(shape, torch.Tensor):
        target = F.pad(shape.reshape(-1).to(torch.int64), (rank - wanted, 0), value=1)
        return data.expand(torch.where(target == 1, shape_tensor(own, data), target).tolist())
    padded = [1] * (rank - wanted) + list(shape)
    return data.expand(
        [
            mine if isinstance(size, int) and size == 1 else size
            for mine, size in zip(own, padded, strict=True)
        ]
    )


def tile(data: torch.Tensor, repeats: Ints) -> torch.Tensor:
    """ONNX Tile."""
    return data.repeat(as_ints(repeats))


def constant_of_shape(shape: Ints, *, value: torch.Tensor | None = None) -> torch.Tensor:
    """ONNX ConstantOfShape; float32 zeros unless `value` says otherwise."""
    if value is None:
        return torch.zeros(as_ints(shape))
    return value.reshape(()).expand(as_ints(shape)).clone()


def number_range(
    start: Number, limit: Number, delta: Number, *, stash_type: torch.dtype | None = None
) -> torch.Tensor:
    """ONNX Range; Python integers give int64, Python floats float32."""
    given = [value for value in (start, limit, delta) if isinstance(value, torch.Tensor)]
    if not given:
        return host_range(as_number(start), as_number(limit), as_number(delta))
    like = given[0]
    # Each element is start + index * delta, rounded once.
    exact = torch.float64 if like.dtype.is_floating_point else torch.int64
    if like.dtype in (torch.float16, torch.bfloat16):
        exact = torch.float32
    wide = torch.zeros((), dtype=exact, device=like.device)
    first, last, step = (as_scalar(value, wide) for value in (start, limit, delta))
    if exact == torch.int64:
        count = -torch.div(first - last, step, rounding_mode="floor")
    else:
        count = torch.ceil((last - first) / step).to(torch.int64)
    index = torch.arange(as_int(torch.clamp(count, min=0)), device=like.device)
    return (first + index * step).to(like.dtype)


def host_range(start: float, limit: float, delta: float) -> torch.Tensor:
    """The range between Python numbers."""
    if any(isinstance(value, float) for value in (start, limit, delta)):
        count = max(math.ceil((limit - start) / delta), 0)
        return (start + torch.arange(count, dtype=torch.float64) * delta).to(torch.float32)
    if isinstance(start, int) and isinstance(limit, int) and isinstance(delta, int):
        return torch.tensor(range(start, limit, delta), dtype=torch.int64)
    return torch.arange(start, limit, delta, dtype=torch.int64)


def eye_like(x: torch.Tensor, *, dtype: torch.dtype | None = None, k: int = 0) -> torch.Tensor:
    """ONNX EyeLike: ones on the diagonal `k`, of the shape of `x`."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    columns = torch.arange(x.shape[1], device=x.device)
    return (rows + k == columns).to(dtype or x.dtype)


def depth_to_space(data: torch.Tensor, *, blocksize: int, mode: str = "DCR") -> torch.Tensor:
    """ONNX DepthToSpace of (batch, channels, height, width)."""
    if mode == "CRD":
        return F.pixel_shuffle(data, blocksize)
    b, c, h, w = data.shape
    y = data.reshape(b, blocksize, blocksize, c // blocksize**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(b, c // blocksize**2, h * blocksize, w * blocksize)


def space_to_depth(data: torch.Tensor, *, blocksize: int, mode: str = "DCR") -> torch.Tensor:
    """ONNX SpaceToDepth of (batch, channels, height, width)."""
    b, c, h, w = data.shape
    y = data.reshape(b, c, h // blocksize, blocksize, w // blocksize, blocksize)
    order = (0, 1, 3, 5, 2, 4) if mode == "CRD" else (0, 3, 5, 1, 2, 4)
    return y.permute(order).reshape(b, c * blocksize**2, h // blocksize, w // blocksize)


def trilu(data: torch.Tensor, k: Int | None = None, *, upper: int = 1) -> torch.Tensor:
    """ONNX Trilu: the upper or lower triangle from diagonal `k`, zeros elsewhere."""
    x = movable(data)
    if not isinstance(k, torch.Tensor):
        return moved((torch.triu if upper else torch.tril)(x, k or 0), data.dtype)
    diagonal = torch.arange(x.shape[-1]) - torch.arange(x.shape[-2]).unsqueeze(1)
    kept = diagonal >= k.reshape(()) if upper else diagonal <= k.reshape(())
    return moved(torch.where(kept, x, 0), data.dtype)


OPERATORS = {
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Range": number_range,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size_of,
    "SpaceToDepth": space_to_depth,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
