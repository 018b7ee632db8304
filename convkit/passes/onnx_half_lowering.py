"""Carries out a plan: types, constants, casts. The graph is valid after it by construction.

Each value gets the type the plan stores it in. Where a reader wants the other type, one Cast per
value, placed right behind the value, serves all of them, those inside bodies included. A constant
needs no Cast: each reader gets it in its own type, the fp32 one unrounded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.onnx_structure import array_of
from convkit.onnx_typing import graphs_of, nodes_of
from convkit.passes.onnx_half_constants import Half, tensor_of
from convkit.passes.onnx_half_islands import Plan
from convkit.passes.onnx_half_masks import mask_replaced
from convkit.passes.onnx_half_types import DTYPE_ATTRIBUTES, GENERATORS, is_float

if TYPE_CHECKING:
    import onnx_ir as ir

_LAZY_BYTES = 1024


def lower(model: ir.Model, plan: Plan, folder: Path) -> None:
    """Changes `model` in place as `plan` says; weights are converted when they are written."""
    _Lowering(model, plan, folder).run()


class _Lowering:
    def __init__(self, model: ir.Model, plan: Plan, folder: Path) -> None:
        self._model = model
        self._plan = plan
        self._half: Half = plan.half
        self._folder = folder
        self._names = _names(model.graph)
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        graphs = list(graphs_of(self._model.graph))
        # Everything is decided on the untouched graph, then changed.
        values = [value for graph in graphs for value in _floats(graph)]
        wants = {value: self._readers(value) for value in values}
        stored = {v for v in values if tensor_of(v) is None and self._plan.is_stored_half(v)}
        outputs = [
            (graph, index, value, self._plan.output_wants_half(value, graph, self._model.graph))
            for graph in graphs
            for index, value in enumerate(graph.outputs)
            if is_float(value)
        ]
        fp32 = {value: value.dtype for value in values}
        for node in nodes_of(self._model.graph):
            if node.op_type in GENERATORS and is_float(node.outputs[0]):
                self._name_type(node, node.outputs[0].dtype)
            elif node in self._plan.half_nodes:
                self._set_attributes(node)
        for value in stored:
            self._retype(value)
        for value, readers in wants.items():
            if tensor_of(value) is not None:
                self._lower_constant(value, readers)
            else:
                self._lower_value(value, readers, value in stored, fp32[value])
        for graph, index, value, want in outputs:
            self._lower_output(graph, index, value, want, fp32[value])
        for graph in graphs:
            _drop_idle(graph)

    def _readers(self, value: ir.Value) -> list[tuple[ir.Node, int, bool]]:
        found = []
        for use in value.uses():
            want = self._plan.wants_half(use.node, use.idx)
            if want is not None:
                found.append((use.node, use.idx, want))
        return found

    def _retype(self, value: ir.Value) -> None:
        import onnx_ir as ir

        value.type = ir.TensorType(self._half.dtype)

    def _set_attributes(self, node: ir.Node) -> None:
        """Attributes that name the output's type."""
        import onnx_ir as ir

        slots = self._plan.slots[node]
        if not any(slots.outputs):
            return
        if node.op_type in DTYPE_ATTRIBUTES:
            self._name_type(node, self._half.dtype)
        if node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            array = given.as_tensor().numpy() if given is not None else _zero()
            tensor = ir.tensor(self._half.rounded(array), dtype=self._half.dtype)
            node.attributes["value"] = ir.AttrTensor("value", tensor)

    def _name_type(self, node: ir.Node, dtype: ir.DataType | None) -> None:
        """Says the output's type, which may have followed the input's until now."""
        import onnx_ir as ir

        if node.domain in ("", "ai.onnx") and dtype is not None:
            name = DTYPE_ATTRIBUTES[node.op_type]
            node.attributes[name] = ir.AttrInt64(name, int(dtype))

    def _lower_constant(self, value: ir.Value, readers: list[tuple[ir.Node, int, bool]]) -> None:
        in_half = [(node, index) for node, index, want in readers if want]
        if value in self._plan.masks.constants:
            tensor = self._lazy(tensor_of(value), lambda a: mask_replaced(a), value.dtype)
            _set_tensor(value, tensor)
        others = len(readers) > len(in_half) or value.is_graph_output()
        indifferent = len(value.uses()) - len(readers)
        if not in_half and (others or not indifferent):
            return
        tensor = self._lazy(tensor_of(value), self._half.rounded, self._half.dtype)
        if not others:
            self._retype(value)
            _set_tensor(value, tensor)
            return
        twin = self._twin(value, tensor)
        for node, index in in_half:
            node.replace_input_with(index, twin)

    def _twin(self, value: ir.Value, tensor: Any) -> ir.Value:
        """A second constant, in half, beside one that stays fp32."""
        import onnx_ir as ir

        name = self._fresh(value)
        producer = value.producer()
        kind = ir.TensorType(self._half.dtype)
        if producer is None:
            twin = ir.Value(name=name, shape=value.shape, type=kind, const_value=tensor)
            graph = value.graph
            assert graph is not None
            graph.register_initializer(twin)
            return twin
        node = ir.node("Constant", [], {"value": ir.tensor(tensor.numpy(), dtype=kind.dtype)})
        node.outputs[0].name, node.outputs[0].type = name, kind
        node.outputs[0].shape = value.shape
        producer.append(node)
        return node.outputs[0]

    def _lazy(
        self, tensor: Any, change: Callable[[Any], Any], dtype: ir.DataType | None
    ) -> ir.TensorProtocol:
        import onnx_ir as ir

        def changed() -> ir.TensorProtocol:
            return ir.tensor(change(array_of(tensor, self._folder)), dtype=dtype)

        if tensor.nbytes <= _LAZY_BYTES:
            return changed()
        assert dtype is not None
        return ir.LazyTensor(changed, dtype, ir.Shape(tensor.shape), name=tensor.name)

    def _lower_value(
        self,
        value: ir.Value,
        readers: list[tuple[ir.Node, int, bool]],
        is_half: bool,
        fp32: ir.DataType | None,
    ) -> None:
        others = [(node, index) for node, index, want in readers if want is not is_half]
        if not others:
            return
        target = fp32 if is_half else self._half.dtype
        assert target is not None
        cast = self._cast(value, target)
        for node, index in others:
            node.replace_input_with(index, cast)

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The one Cast of a value to a type, behind the value."""
        import onnx_ir as ir

        if (value, dtype) in self._casts:
            return self._casts[value, dtype]
        producer = value.producer()
        source = value
        if producer is not None and producer.op_type == "Cast" and not is_float(producer.inputs[0]):
            inner = producer.inputs[0]
            if inner is not None and inner.dtype is not None and inner.dtype.is_integer():
                source = inner  # from the integer itself: one rounding, no chain of casts
        name = self._fresh(value, dtype)
        node = ir.node("Cast", [source], {"to": int(dtype)}, name=f"{name}_cast")
        cast = node.outputs[0]
        cast.name, cast.type, cast.shape = name, ir.TensorType(dtype), value.shape
        graph = value.graph
        assert graph is not None
        if producer is not None:
            producer.append(node)
        elif len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
        self._casts[value, dtype] = cast
        return cast

    def _lower_output(
        self,
        graph: ir.Graph,
        index: int,
        value: ir.Value,
        want: bool | None,
        fp32: ir.DataType | None,
    ) -> None:
        if want is None or want is (value.dtype == self._half.dtype):
            return
        target = self._half.dtype if want else fp32
        assert target is not None
        if tensor_of(value) is not None:  # a constant handed out
            graph.outputs[index] = self._twin(value, self._lazy_half(value))
            return
        cast = self._cast(value, target)
        graph.outputs[index] = cast
        if graph is self._model.graph and value.name and not value.is_graph_input():
            name = value.name
            value.name = self._fresh(value)
            cast.name = name

    def _lazy_half(self, value: ir.Value) -> ir.TensorProtocol:
        return self._lazy(tensor_of(value), self._half.rounded, self._half.dtype)

    def _fresh(self, value: ir.Value, dtype: ir.DataType | None = None) -> str:
        kind = str((dtype or self._half.dtype).name).lower()
        base = f"{value.name}_{kind}"
        name, count = base, 1
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name


def _names(graph: ir.Graph) -> set[str]:
    names: set[str] = set()
    for each in graphs_of(graph):
        names.update(value.name or "" for value in each.inputs)
        names.update(each.initializers)
    for node in nodes_of(graph):
        names.update(value.name or "" for value in node.outputs)
    return names


def _floats(graph: ir.Graph) -> list[ir.Value]:
    """Float values that a graph itself owns: inputs, initializers, node outputs."""
    owned = [*graph.inputs, *graph.initializers.values()]
    owned += [value for node in graph for value in node.outputs]
    return [value for value in dict.fromkeys(owned) if is_float(value)]


def _zero() -> Any:
    import numpy as np

    return np.zeros(1, np.float32)


def _set_tensor(value: ir.Value, tensor: Any) -> None:
    import onnx_ir as ir

    node = value.producer()
    if node is None:
        value.const_value = tensor
        return
    for name in ("value_float", "value_floats"):
        node.attributes.pop(name, None)
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(tensor.numpy(), dtype=tensor.dtype))


def _drop_idle(graph: ir.Graph) -> None:
    """Removes casts to the type a value already has, and constants nobody reads any more."""
    for node in list(graph):
        if node.op_type == "Cast" and node.domain in ("", "ai.onnx"):
            source, result = node.inputs[0], node.outputs[0]
            if source is None or source.dtype is None or source.dtype != result.dtype:
                continue
            if result.is_graph_output():
                node.op_type = "Identity"
                node.attributes.clear()
            else:
                result.replace_all_uses_with(source)
                graph.remove(node, safe=True)
        elif node.op_type == "Constant":
            result = node.outputs[0]
            if not result.uses() and not result.is_graph_output():
                graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
