"""The integers of one layer: its weight for the data that it sees, and the bias beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.quantization.bias_correction import mean_error
from convkit.quantization.layers import output_axis
from convkit.quantization.moments import Moments
from convkit.quantization.rounding import compensated_weight
from convkit.quantization.weights import QuantizedWeight, quantized_weight, rounded_weight

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

_LARGEST_BIAS = 2.0**30
"""Biases are int32; half of its range is left to the sum that they are added to."""


def layer_weight(
    node: ir.Node,
    weight: Array,
    bias: Array | None,
    *,
    is_per_channel: bool,
    limit: int,
    input_scale: float,
    moments: Moments | None = None,
    compensates: bool = True,
    corrects_bias: bool = True,
) -> QuantizedWeight:
    """A layer's weight in int8, as it lies.

    Args:
        node: Conv, Gemm or MatMul.
        weight: its weight, float32.
        bias: what is added to its outputs, (outputs,); its unit is the product of both scales,
            which is made so large that it fits int32.
        is_per_channel: a scale for each output.
        limit: the largest integer.
        input_scale: of what it reads.
        moments: of what it reads, where data were seen.
        compensates: round so that errors make up for each other on these data.
        corrects_bias: a bias will take their mean error back, so that it does not count here.
    """
    rows = _outputs_first(node, weight)
    axis = 0 if is_per_channel else None
    importance = None if moments is None else _importance(moments, rows)
    made = quantized_weight(rows, axis, limit=limit, importance=importance)
    if bias is not None:
        least = np.abs(bias.astype(np.float64)) / (input_scale * _LARGEST_BIAS)
        least = least if is_per_channel else least.max(initial=0.0)
        if np.any(made.scales < least):
            scales = np.maximum(made.scales, least).astype(np.float32)
            made = rounded_weight(rows, scales, axis, limit)
    covariance = None
    if moments is not None and compensates:
        covariance = moments.covariance(is_centred=corrects_bias)
    if covariance is not None:
        made = compensated_weight(rows, made, covariance, limit=limit)
    values = _outputs_first(node, made.values)
    return QuantizedWeight(values, made.scales, output_axis(node) if is_per_channel else None)


def corrected_bias(
    node: ir.Node, weight: Array, bias: Array | None, made: QuantizedWeight, moments: Moments
) -> Array:
    """The bias less the mean error that the quantized weight makes, (outputs,), float64."""
    error = _outputs_first(node, made.floats().astype(np.float64) - weight)
    alpha = node.attributes.get("alpha")
    unit = 1.0 if alpha is None else alpha.as_float()
    shift = mean_error(error, moments.mean) * unit
    return np.asarray(-shift if bias is None else bias.astype(np.float64) - shift)


def _importance(moments: Moments, rows: Array) -> Array:
    """The mean square of what each weight multiplies, as the weights lie."""
    square = np.repeat(moments.square, len(rows) // len(moments.square), axis=0)
    return np.asarray(square.reshape(rows.shape))


def _outputs_first(node: ir.Node, weight: Array) -> Array:
    """A layer's weight with its outputs first; and a weight with outputs first as it lies."""
    return weight if output_axis(node) == 0 else np.ascontiguousarray(weight.T)
