"""A graph made ready for int8: what only looks like a layer of its own is folded into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.onnx_structure import array_of
from convkit.onnx_typing import opset_of
from convkit.quantization.exposed_weights import expose_weights
from convkit.quantization.layers import int_attribute, is_constant
from convkit.quantization.small_constants import fold_small_constants

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]


def prepare(model: ir.Model, folder: Path) -> None:
    """Folds what int8 has no kernels for into layers that it has, in place.

    Constants become initializers. BatchNormalization, and sums and products with a number for each
    channel, go into the convolution before them; means over all of an image become
    GlobalAveragePool; zeros put around an image become the padding of the convolution that reads
    it. What the graph computes stays the same, up to float32 rounding.

    Args:
        model: typed.
        folder: where its weights lie.
    """
    from onnx_ir.passes import common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    fold_small_constants(model, folder)
    expose_weights(model, folder)
    folding = _Folding(model, folder)
    for node in list(model.graph):
        if node.op_type == "ReduceMean":
            folding.fold_mean(node)
        elif node.op_type in ("BatchNormalization", "Mul", "Add", "Sub"):
            folding.fold_scaling(node)
        elif node.op_type == "Pad":
            folding.fold_padding(node)


class _Folding:
    def __init__(self, model: ir.Model, folder: Path) -> None:
        self._graph = model.graph
        self._folder = folder
        self._opset = opset_of(model, "")

    def _array(self, value: ir.Value | None) -> Array | None:
        if value is None or not is_constant(value):
            return None
        return array_of(value.const_value, self._folder)

    def fold_scaling(self, node: ir.Node) -> None:
        """Folds `x * factor + term`, a number for each channel, into the Conv that makes x."""
        index = 0
        if node.op_type in ("Mul", "Add") and is_constant_input(node, 0):
            index = 1
        data = node.inputs[index]
        convolution = data.producer() if data is not None else None
        if data is None or convolution is None or not self._is_private(convolution, data):
            return
        weight = self._array(convolution.inputs[1])
        if weight is None or weight.dtype != np.float32 or len(node.outputs) != 1:
            return
        bias = convolution.inputs[2] if len(convolution.inputs) > 2 else None
        if bias is not None and not is_constant(bias):
            return
        scaling = self._scaling(node, 1 - index, len(weight), weight.ndim)
        if scaling is None:
            return
        factor, term = scaling
        old = np.zeros(len(weight)) if bias is None else self._array(bias)
        assert old is not None
        shape = (-1, *[1] * (weight.ndim - 1))
        self._replace(convolution, 1, (weight * factor.reshape(shape)).astype(np.float32))
        self._replace(convolution, 2, (old * factor + term).astype(np.float32))
        self._remove(node, data)

    def _is_private(self, node: ir.Node, value: ir.Value) -> bool:
        return (
            node.op_type == "Conv"
            and node.domain in ("", "ai.onnx")
            and node.graph is self._graph
            and len(value.uses()) == 1
            and not value.is_graph_output()
        )

    def _scaling(
        self, node: ir.Node, other: int, count: int, rank: int
    ) -> tuple[Array, Array] | None:
        """Factor and term of each channel, float64."""
        if node.op_type == "BatchNormalization":
            arrays = [self._array(value) for value in node.inputs[1:]]
            if int_attribute(node, "training_mode", 0):
                return None
            scale, shift, mean, variance = (
                None if array is None else array.astype(np.float64) for array in arrays
            )
            if scale is None or shift is None or mean is None or variance is None:
                return None
            epsilon = node.attributes.get("epsilon")
            factor = scale / np.sqrt(variance + (1e-5 if epsilon is None else epsilon.as_float()))
            return factor, shift - mean * factor
        given = self._array(node.inputs[other])
        if given is None or given.dtype != np.float32 or given.ndim > rank:
            return None
        shape = (1,) * (rank - given.ndim) + given.shape
        if any(size != 1 for axis, size in enumerate(shape) if axis != 1):
            return None
        if shape[1] not in (1, count):
            return None
        numbers = np.broadcast_to(given.reshape(-1).astype(np.float64), (count,))
        if node.op_type == "Mul":
            return numbers, np.zeros(count)
        return np.ones(count), -numbers if node.op_type == "Sub" else numbers

    def fold_mean(self, node: ir.Node) -> None:
        """ReduceMean over all but batch and channels as GlobalAveragePool."""
        import onnx_ir as ir

        data, out = node.inputs[0], node.outputs[0]
        if data is None or data.shape is None or len(data.shape) < 3:
            return
        rank = len(data.shape)
        axes: list[int] | None = None
        if "axes" in node.attributes:
            axes = list(node.attributes["axes"].as_ints())
        if len(node.inputs) > 1:
            given = self._array(node.inputs[1])
            axes = None if given is None else [int(axis) for axis in given.reshape(-1)]
        if axes is None or sorted(axis % rank for axis in axes) != list(range(2, rank)):
            return
        pool = ir.node("GlobalAveragePool", [data], name=node.name)
        made, new = pool.outputs[0], [pool]
        made.type, made.shape = out.type, ir.Shape([*data.shape[:2], *[1] * (rank - 2)])
        if not int_attribute(node, "keepdims", 1):
            made.name = f"{out.name}_pooled"
            flatten = ir.node("Flatten", [made], {"axis": 1}, name=f"{node.name}_flat")
            made, new = flatten.outputs[0], [pool, flatten]
            made.type, made.shape = out.type, out.shape
        name = out.name
        self._graph.insert_before(node, new)
        out.replace_all_uses_with(made, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        out.name, made.name = None, name

    def fold_padding(self, node: ir.Node) -> None:
        """Pad with zeros, of an image's sides alone, into the convolutions that read it."""
        import onnx_ir as ir

        data, out = node.inputs[0], node.outputs[0]
        mode = node.attributes.get("mode")
        if data is None or out.is_graph_output() or not out.uses():
            return
        if mode is not None and mode.as_string() != "constant":
            return
        if any(value is not None for value in node.inputs[3:]):
            return
        pads = self._array(node.inputs[1] if len(node.inputs) > 1 else None)
        if "pads" in node.attributes:
            pads = np.array(node.attributes["pads"].as_ints())
        filler = self._filler(node)
        if pads is None or filler != 0 or np.any(pads < 0):
            return
        rank = len(pads) // 2
        if rank < 3 or pads[0] or pads[1] or pads[rank] or pads[rank + 1]:
            return
        users = [use.node for use in out.uses()]
        if not all(self._pads_itself(user, out) for user in users):
            return
        more = [*pads[2:rank], *pads[rank + 2 :]]
        for user in users:
            given = user.attributes.get("pads")
            own = list(given.as_ints()) if given is not None else [0] * len(more)
            sums = [int(a) + int(b) for a, b in zip(own, more, strict=True)]
            user.attributes["pads"] = ir.AttrInt64s("pads", sums)
            user.replace_input_with(0, data)
        self._graph.remove(node, safe=True)

    def _filler(self, node: ir.Node) -> float | None:
        if "value" in node.attributes:
            return node.attributes["value"].as_float()
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if value is None:
            return 0.0
        array = self._array(value)
        return None if array is None else float(array.reshape(-1)[0])

    def _pads_itself(self, node: ir.Node, value: ir.Value) -> bool:
        auto = node.attributes.get("auto_pad")
        return (
            node.op_type == "Conv"
            and node.domain in ("", "ai.onnx")
            and node.inputs[0] is value
            and (auto is None or auto.as_string() in ("NOTSET", "VALID"))
        )

    def _replace(self, node: ir.Node, index: int, array: Array) -> None:
        """Gives a node a constant of its own."""
        replace_constant(self._graph, node, index, array)

    def _remove(self, node: ir.Node, data: ir.Value) -> None:
        """Takes a node out; what it read gets the name of what it gave."""
        out = node.outputs[0]
        name = out.name
        out.replace_all_uses_with(data, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        out.name, data.name = None, name


def replace_constant(graph: ir.Graph, node: ir.Node, index: int, array: Array) -> None:
    """Gives input `index` of a node a constant of its own; what nobody reads any more goes."""
    import onnx_ir as ir

    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and len(old.uses()) == 1 and old.name in graph.initializers:
        old.const_value = ir.tensor(array, name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    base = (old.name if old is not None else None) or f"{node.name}_{index}"
    name, count = f"{base}_own", 1
    while name in graph.initializers:
        count += 1
        name = f"{base}_own_{count}"
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def is_constant_input(node: ir.Node, index: int) -> bool:
    """Whether an input of a node is known beforehand."""
    value = node.inputs[index]
    return value is not None and is_constant(value)
