"""Pooling over regions of an image, all regions at once."""

from __future__ import annotations

import torch

from convkit.converters.onnx_to_torch.operators.values import as_int


def roi_align(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch_indices: torch.Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> torch.Tensor:
    """ONNX RoiAlign: (regions, channels, output_height, output_width).

    Bilinear samples in each bin, averaged or their largest corner share taken.
    Source: He et al. 2017, Mask R-CNN; the ONNX reference for the border and for `max`.
    """
    half = coordinate_transformation_mode == "half_pixel"
    region = rois.to(x.dtype) * spatial_scale - (0.5 if half else 0.0)
    images = x.index_select(0, batch_indices.to(torch.int64))
    columns = axis_samples(
        region[:, 0], region[:, 2], output_width, sampling_ratio, x.shape[3], half
    )
    rows = axis_samples(region[:, 1], region[:, 3], output_height, sampling_ratio, x.shape[2], half)
    if mode == "avg":
        # Averages separate: one matrix for rows, one for columns.
        down, across = (
            (shares.sum(2) / torch.clamp(count, min=1).reshape(-1, 1, 1))
            for shares, count in (averaging_shares(*rows), averaging_shares(*columns))
        )
        return torch.matmul(torch.matmul(down.unsqueeze(1), images), across.mT.unsqueeze(1))
    return largest_corner(images, rows, columns)


def axis_samples(
    start: torch.Tensor,
    end: torch.Tensor,
    bins: int,
    sampling_ratio: int,
    length: int,
    half_pixel: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Sample positions (regions, bins, samples), which of them count, how many, and the length."""
    extent = end - start if half_pixel else torch.clamp(end - start, min=1)
    size = (extent / bins).reshape(-1, 1, 1)
    if sampling_ratio > 0:
        count = torch.full_like(extent, sampling_ratio)
        most = sampling_ratio
    else:
        count = torch.ceil(extent / bins)
        most = as_int(torch.clamp(count.amax(), min=1).to(torch.int64))
    sample = torch.arange(most, device=start.device, dtype=start.dtype)
    per_region = count.reshape(-1, 1, 1)
    bin_start = torch.arange(bins, device=start.device, dtype=start.dtype).reshape(-1, 1) * size
    at = start.reshape(-1, 1, 1) + bin_start + (sample + 0.5) * size / torch.clamp(per_region, 1)
    counted = (sample < per_region) & (at >= -1) & (at <= length)
    return at, counted, count, length


def corner_shares(
    at: torch.Tensor, counted: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pixels below and above each position, and their shares; none where not counted."""
    inside = torch.clamp(at, 0, length - 1)
    below = torch.floor(inside)
    above = torch.clamp(below + 1, max=length - 1)
    share = torch.where(counted, inside - below, 0)
    rest = torch.where(counted, 1 - (inside - below), 0)
    return below.to(torch.int64), above.to(torch.int64), rest, share


def averaging_shares(
    at: torch.Tensor, counted: torch.Tensor, count: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of every pixel in every sample: (regions, bins, samples, length)."""
    below, above, rest, share = corner_shares(at, counted, length)
    pixel = torch.arange(length, device=at.device)
    shares = torch.where(below.unsqueeze(-1) == pixel, rest.unsqueeze(-1), 0)
    shares = shares + torch.where(above.unsqueeze(-1) == pixel, share.unsqueeze(-1), 0)
    return shares, count


def largest_corner(
    images: torch.Tensor,
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int],
    columns: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int],
) -> torch.Tensor:
    """The largest product of pixel and share among the samples of each bin."""
    low_y, high_y, rest_y, share_y = corner_shares(rows[0], rows[1], rows[3])
    low_x, high_x, rest_x, share_x = corner_shares(columns[0], columns[1], columns[3])
    sampled_y, sampled_x = rows_counted(rows), rows_counted(columns)
    flat = images.flatten(2)
    products = []
    for y, part_y in ((low_y, rest_y), (high_y, share_y)):
        for x, part_x in ((low_x, rest_x), (high_x, share_x)):
            # (regions, bins down, samples down, bins across, samples across)
            index = y[:, :, :, None, None] * images.shape[3] + x[:, None, None]
            share = part_y[:, :, :, None, None] * part_x[:, None, None]
            place = index.flatten(1).unsqueeze(1).expand(-1, flat.shape[1], -1)
            pixel = torch.gather(flat, 2, place).unflatten(2, index.shape[1:])
            product = pixel * share.unsqueeze(1)
            products.append(product)
    real = sampled_y[:, :, :, None, None] & sampled_x[:, None, None]
    best = torch.stack(products).amax(0)
    best = torch.where(real.unsqueeze(1), best, -torch.inf).amax((3, 5))
    return torch.where(best == -torch.inf, 0, best)


def rows_counted(
    samples: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int],
) -> torch.Tensor:
    """Which sample numbers a region has, whether or not they lie in the image."""
    at, _, count, _ = samples
    number = torch.arange(at.shape[2], device=at.device)
    return (number < count.reshape(-1, 1, 1)).expand(at.shape)


def max_roi_pool(
    x: torch.Tensor, rois: torch.Tensor, *, pooled_shape: list[int], spatial_scale: float = 1.0
) -> torch.Tensor:
    """ONNX MaxRoiPool; regions are (batch, x1, y1, x2, y2), empty bins give 0.

    Source: Girshick 2015, Fast R-CNN: corners round to pixels, bins overlap by rounding outward.
    """
    images = x.index_select(0, rois[:, 0].to(torch.int64))
    # Half away from zero, as C's `round`; corners are not negative.
    corner = torch.floor(rois[:, 1:] * spatial_scale + 0.5)
    across = bin_members(corner[:, 0], corner[:, 2], pooled_shape[1], x.shape[3])
    down = bin_members(corner[:, 1], corner[:, 3], pooled_shape[0], x.shape[2])
    y = torch.where(down[:, None, :, :, None], images.unsqueeze(2), -torch.inf).amax(3)
    y = torch.where(across[:, None, None], y.unsqueeze(3), -torch.inf).amax(4)
    return torch.where(y == -torch.inf, 0, y)


def bin_members(start: torch.Tensor, end: torch.Tensor, bins: int, length: int) -> torch.Tensor:
    """Which pixels belong to which bin: (regions, bins, length)."""
    size = torch.clamp(end - start + 1, min=1) / bins
    number = torch.arange(bins, device=start.device, dtype=start.dtype)
    low = torch.floor(number * size.unsqueeze(1)) + start.unsqueeze(1)
    high = torch.ceil((number + 1) * size.unsqueeze(1)) + start.unsqueeze(1)
    pixel = torch.arange(length, device=start.device, dtype=start.dtype)
    return (pixel >= low.unsqueeze(-1)) & (pixel < high.unsqueeze(-1))


OPERATORS = {"MaxRoiPool": max_roi_pool, "RoiAlign": roi_align}
