"""Channels scaled between layers so that they use the range that they share alike.

All channels of an activation have one scale in int8, so a channel whose values are a tenth of the
largest gets a tenth of the steps. Where what lies between layers does not mind, a channel may be
divided by a number as it is made and multiplied by it as it is read; the graph computes the same.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019,
section 4.1 (positive scaling equivariance; ReLU6 is taken for a ReLU there, here it is kept and a
channel grows to its end at most); Meller et al., Same, Same But Different, 2019 (factorization of
activations).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_structure import array_of
from convkit.quantization.channel_classes import ChannelClass, channel_classes
from convkit.quantization.channel_noise import expected_noise
from convkit.quantization.channel_ranges import ChannelRange, channel_ranges
from convkit.quantization.layers import int_attribute, output_axis
from convkit.quantization.observing import Batches
from convkit.quantization.preparation import replace_constant
from convkit.step import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_POWERS = (0.0, 0.25, 0.5)
"""How far channels are brought to the largest: 0 not at all, 1 wholly. Beyond a half the noise was
measured to be larger than is foretold here (EfficientNet-lite0)."""

_HEADROOM = 1.1
"""Data of tomorrow may be a tenth larger than those that were seen."""

_CLIP_HEADROOM = 2.0
"""And twice as large before the end of a Clip, which would cut a scaled channel earlier than its
own: in fp32 too, so that no layer that is given back makes up for it."""


def equalize(
    model: ir.Model,
    folder: Path,
    data: Batches,
    *,
    progress: Progress,
    note: Callable[[str], None],
) -> int:
    """Scales channels in place where the noise that is to be expected falls; how many groups.

    The graph computes the same, up to float32 rounding. A channel that a Clip ends grows to that
    end at most, so values beyond those of the data may be cut earlier.

    Args:
        model: typed and prepared.
        folder: where its weights lie.
        data: samples of its inputs.
        progress: hears how far it is.
        note: takes sentences for the report.
    """
    classes = channel_classes(model, folder)
    axes = {
        value.name or "": (each.axis, len(value.shape or ()))
        for each in classes
        for value in each.values
    }
    seen = channel_ranges(model, folder, axes, data.batches(1), progress, data.count)
    changed = 0
    for each in classes:
        scales = _scales(each, seen, folder)
        if scales is not None:
            scale_channels(model.graph, each, scales, folder)
            changed += 1
    if changed:
        note(f"Channels of {changed} activations were equalized into the layers around them.")
    return changed


def _scales(each: ChannelClass, seen: Mapping[str, ChannelRange], folder: Path) -> Array | None:
    """What each channel is divided by, (channels,), 1 at most; None where nothing is gained."""
    ranges = [seen[value.name or ""] for value in each.values]
    absmax = np.max([found.absmax for found in ranges], axis=0).astype(np.float64)
    if not np.isfinite(absmax).all() or not absmax.max(initial=0.0) > 0:
        return None
    largest = absmax.max()
    share = np.minimum(_HEADROOM * absmax / largest, 1.0)
    share[absmax <= 0] = 1.0
    floor = np.minimum(_CLIP_HEADROOM * absmax / each.ceiling, 1.0)
    candidates = [np.maximum(share**power, floor) for power in _POWERS]
    noises = [_noise(each, scales, seen, folder) for scales in candidates]
    best = int(np.argmin(noises))
    return candidates[best] if noises[best] < 0.98 * noises[0] else None


def _noise(
    each: ChannelClass, scales: Array, seen: Mapping[str, ChannelRange], folder: Path
) -> float:
    """Noise over signal that the layers which read these channels will have."""
    return sum(
        expected_noise(reading_rows(node, folder), seen[value.name or ""], scales)
        for node, value in each.readers
    )


def reading_rows(node: ir.Node, folder: Path) -> Array:
    """A layer's weight as (groups, outputs of each, input channels of each, elements)."""
    weight = node.inputs[1]
    assert weight is not None
    array = array_of(weight.const_value, folder).astype(np.float64)
    if node.op_type != "Conv":
        array = array if output_axis(node) == 0 else array.T
        return array[None, :, :, None]
    groups = int_attribute(node, "group", 1)
    return array.reshape(groups, len(array) // groups, array.shape[1], -1)


def scale_channels(graph: ir.Graph, each: ChannelClass, scales: Array, folder: Path) -> None:
    """Divides channels by `scales` where they are made and multiplies where they are read."""
    for node in each.makers:
        array = _weight(node, 1, folder)
        axis = output_axis(node)
        along = [-1 if each_axis == axis else 1 for each_axis in range(array.ndim)]
        replace_constant(graph, node, 1, (array / scales.reshape(along)).astype(np.float32))
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = _weight(node, 2, folder)
            replace_constant(graph, node, 2, (bias / scales).astype(np.float32))
    for node, _ in each.readers:
        array = _weight(node, 1, folder)
        if node.op_type == "Conv":
            groups = int_attribute(node, "group", 1)
            split = array.reshape(groups, len(array) // groups, array.shape[1], -1)
            scaled = (split * scales.reshape(groups, 1, -1, 1)).reshape(array.shape)
        else:
            axis = 1 - output_axis(node)
            scaled = array * scales.reshape([-1 if i == axis else 1 for i in range(2)])
        replace_constant(graph, node, 1, scaled.astype(np.float32))


def _weight(node: ir.Node, index: int, folder: Path) -> Array:
    value = node.inputs[index]
    assert value is not None
    return array_of(value.const_value, folder).astype(np.float64)
