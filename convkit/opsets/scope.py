"""What adapters know and need: types, constants and fresh names around the node they rewrite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SMALL_ELEMENTS = 4096
"""Constants up to this size are looked at: axes, sizes, shapes. Larger ones are weights."""


class CannotLower(Exception):
    """This node has no equal in the older opset; the text says why."""


@dataclass
class Scope:
    """A graph being lowered, seen from inside.

    Attributes:
        opset: what its nodes are written in.
        types: value name -> TypeProto, as far as known.
        constants: value name -> TensorProto of initializers and Constant nodes.
        makers: value name -> the node that makes it, for constants computed from constants.
        outer: the graph around it.
        taken: every name in the model, shared by all scopes.
    """

    opset: int
    types: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    makers: dict[str, Any] = field(default_factory=dict)
    outer: Scope | None = None
    taken: set[str] = field(default_factory=set)

    def type_of(self, name: str) -> Any | None:
        """The TypeProto of a value; None where it is not known."""
        if name in self.types:
            return self.types[name]
        return self.outer.type_of(name) if self.outer else None

    def dtype_of(self, name: str) -> int:
        """Element type of a tensor, a TensorProto.DataType; 0 where it is not known."""
        found = self.type_of(name)
        return int(found.tensor_type.elem_type) if found is not None else 0

    def shape_of(self, name: str) -> list[int | None] | None:
        """Sizes of a tensor, None for each that is not known; None where the rank is not known."""
        found = self.type_of(name)
        if found is None or not found.tensor_type.HasField("shape"):
            return None
        return [
            d.dim_value if d.HasField("dim_value") else None for d in found.tensor_type.shape.dim
        ]

    def rank_of(self, name: str) -> int:
        """The number of dimensions. Raises CannotLower where it is not known."""
        shape = self.shape_of(name)
        if shape is None:
            raise CannotLower(f"the rank of '{name}' is not known")
        return len(shape)

    def constant(self, name: str) -> Any | None:
        """The value as an array where the file fixes it; None otherwise."""
        from onnx import TensorProto, numpy_helper

        tensor = self.constants.get(name)
        if tensor is not None:
            if tensor.data_location == TensorProto.EXTERNAL:
                return None
            return numpy_helper.to_array(tensor)
        maker = self.makers.get(name)
        if maker is not None:
            return self._computed(name, maker)
        return self.outer.constant(name) if self.outer else None

    def ints(self, name: str, what: str) -> list[int]:
        """Integers that the file fixes. Raises CannotLower where they are computed."""
        array = self.constant(name)
        if array is None:
            raise CannotLower(f"its {what} are computed while the model runs")
        return [int(value) for value in array.reshape(-1)]

    def fresh(self, hint: str) -> str:
        """A name that the model does not have."""
        number = 0
        while (name := f"{hint}_{number}") in self.taken:
            number += 1
        self.taken.add(name)
        return name

    def hold(self, hint: str, values: Any, dtype: Any = "int64") -> tuple[Any, str]:
        """A Constant node of these values, and the name of its output."""
        import numpy as np
        from onnx import helper, numpy_helper

        name = self.fresh(hint)
        tensor = numpy_helper.from_array(np.asarray(values, dtype))
        self.constants[name] = tensor
        return helper.make_node("Constant", [], [name], value=tensor), name

    def _computed(self, name: str, maker: Any) -> Any | None:
        """Computes a small value from constants with ONNX's reference operators."""
        if maker.domain or len(maker.output) != 1 or _has_graph(maker):
            return None
        if maker.op_type in ("Shape", "Size"):
            return self._measured(maker)
        feeds: dict[str, Any] = {}
        for source in filter(None, maker.input):
            value = self.constant(source)
            if value is None or value.size > _SMALL_ELEMENTS:
                return None
            feeds[source] = value
        return _run_node(maker, feeds, self.opset) if feeds else None

    def _measured(self, maker: Any) -> Any | None:
        import numpy as np

        shape = self.shape_of(maker.input[0])
        if shape is None or None in shape or maker.attribute:
            return None
        sizes = [size for size in shape if size is not None]
        return np.asarray(sizes if maker.op_type == "Shape" else math.prod(sizes), np.int64)


def _run_node(node: Any, feeds: Mapping[str, Any], opset: int) -> Any | None:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in feeds.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(node.output[0])]
    graph = helper.make_graph([node], "constant", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        results: Any = ReferenceEvaluator(model).run(None, dict(feeds))
    except Exception:  # an operator that the evaluator lacks: the value stays unknown
        return None
    return results[0]


def _has_graph(node: Any) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The decoded value of an attribute; `default` where the node does not set it."""
    from onnx import helper

    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default


def changed(
    node: Any,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    drop: Iterable[str] = (),
    operator: str = "",
    **attributes: Any,
) -> Any:
    """A copy of a node with other inputs, outputs or attributes; None as a value drops one."""
    from onnx import NodeProto, helper

    copy = NodeProto()
    copy.CopyFrom(node)
    if operator:
        copy.op_type = operator
    if inputs is not None:
        kept = list(inputs)
        while kept and not kept[-1]:
            kept.pop()
        del copy.input[:]
        copy.input.extend(kept)
    if outputs is not None:
        del copy.output[:]
        copy.output.extend(outputs)
    gone = {*drop, *attributes}
    remaining = [entry for entry in copy.attribute if entry.name not in gone]
    added = [helper.make_attribute(k, v) for k, v in attributes.items() if v is not None]
    del copy.attribute[:]
    copy.attribute.extend([*remaining, *added])
    return copy


def input_of(node: Any, index: int) -> str:
    """The name of an input; "" where the node leaves it out."""
    return node.input[index] if index < len(node.input) else ""
