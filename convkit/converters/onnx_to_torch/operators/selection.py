"""Selection by value: TopK, Unique, NonMaxSuppression."""

from __future__ import annotations

import torch

from convkit.converters.onnx_to_torch.operators.values import (
    Int,
    Number,
    as_int,
    as_number,
    from_ordered,
    ordered,
    positive_axis,
)


def top_k(
    x: torch.Tensor, k: Int, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """ONNX TopK: of equal elements the first comes first, which `torch.topk` does not promise."""
    count = as_int(k)
    if isinstance(k, torch.Tensor):
        torch._check(count >= 0)
        torch._check(count <= x.shape[axis])
    values, indices = torch.sort(ordered(x), dim=axis, descending=bool(largest), stable=True)
    values = from_ordered(values.narrow(axis, 0, count), x.dtype)
    return values, indices.narrow(axis, 0, count)


def unique(
    x: torch.Tensor, *, axis: int | None = None, sorted: int = 1, output_count: int = 1
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX Unique: values, where each occurs first, which one each element is, how often."""
    y = ordered(x)
    along = 0 if axis is None else positive_axis(axis, x.dim())
    y, inverse, counts = torch.unique(
        y.reshape(-1) if axis is None else y, return_inverse=True, return_counts=True, dim=along
    )
    inverse = inverse.reshape(-1)
    places = torch.arange(inverse.shape[0], device=x.device)
    first = torch.full_like(counts, inverse.shape[0])
    first = first.scatter_reduce(0, inverse, places, "amin")
    if not sorted:
        order = torch.argsort(first)
        rank = torch.argsort(order)
        y, first, counts = y.index_select(along, order), first[order], counts[order]
        inverse = rank[inverse]
    y = from_ordered(y, x.dtype)
    return y if output_count == 1 else (y, first, inverse, counts)[:output_count]


def non_max_suppression(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    max_output_boxes_per_class: Int | None = None,
    iou_threshold: Number | None = None,
    score_threshold: Number | None = None,
    *,
    center_point_box: int = 0,
) -> torch.Tensor:
    """ONNX NonMaxSuppression: rows of (batch, class, box), best boxes of each class first."""
    batch, classes, count = scores.shape
    corners = box_corners(boxes, center_point_box).unsqueeze(1)  # (batch, 1, boxes, 4)
    limit = 0 if max_output_boxes_per_class is None else max_output_boxes_per_class
    overlap = 0.0 if iou_threshold is None else as_number(iou_threshold)
    left = scores
    if score_threshold is not None:
        left = torch.where(scores > as_number(score_threshold), scores, -torch.inf)
    chosen = torch.full([batch, classes, count], -1, dtype=torch.int64, device=scores.device)
    if torch.compiler.is_exporting():
        chosen = chosen_while_any(corners, left, chosen, limit, overlap)
    else:
        for step in range(min(as_int(limit), count)):
            best, left = best_remaining(corners, left, overlap)
            if not bool((best >= 0).any()):
                break
            chosen[..., step] = best
    rows = torch.nonzero(chosen >= 0)
    return torch.stack([rows[:, 0], rows[:, 1], chosen[rows[:, 0], rows[:, 1], rows[:, 2]]], 1)


def chosen_while_any(
    corners: torch.Tensor,
    left: torch.Tensor,
    chosen: torch.Tensor,
    limit: Int,
    overlap: float,
) -> torch.Tensor:
    """The boxes of each class in order of choice, as a loop that `torch.export` keeps."""
    most = limit.reshape(()) if isinstance(limit, torch.Tensor) else torch.tensor(limit)
    most = torch.clamp(most, max=chosen.shape[-1])

    def goes_on(step: torch.Tensor, left: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return (step < most) & (left > -torch.inf).any()

    def choose(
        step: torch.Tensor, left: torch.Tensor, chosen: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        best, remaining = best_remaining(corners, left, overlap)
        here = torch.arange(chosen.shape[-1]) == step
        return step + 1, remaining, torch.where(here, best.unsqueeze(-1), chosen)

    start = torch.zeros((), dtype=torch.int64)
    result: tuple[torch.Tensor, ...] = torch.while_loop(
        goes_on, choose, (start, left.clone(), chosen)
    )
    return result[2]


def box_corners(boxes: torch.Tensor, center_point_box: int) -> torch.Tensor:
    """Boxes as (low, low, high, high), whichever way they were given."""
    if center_point_box:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        return torch.cat([middle - half, middle + half], -1)
    one, other = boxes[..., :2], boxes[..., 2:]
    return torch.cat([torch.minimum(one, other), torch.maximum(one, other)], -1)


def best_remaining(
    corners: torch.Tensor, left: torch.Tensor, overlap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best box of each class, -1 where none is left, and the scores without it and its like."""
    score, best = left.max(-1)
    at = best.unsqueeze(-1).unsqueeze(-1).expand(*best.shape, 1, 4)
    box = torch.gather(corners.expand(*best.shape, *corners.shape[2:]), 2, at)
    sides = torch.minimum(box[..., 2:], corners[..., 2:]) - torch.maximum(
        box[..., :2], corners[..., :2]
    )
    shared = torch.clamp(sides, min=0).prod(-1)
    area, areas = (b[..., 2:] - b[..., :2] for b in (box, corners))
    union = area.prod(-1) + areas.prod(-1) - shared
    gone = shared > overlap * union
    gone = gone | (torch.arange(left.shape[-1], device=left.device) == best.unsqueeze(-1))
    best = torch.where(score > -torch.inf, best, -1)
    return best, torch.where(gone, -torch.inf, left)


OPERATORS = {"NonMaxSuppression": non_max_suppression, "TopK": top_k, "Unique": unique}
