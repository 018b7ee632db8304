"""Regions of interest, and boxes that overlap."""

from __future__ import annotations

import tensorflow as tf

from convkit.converters.onnx_to_savedmodel.operators.values import (
    Int,
    Number,
    known_int,
    scalar,
    sizes_of,
)


def roi_align(
    x: tf.Tensor,
    rois: tf.Tensor,
    batch_indices: tf.Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> tf.Tensor:
    """ONNX RoiAlign.

    Args:
        x: (batch, channels, height, width).
        rois: (regions, 4): x and y of two corners.
        batch_indices: (regions,), the image of each region.
        coordinate_transformation_mode: "half_pixel" or "output_half_pixel".
        mode: "avg" or "max"; "max" takes the greatest weighted neighbour, as ONNX defines it.
        output_height: bins down.
        output_width: bins across.
        sampling_ratio: samples per bin and axis; 0 for as many as the bin has pixels.
        spatial_scale: pixels per unit of the regions.
    """
    wide = tf.float64 if x.dtype == tf.float64 else tf.float32
    image = tf.transpose(tf.cast(x, wide), [0, 2, 3, 1])
    shift = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    corners = tf.cast(rois, wide) * spatial_scale - shift
    height, width = sizes_of(image)[1:3]
    bins = []
    for start, end, count, length in (
        (corners[:, 1], corners[:, 3], output_height, height),
        (corners[:, 0], corners[:, 2], output_width, width),
    ):
        extent = end - start
        if not shift:
            extent = tf.maximum(extent, 1)
        bins.append(_samples(start, extent / count, count, sampling_ratio, tf.cast(length, wide)))
    return tf.cast(_pooled(image, batch_indices, bins[0], bins[1], mode), x.dtype)


Samples = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]
"""Lower neighbour, share of the upper one, whether a sample counts, whether it is inside."""


def _samples(
    start: tf.Tensor, step: tf.Tensor, bins: int, ratio: int, length: tf.Tensor
) -> Samples:
    """Places of samples along one axis, each (regions, bins, samples)."""
    if ratio > 0:
        count = tf.fill(tf.shape(step), tf.constant(ratio, step.dtype))
        most = tf.constant(ratio, tf.int32)
    else:
        count = tf.math.ceil(step)
        most = tf.cast(tf.reduce_max(tf.concat([count, tf.ones([1], step.dtype)], 0)), tf.int32)
    order = tf.cast(tf.range(most), step.dtype)
    share = (order[None, :] + 0.5) / tf.maximum(count, 1)[:, None]
    places = tf.range(bins, dtype=tf.int32)
    at = tf.cast(places, step.dtype)[None, :, None] + share[:, None, :]
    at = start[:, None, None] + at * step[:, None, None]
    counts = tf.broadcast_to((order[None, :] < count[:, None])[:, None, :], tf.shape(at))
    inside = tf.logical_and(at >= -1, at <= length)
    at = tf.clip_by_value(at, 0, length - 1)
    below = tf.minimum(tf.floor(at), length - 1)
    return below, at - below, counts, inside


def _pooled(
    image: tf.Tensor, batch: tf.Tensor, down: Samples, across: Samples, mode: str
) -> tf.Tensor:
    """The samples of each bin brought together: (regions, channels, height, width)."""
    rows, row_share, row_counts, row_inside = (part[:, :, None, :, None] for part in down)
    columns, column_share, column_counts, column_inside = (
        part[:, None, :, None, :] for part in across
    )
    used = tf.logical_and(row_counts, column_counts)
    inside = tf.logical_and(used, tf.logical_and(row_inside, column_inside))
    weight = tf.cast(inside, image.dtype)
    shape = tf.shape(used)
    owner = tf.broadcast_to(tf.cast(batch, tf.int64)[:, None, None, None, None], shape)
    last = [tf.cast(size, tf.int64) - 1 for size in sizes_of(image)[1:3]]
    values = []
    for row_step, row_weight in ((0, 1 - row_share), (1, row_share)):
        for column_step, column_weight in ((0, 1 - column_share), (1, column_share)):
            y = tf.minimum(tf.cast(rows, tf.int64) + row_step, last[0])
            x = tf.minimum(tf.cast(columns, tf.int64) + column_step, last[1])
            y, x = tf.broadcast_to(y, shape), tf.broadcast_to(x, shape)
            pixels = tf.gather_nd(image, tf.stack([owner, y, x], -1))
            values.append(pixels * (row_weight * column_weight * weight)[..., None])
    if mode == "avg":
        count = tf.reduce_sum(tf.cast(used, image.dtype), [3, 4])
        result = tf.reduce_sum(tf.add_n(values), [3, 4]) / tf.maximum(count, 1)[..., None]
    else:
        best = tf.reduce_max(tf.stack(values), 0)
        lowest = tf.constant(image.dtype.min, image.dtype)
        result = tf.reduce_max(tf.where(used[..., None], best, lowest), [3, 4])
        result = tf.where(tf.reduce_any(used, [3, 4])[..., None], result, tf.zeros_like(result))
    return tf.transpose(result, [0, 3, 1, 2])


def max_roi_pool(
    x: tf.Tensor, rois: tf.Tensor, *, pooled_shape: list[int], spatial_scale: float = 1.0
) -> tf.Tensor:
    """ONNX MaxRoiPool: the maximum of each bin, whose borders are rounded to pixels.

    Source: Girshick, "Fast R-CNN", 2015, and the operator's implementation in ONNX Runtime.
    """
    image = tf.transpose(x, [0, 2, 3, 1])
    corners = tf.round(rois[:, 1:] * tf.constant(spatial_scale, rois.dtype))
    masks = []
    for start, end, bins, length in (
        (corners[:, 1], corners[:, 3], pooled_shape[0], sizes_of(image)[1]),
        (corners[:, 0], corners[:, 2], pooled_shape[1], sizes_of(image)[2]),
    ):
        step = tf.maximum(end - start + 1, 1) / bins
        order = tf.range(bins, dtype=tf.int32)
        at = tf.cast(order, step.dtype)[None, :] * step[:, None]
        first = tf.floor(at) + start[:, None]
        after = tf.math.ceil(at + step[:, None]) + start[:, None]
        index = tf.cast(tf.range(tf.cast(length, tf.int64)), step.dtype)
        masks.append(tf.logical_and(index >= first[..., None], index < after[..., None]))
    lowest = tf.constant(x.dtype.min, x.dtype)
    maps = tf.gather(image, tf.cast(rois[:, 0], tf.int64))
    # One axis at a time: (regions, bins, width, channels), then (regions, bins, bins, channels)
    down = tf.reduce_max(tf.where(masks[0][..., None, None], maps[:, None], lowest), 2)
    found = tf.reduce_max(tf.where(masks[1][:, None, :, :, None], down[:, :, None], lowest), 3)
    found = tf.where(tf.equal(found, lowest), tf.zeros_like(found), found)
    return tf.transpose(found, [0, 3, 1, 2])


def non_max_suppression(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    max_output_boxes_per_class: Int | None = None,
    iou_threshold: Number | None = None,
    score_threshold: Number | None = None,
    *,
    center_point_box: int = 0,
) -> tf.Tensor:
    """ONNX NonMaxSuppression: (selected, 3), each a batch, a class and a box.

    Args:
        boxes: (batch, boxes, 4).
        scores: (batch, classes, boxes).
        max_output_boxes_per_class: none are selected without it.
        iou_threshold: boxes that overlap more are dropped.
        score_threshold: boxes must score above it.
        center_point_box: whether boxes are centre and size, not two corners.
    """
    if max_output_boxes_per_class is None or known_int(max_output_boxes_per_class) == 0:
        return tf.zeros([0, 3], tf.int64)
    limit = scalar(max_output_boxes_per_class, tf.int32)
    overlap = tf.constant(0.0) if iou_threshold is None else scalar(iou_threshold, tf.float32)
    lowest = tf.constant(float("-inf"))
    if score_threshold is not None:
        lowest = scalar(score_threshold, tf.float32)
    corners = _corners(tf.cast(boxes, tf.float32), bool(center_point_box))
    shape = tf.shape(scores, out_type=tf.int64)
    pair_count = shape[0] * shape[1]
    flat = tf.reshape(tf.cast(scores, tf.float32), tf.stack([pair_count, shape[2]]))

    def step(pair: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        batch = pair // shape[1]
        chosen = tf.raw_ops.NonMaxSuppressionV3(
            boxes=corners[batch],
            scores=flat[pair],
            max_output_size=limit,
            iou_threshold=overlap,
            score_threshold=lowest,
        )
        chosen = tf.cast(chosen, tf.int64)
        owner = tf.fill(tf.shape(chosen), batch)
        kind = tf.fill(tf.shape(chosen), pair % shape[1])
        rows = tf.stack([owner, kind, chosen], 1)
        return pair + 1, found.write(tf.cast(pair, tf.int32), rows)

    start = tf.TensorArray(
        tf.int64, tf.cast(pair_count, tf.int32), infer_shape=False, element_shape=[None, 3]
    )
    _, found = tf.while_loop(
        lambda pair, _: pair < pair_count, step, (tf.constant(0, tf.int64), start)
    )
    return tf.cond(
        pair_count > 0,
        lambda: tf.ensure_shape(found.concat(), [None, 3]),
        lambda: tf.zeros([0, 3], tf.int64),
    )


def _corners(boxes: tf.Tensor, is_centred: bool) -> tf.Tensor:
    if not is_centred:
        return boxes
    x, y, width, height = tf.unstack(boxes, 4, -1)
    return tf.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1)


OPERATORS = {
    "MaxRoiPool": max_roi_pool,
    "NonMaxSuppression": non_max_suppression,
    "RoiAlign": roi_align,
}
