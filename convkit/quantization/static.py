"""Static int8: weights and activations as integers whose scales are known beforehand.

The graph keeps its operators; pairs of QuantizeLinear and DequantizeLinear say what is held in
8 bits, and the runtime replaces what lies between them by kernels of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.errors import UnsupportedError
from convkit.naming import listed
from convkit.onnx_structure import array_of
from convkit.onnx_typing import opset_of
from convkit.quantization.layer_weights import corrected_bias, layer_weight
from convkit.quantization.layers import output_axis
from convkit.quantization.moments import Moments
from convkit.quantization.placement import Bounds, Placement, data_inputs, place
from convkit.quantization.preparation import replace_constant
from convkit.quantization.targets import Target
from convkit.quantization.weights import QuantizedWeight

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

PER_CHANNEL_OPSET = 13
"""The first whose DequantizeLinear takes a scale for each channel. Source: ONNX Changelog.md."""

_LIMIT = 127
_REDUCED_LIMIT = 64
"""255 * 64 + 255 * 64 fits 16 bits, which AVX2 and AVX-512 without VNNI add two products in.

Source: onnxruntime, "Quantize ONNX Models", when to use reduce-range.
"""

_NAMES_SHOWN = 6


@dataclass(frozen=True)
class StaticSettings:
    """How to quantize statically.

    Attributes:
        is_per_channel: a scale for each output of a weight; None: as the target has it.
        moments: of layers by node name, as data show them. With them weights are rounded to make
            up for each other's errors, and biases for the mean error that is left.
        compensates: rounds so.
        corrects_biases: corrects so.
        known: weights in integers, kept for when the same layers are quantized again beside others.
    """

    is_per_channel: bool | None = None
    moments: Mapping[str, Moments] = field(default_factory=dict)
    compensates: bool = True
    corrects_biases: bool = True
    known: dict[tuple[str, bool, float], QuantizedWeight] = field(default_factory=dict)


def quantize_static(
    model: ir.Model,
    folder: Path,
    ranges: Mapping[str, Bounds],
    target: Target,
    settings: StaticSettings | None = None,
    *,
    keep: frozenset[str] = frozenset(),
    note: Callable[[str], None],
) -> Placement:
    """Quantizes the layers of `model` and what lies between them, in place.

    Args:
        model: typed, prepared (see `prepare`), at opset 13 or later for scales per channel.
        folder: where its weights lie.
        ranges: name of each float value -> what it holds on representative data.
        target: what the result is for.
        settings: None: the target's own.
        keep: names of nodes that stay float.
        note: takes sentences for the report.

    Returns:
        What was placed where, of the graph as it was.

    Raises:
        UnsupportedError: there is no layer to quantize.
    """
    settings = settings or StaticSettings()
    opset = opset_of(model, "")
    placement = place(model, folder, ranges, target, opset, keep)
    layers = [node for node in placement.nodes if len(node.inputs) > 1 and _weighs(node)]
    if not layers:
        raise UnsupportedError(
            "The model has no layer that can be quantized to int8.",
            why=_told(placement) or "It holds no Conv, Gemm or MatMul with constant weights.",
            hint="Half precision needs none:  --fp16",
        )
    for line in _told(placement):
        note(line)
    is_per_channel = settings.is_per_channel
    if is_per_channel is None:
        is_per_channel = target.is_per_channel
    if is_per_channel and opset < PER_CHANNEL_OPSET:
        note(f"One scale for each weight: opset {opset} has none for each channel.")
        is_per_channel = False
    _Writing(model, folder, target, placement, is_per_channel, settings).run()
    return placement


def _weighs(node: ir.Node) -> bool:
    return node.op_type in ("Conv", "Gemm", "MatMul")


def _told(placement: Placement) -> list[str]:
    """Why layers stay float, a line for each cause."""
    by_cause: dict[str, list[str]] = {}
    for node, why in placement.reasons.items():
        label = f"{node.name or node.outputs[0].name} ({node.op_type})"
        by_cause.setdefault(why, []).append(label)
    return [
        f"fp32: {why}: {listed(names, _NAMES_SHOWN)}."
        for why, names in sorted(by_cause.items(), key=lambda item: -len(item[1]))
    ]


class _Writing:
    """Writes the pairs of Q and DQ that a placement asks for into the graph."""

    def __init__(
        self,
        model: ir.Model,
        folder: Path,
        target: Target,
        placement: Placement,
        is_per_channel: bool,
        settings: StaticSettings,
    ) -> None:
        self._graph = model.graph
        self._folder = folder
        self._target = target
        self._placement = placement
        self._is_per_channel = is_per_channel
        self._settings = settings
        self._names = {value.name for node in self._graph for value in node.outputs}
        self._names |= {value.name for value in self._graph.inputs}
        self._names |= set(self._graph.initializers)
        self._weights: dict[tuple[ir.Value, int | None], tuple[ir.Value, QuantizedWeight]] = {}
        self._scales: dict[ir.Value, np.float32] = {}

    def run(self) -> None:
        readers = {
            value: [
                (node, index)
                for node in self._placement.nodes
                for index in data_inputs(node)
                if node.inputs[index] is value
            ]
            for value in self._placement.spans
        }
        makers = {
            self._placement.output_of(node): node
            for node in self._placement.nodes
            if self._placement.output_of(node) in self._placement.spans
        }
        makers |= {
            value: node
            for node in self._placement.nodes
            for value in node.outputs[1:]
            if value in self._placement.spans
        }
        for value, span in self._placement.spans.items():
            self._scales[value], zero = self._parameters(span)
            self._quantize(value, zero, readers[value], makers.get(value))
        for node in self._placement.nodes:
            if _weighs(node):
                self._quantize_weight(node)
        for name in [n for n, v in self._graph.initializers.items() if _is_idle(v)]:
            del self._graph.initializers[name]

    def _parameters(self, span: tuple[float, float]) -> tuple[np.float32, Array]:
        """Scale and zero point of an activation."""
        low, high = span
        dtype = np.dtype(self._target.activation)
        info = np.iinfo(dtype)
        if self._target.has_symmetric_activations:
            scale = max(-low, high) / info.max
            zero = 0
        else:
            scale = (high - low) / (info.max - info.min)
            zero = round(info.min - low / scale) if scale > 0 else 0
        smallest = float(np.finfo(np.float32).tiny)
        return np.float32(scale if scale > smallest else 1.0), np.array(zero, dtype)

    def _quantize(
        self,
        value: ir.Value,
        zero: Array,
        readers: list[tuple[ir.Node, int]],
        maker: ir.Node | None,
    ) -> None:
        """Puts Q and DQ behind a value.

        All that read a value made in int8 read it from there, since the kernel gives nothing else.
        """
        import onnx_ir as ir

        name = value.name or ""
        if maker is not None:
            value = self._unfolded(maker, value)
        users = [(use.node, use.idx) for use in value.uses()] if maker is not None else readers
        scale, offset = (
            self._constant(f"{name}_scale", self._scales_of(name, value)),
            self._constant(f"{name}_zero_point", zero),
        )
        quantize = ir.node("QuantizeLinear", [value, scale, offset], name=self._fresh(f"{name}_Q"))
        held = quantize.outputs[0]
        held.name = self._fresh(f"{name}_quantized")
        held.shape, held.type = value.shape, ir.TensorType(ir.DataType.from_numpy(zero.dtype))
        widen = ir.node("DequantizeLinear", [held, scale, offset], name=self._fresh(f"{name}_DQ"))
        again = widen.outputs[0]
        again.shape, again.type = value.shape, value.type
        again.name = self._fresh(f"{name}_dequantized")
        outputs = [i for i, out in enumerate(self._graph.outputs) if out is value]
        place = value.producer()
        if place is None:
            self._graph.insert_before(self._graph[0], [quantize, widen])
        else:
            self._graph.insert_after(place, [quantize, widen])
        for node, index in users:
            node.replace_input_with(index, again)
        if outputs and maker is not None:
            value.name, again.name = again.name, name
            for index in outputs:
                self._graph.outputs[index] = again

    def _scales_of(self, name: str, value: ir.Value) -> Array:
        for known, scale in self._scales.items():
            if known is value or known.name == name:
                return np.array(scale, np.float32)
        raise KeyError(name)

    def _unfolded(self, maker: ir.Node, value: ir.Value) -> ir.Value:
        """What a node gives where its activation is gone, under the activation's name."""
        activation = self._placement.folded.get(maker)
        if activation is None or activation.outputs[0] is not value:
            return value
        out = maker.outputs[0]
        name = value.name
        value.replace_all_uses_with(out, replace_graph_outputs=True)
        self._graph.remove(activation, safe=True)
        value.name, out.name = None, name
        self._scales[out] = self._scales[value]
        return out

    def _quantize_weight(self, node: ir.Node) -> None:
        weight = node.inputs[1]
        assert weight is not None
        axis = output_axis(node) if self._is_per_channel else None
        if (weight, axis) not in self._weights:
            self._weights[weight, axis] = self._written(node, weight, axis)
        widened, made = self._weights[weight, axis]
        node.replace_input_with(1, widened)
        numbers = self._bias(node)
        moments = self._settings.moments.get(node.name or "")
        if moments is not None and self._corrects(node):
            array = array_of(weight.const_value, self._folder)
            numbers = corrected_bias(node, array, numbers, made, moments)
        if numbers is None:
            return
        if self._target.weights_as_float:
            replace_constant(self._graph, node, 2, numbers.astype(np.float32))
        else:
            self._quantize_bias(node, numbers, made)

    def _corrects(self, node: ir.Node) -> bool:
        return self._settings.corrects_biases and node.op_type != "MatMul"

    def _bias(self, node: ir.Node) -> Array | None:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return None if bias is None else array_of(bias.const_value, self._folder).reshape(-1)

    def _rounded(self, node: ir.Node, weight: ir.Value) -> QuantizedWeight:
        """The weight in integers; once, if a layer is quantized again beside other ones."""
        scale = self._input_scale(node)
        key = (node.name or "", self._is_per_channel, scale)
        known = self._settings.known
        if key not in known:
            known[key] = layer_weight(
                node,
                array_of(weight.const_value, self._folder),
                self._bias(node),
                is_per_channel=self._is_per_channel,
                limit=_REDUCED_LIMIT if self._target.reduces_range else _LIMIT,
                input_scale=scale,
                moments=self._settings.moments.get(node.name or ""),
                compensates=self._settings.compensates,
                corrects_bias=self._corrects(node),
            )
        return known[key]

    def _written(
        self, node: ir.Node, weight: ir.Value, axis: int | None
    ) -> tuple[ir.Value, QuantizedWeight]:
        """The weight behind its DQ, with a Q before it where the target wants floats."""
        import onnx_ir as ir

        made = self._rounded(node, weight)
        name = weight.name or ""
        scale = self._constant(f"{name}_scale", made.scales)
        zero = self._constant(f"{name}_zero_point", np.zeros(made.scales.shape, np.int8))
        attributes = {} if axis is None else {"axis": axis}
        nodes = []
        if self._target.weights_as_float:
            pair = ir.node("QuantizeLinear", [weight, scale, zero], attributes)
            pair.name = self._fresh(f"{name}_Q")
            held = pair.outputs[0]
            held.name = self._fresh(f"{name}_quantized")
            nodes.append(pair)
        else:
            held = self._constant(f"{name}_quantized", made.values)
        widen = ir.node("DequantizeLinear", [held, scale, zero], attributes)
        widen.name = self._fresh(f"{name}_DQ")
        out = widen.outputs[0]
        out.name = self._fresh(f"{name}_dequantized")
        out.shape, out.type = weight.shape, weight.type
        self._graph.insert_before(self._graph[0], [*nodes, widen])
        return out, made

    def _input_scale(self, node: ir.Node) -> float:
        """The scale of a layer's data, which are quantized by now."""
        widen = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert widen is not None
        scale = widen.inputs[1]
        assert scale is not None
        return float(array_of(scale.const_value, self._folder))

    def _quantize_bias(self, node: ir.Node, numbers: Array, weight: QuantizedWeight) -> None:
        """The bias as int32 in the unit of the products that it is added to."""
        import onnx_ir as ir

        numbers = numbers.astype(np.float64)
        unit = self._input_scale(node) * weight.scales.astype(np.float64)
        alpha = node.attributes.get("alpha")
        if alpha is not None:
            unit = unit * alpha.as_float()
        unit = unit.astype(np.float32)
        limit = np.iinfo(np.int32).max
        integers = np.clip(np.rint(numbers / unit.astype(np.float64)), -limit, limit)
        name = f"{node.name}_bias"
        held = self._constant(f"{name}_quantized", integers.astype(np.int32))
        scale = self._constant(f"{name}_scale", unit)
        inputs = [held, scale, self._constant(f"{name}_zero", np.zeros(unit.shape, np.int32))]
        attributes = {} if unit.ndim == 0 else {"axis": 0}
        widen = ir.node("DequantizeLinear", inputs, attributes, name=self._fresh(f"{name}_DQ"))
        out = widen.outputs[0]
        out.name = self._fresh(f"{name}_dequantized")
        out.shape, out.type = ir.Shape(numbers.shape), ir.TensorType(ir.DataType.FLOAT)
        self._graph.insert_before(self._graph[0], widen)
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, out)

    def _constant(self, name: str, array: Array) -> ir.Value:
        import onnx_ir as ir

        fresh = self._fresh(name)
        tensor = ir.tensor(array, name=fresh)
        value = ir.Value(
            name=fresh,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def _fresh(self, name: str) -> str:
        fresh, count = name, 1
        while fresh in self._names:
            count += 1
            fresh = f"{name}_{count}"
        self._names.add(fresh)
        return fresh


def _is_idle(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output() and not value.is_graph_input()
