"""Gives a graph the names of the source: inputs, outputs, dynamic dimensions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convkit.artifact import TensorSpec
from convkit.errors import StepError

if TYPE_CHECKING:
    import onnx_ir

_STACK = re.compile(r"stack_trace|\.fx_node$")


def output_names(specs: Sequence[TensorSpec], count: int) -> list[str]:
    """Names of the source's outputs; `output`, or `output_0` and on, where they are unknown."""
    if len(specs) == count:
        return [spec.name for spec in specs]
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def name_inputs(graph: onnx_ir.Graph, specs: Sequence[TensorSpec]) -> list[str]:
    """Names inputs and their dynamic dimensions as in `specs`, in order, throughout the graph.

    Returns:
        Dynamic dimensions that the graph has fixed, as `input.dimension became size`.
    """
    import onnx_ir

    if len(graph.inputs) != len(specs):
        raise StepError(
            f"The exported graph takes {len(graph.inputs)} inputs, the model {len(specs)}.",
            why=f"graph: {', '.join(str(value.name) for value in graph.inputs)}",
        )
    lost: list[str] = []
    symbols: dict[str, str] = {}
    for value, spec in zip(graph.inputs, specs, strict=True):
        _rename(graph, value, spec.name)
        for axis, wanted in enumerate(spec.shape):
            found = value.shape[axis] if value.shape is not None else wanted
            if isinstance(found, onnx_ir.SymbolicDim) and found.value is not None:
                if found.value.isdigit():
                    lost.append(f"{spec.name}.{wanted} became {found.value}")
                elif isinstance(wanted, str):
                    symbols.setdefault(found.value, wanted)
            elif isinstance(wanted, str) and isinstance(found, int):
                lost.append(f"{spec.name}.{wanted} became {found}")
    _rename_dimensions(graph, symbols)
    return lost


def name_outputs(graph: onnx_ir.Graph, names: Sequence[str]) -> None:
    """Names the outputs in order; one that is an input, a weight or given twice is copied."""
    import onnx_ir

    taken: set[int] = set()
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        if value.producer() is None or id(value) in taken:
            node = onnx_ir.node("Identity", inputs=[value])
            graph.append(node)
            copy = node.outputs[0]
            copy.type, copy.shape = value.type, value.shape
            graph.outputs[index] = value = copy
        taken.add(id(value))
        _rename(graph, value, name)


def drop_traces(model: onnx_ir.Model) -> None:
    """Removes stack traces, which hold paths of this machine; scopes of modules stay."""
    import onnx_ir

    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        for key in [key for key in node.metadata_props if _STACK.search(key)]:
            del node.metadata_props[key]


def _rename(graph: onnx_ir.Graph, value: onnx_ir.Value, name: str) -> None:
    if value.name == name:
        return
    for other in _values(graph):
        if other.name == name and other is not value:
            fresh = f"{name}__inner"
            if other.name in graph.initializers:
                del graph.initializers[other.name]
                other.name = fresh
                graph.register_initializer(other)
            else:
                other.name = fresh
    value.name = name


def _values(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    found = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        found.extend(node.outputs)
    return found


def _rename_dimensions(graph: onnx_ir.Graph, symbols: dict[str, str]) -> None:
    import onnx_ir

    pattern = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b") if symbols else None
    for value in _values(graph):
        if value.shape is None:
            continue
        sizes: list[Any] = []
        for size in value.shape:
            text = size.value if isinstance(size, onnx_ir.SymbolicDim) else None
            if text is not None and text.isdigit():
                sizes.append(int(text))
            elif text is not None and pattern is not None:
                sizes.append(onnx_ir.SymbolicDim(pattern.sub(lambda m: symbols[m[1]], text)))
            else:
                sizes.append(size)
        value.shape = onnx_ir.Shape(sizes)
