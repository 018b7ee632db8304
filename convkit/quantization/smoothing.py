"""Part of the range of activations moved into the weights that read them (SmoothQuant).

Behind a normalization a few channels are often far larger than the rest, and take the steps of all
others. The normalization's own factors can divide such channels, and the weights that read them
multiply them back; the graph computes the same. Where something else reads the normalized values
too, a product for the layers alone does it, if it is worth its time.

Source: Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models, 2022, equations 3 and 4: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_structure import array_of
from convkit.quantization.channel_noise import expected_noise
from convkit.quantization.channel_ranges import channel_ranges
from convkit.quantization.layers import (
    is_constant,
    is_float32,
    output_axis,
    rank_of,
    refusal_of,
)
from convkit.quantization.observing import Batches
from convkit.quantization.preparation import replace_constant
from convkit.step import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]


_ALPHAS = (0.5, 0.65, 0.8, 0.9)
"""What is tried for each activation. Source: Xiao et al., 2022, section 5.1 (0.5 to 0.9)."""

_LEAST_GAIN = 0.5
"""Noise has to fall to this for a product of its own, which takes time, before the layers."""

_IN_INT8 = frozenset(
    ("AveragePool", "Clip", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "MaxPool", "Relu")
)
"""Makers of values that may be int8 already: a product behind them would make floats of them."""


@dataclass(frozen=True)
class Smoothable:
    """A value that layers read.

    Attributes:
        value: what they read; its last axis is smoothed.
        factors: (node, input) of the constants that make it: they are divided. Empty: others read
            the value too, or nothing makes it so; the layers get a product before them.
        readers: the layers: their weights are multiplied.
    """

    value: ir.Value
    factors: tuple[tuple[ir.Node, int], ...]
    readers: tuple[ir.Node, ...]


def smooth(
    model: ir.Model,
    folder: Path,
    data: Batches,
    alpha: float | None = None,
    *,
    apart: frozenset[str] = frozenset(),
    progress: Progress,
    note: Callable[[str], None],
) -> int:
    """Smooths in place every activation that gains by it; how many.

    Args:
        model: typed, its constants initializers.
        folder: where its weights lie.
        data: samples of its inputs.
        alpha: share of the range that moves: 0 none, 1 all. None: for each activation that of a few
            which makes the least noise.
        apart: names of layers that see each row at a scale of its own, and need no smoothing.
        progress: hears how far it is.
        note: takes sentences for the report.
    """
    places = [
        place
        for place in smoothable(model.graph)
        if not any(node.name in apart for node in place.readers)
    ]
    axes = {p.value.name or "": (-1, rank_of(p.value) or 1) for p in places}
    seen = channel_ranges(model, folder, axes, data.batches(1), progress, data.count)
    changed = multiplied = 0
    for place in places:
        found = seen[place.value.name or ""]
        weights = [_inputs_first(node, folder) for node in place.readers]
        heard = np.max([np.abs(weight).max(1) for weight in weights], axis=0)
        absmax = found.absmax.astype(np.float64)
        tried = _ALPHAS if alpha is None else (alpha,)
        candidates = [smoothing_scales(absmax, heard, each) for each in tried]
        before, *after = (
            sum(expected_noise(weight.T[None, :, :, None], found, each) for weight in weights)
            for each in (np.ones(len(absmax)), *candidates)
        )
        if min(after) < before * (1.0 if place.factors else _LEAST_GAIN):
            scales = candidates[int(np.argmin(after))]
            _scale(model.graph, place, scales, weights, folder)
            changed += 1
            multiplied += not place.factors
    if changed:
        extra = f", {multiplied} of them with a product of their own" if multiplied else ""
        note(f"Channels of {changed} activations were smoothed into the layers behind them{extra}.")
    return changed


def _scale(
    graph: ir.Graph, place: Smoothable, scales: Array, weights: list[Array], folder: Path
) -> None:
    for node, index in place.factors:
        constant = node.inputs[index]
        assert constant is not None
        array = array_of(constant.const_value, folder).astype(np.float64)
        replace_constant(graph, node, index, (array / scales).astype(np.float32))
    if not place.factors:
        _multiply(graph, place, 1 / scales)
    for node, weight in zip(place.readers, weights, strict=True):
        scaled = weight * scales[:, None]
        if output_axis(node) == 0:
            scaled = scaled.T
        replace_constant(graph, node, 1, scaled.astype(np.float32))


def _multiply(graph: ir.Graph, place: Smoothable, factors: Array) -> None:
    """Gives the layers the value times a number for each channel."""
    import onnx_ir as ir

    name = f"{place.value.name}_smoothing"
    tensor = ir.tensor(factors.astype(np.float32), name=name)
    constant = ir.Value(
        name=name,
        shape=ir.Shape(factors.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=tensor,
    )
    graph.register_initializer(constant)
    product = ir.node("Mul", [place.value, constant], name=f"{name}_Mul")
    out = product.outputs[0]
    out.name, out.shape, out.type = (
        f"{place.value.name}_smooth",
        place.value.shape,
        place.value.type,
    )
    maker = place.value.producer()
    assert maker is not None
    graph.insert_after(maker, product)
    for node in place.readers:
        node.replace_input_with(0, out)


def smoothing_scales(absmax: Array, heard: Array, alpha: float) -> Array:
    """What each channel is divided by; 1 where it is silent or nobody hears it.

    Args:
        absmax: largest magnitude of each channel.
        heard: largest magnitude of the weights that it is multiplied with.
        alpha: share of the range that moves.
    """
    is_used = (absmax > 0) & (heard > 0)
    scales = np.ones(len(absmax))
    scales[is_used] = absmax[is_used] ** alpha / heard[is_used] ** (1 - alpha)
    return np.asarray(scales / np.exp(np.log(scales).mean()))  # the factors keep their size


def smoothable(graph: ir.Graph) -> list[Smoothable]:
    """Values whose last axis layers alone multiply, in the graph's order."""
    found = []
    for node in graph:
        value = node.outputs[0]
        if (rank_of(value) or 0) < 2 or not is_float32(value):
            continue
        users = tuple(dict.fromkeys(use.node for use in value.uses()))
        readers = tuple(user for user in users if _reads(user, value))
        if not readers:
            continue
        factors = _factors(node)
        if factors and users == readers and not value.is_graph_output():
            found.append(Smoothable(value, factors, readers))
        elif rank_of(value) != 2 and node.op_type not in _IN_INT8:
            found.append(Smoothable(value, (), readers))
    return found


def _reads(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or refusal_of(node) is not None:
        return False
    return node.inputs[0] is value


def _factors(node: ir.Node) -> tuple[tuple[ir.Node, int], ...]:
    """The constants for each channel that a normalization ends with; none for other nodes."""
    if node.domain not in ("", "ai.onnx"):
        return ()
    if node.op_type == "LayerNormalization":
        indices = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
        axis = node.attributes.get("axis")
        is_last = axis is None or axis.as_int() in (-1, (rank_of(node.outputs[0]) or 0) - 1)
        places = tuple((node, index) for index in indices)
        return places if is_last and all(_is_vector(n.inputs[i]) for n, i in places) else ()
    if node.op_type == "Mul":
        index = _vector_input(node)
        return () if index is None else ((node, index),)
    if node.op_type == "Add":
        index = _vector_input(node)
        before = None if index is None else node.inputs[1 - index]
        product = before.producer() if before is not None else None
        if index is None or before is None or product is None or product.op_type != "Mul":
            return ()
        inner = _vector_input(product)
        if inner is None or len(before.uses()) != 1 or before.is_graph_output():
            return ()
        return ((product, inner), (node, index))
    return ()


def _vector_input(node: ir.Node) -> int | None:
    """Which input is a number for each channel, the other an activation; None: neither."""
    for index in (0, 1):
        other = node.inputs[1 - index]
        if _is_vector(node.inputs[index]) and other is not None and not is_constant(other):
            return index if (rank_of(other) or 0) >= 2 else None
    return None


def _is_vector(value: ir.Value | None) -> bool:
    if value is None or not is_constant(value) or rank_of(value) != 1:
        return False
    return value.shape is not None and value.shape[0] != 1


def _inputs_first(node: ir.Node, folder: Path) -> Array:
    """A layer's weight as (inputs, outputs), float64."""
    weight = node.inputs[1]
    assert weight is not None
    array = array_of(weight.const_value, folder).astype(np.float64)
    return array.T if output_axis(node) == 0 else array
