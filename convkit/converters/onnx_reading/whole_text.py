"""Makes the graph of a language model that continues a text one that takes whole texts.

Frameworks have no place for a cache that is handed from call to call in inputs and outputs of its
own. Without it the graph is a function of ids and mask alone, and computes the same logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import TensorSpec
from convkit.onnx_language_graph import LanguageGraph, empty_past, language_graph

if TYPE_CHECKING:
    import onnx

_LOST = "the cache of keys and values is left out: each call computes its whole text"
_MARK = "whole_text"


def to_whole_text(proto: onnx.ModelProto, folder: Path) -> str:
    """Changes the graph of a language model with a cache in place; other models stay.

    Args:
        proto: the model.
        folder: where its configuration lies, if it has one.

    Returns:
        What is lost, a sentence for the report; empty where nothing is.

    Raises:
        UnsupportedError: its cache is laid out in a way that cannot be told.
    """
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    takes = [value for value in graph.input if value.name not in constants]
    language = language_graph(_specs(takes), _specs(graph.output), folder)
    if language is None or not (language.past or language.positions):
        return ""
    language.check(graph.name or "The model")
    _keep(graph.node, [*_beginning(language), *graph.node])
    filled = {spec.name for spec in language.past}
    filled |= {language.positions.name} if language.positions else set()
    _keep(graph.input, [value for value in graph.input if value.name not in filled])
    _keep(graph.output, [value for value in graph.output if value.name == language.logits.name])
    del graph.value_info[:]  # lengths have other names now
    for value in graph.input:
        if language.mask is not None and value.name == language.mask.name:
            ids = next(value for value in graph.input if value.name == language.ids.name)
            value.type.tensor_type.shape.CopyFrom(ids.type.tensor_type.shape)
    return _LOST if language.past else ""


def _beginning(language: LanguageGraph) -> list[onnx.NodeProto]:
    """Positions from 0 and a cache that holds nothing, in operators that opset 11 has as well."""
    from onnx import TensorProto, helper

    nodes: list[onnx.NodeProto] = []

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def whole(output: str, *values: int, shape: Sequence[int] = ()) -> str:
        tensor = helper.make_tensor("", TensorProto.INT64, shape, values)
        return add("Constant", (), f"{_MARK}/{output}", value=tensor)

    sizes = add("Shape", [language.ids.name], f"{_MARK}/sizes")
    if language.positions is not None:
        count = add("Gather", [sizes, whole("second", 1)], f"{_MARK}/count")
        row = add("Range", [whole("zero", 0), count, whole("one", 1)], f"{_MARK}/row")
        rows = add("Expand", [row, sizes], f"{_MARK}/rows")
        add("Cast", [rows], language.positions.name, to=_code(language.positions))
    batch = add("Gather", [sizes, whole("first", 0, shape=[1])], f"{_MARK}/batch")
    for spec in language.past:
        tail = empty_past(spec, 1).shape[1:]
        rest = whole(f"{spec.name}/rest", *tail, shape=[len(tail)])
        shape = add("Concat", [batch, rest], f"{_MARK}/{spec.name}/shape", axis=0)
        zero = helper.make_tensor("", _code(spec), [1], [0])
        add("ConstantOfShape", [shape], spec.name, value=zero)
    return nodes


def _code(spec: TensorSpec) -> int:
    from onnx import TensorProto

    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    return int(TensorProto.DataType.Value(names.get(spec.dtype, spec.dtype.upper())))


def _specs(values: Iterable[onnx.ValueInfoProto]) -> list[TensorSpec]:
    from onnx import helper

    found = []
    for value in values:
        tensor = value.type.tensor_type
        sizes = [
            d.dim_param or (d.dim_value if d.HasField("dim_value") else "?")
            for d in tensor.shape.dim
        ]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else ""
        found.append(TensorSpec(value.name, dtype, tuple(sizes)))
    return found


def _keep(values: Any, kept: Sequence[onnx.ValueInfoProto]) -> None:
    """Leaves these in a repeated field; copies, for what is deleted from it becomes empty."""
    copies = [type(value).FromString(value.SerializeToString()) for value in kept]
    del values[:]
    values.extend(copies)
