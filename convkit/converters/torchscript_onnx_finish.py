"""Puts a freshly exported ONNX file in order: names, shapes, one data file, no private paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convkit.converters.onnx_stream import ir_version_for
from convkit.converters.torchscript_call import Call
from convkit.naming import named_leaves
from convkit.step import Work
from convkit.torchscript_module import has_reset

EXTERNAL_DATA_BYTES = 1 << 30
"""Weights above this go to one file beside the model; a protobuf message ends at 2 GiB."""


def finish(exported: Path, out: Path, call: Call, work: Work) -> None:
    """Writes `exported` to `out`, in order.

    Dynamic dimensions get the names of the input specs, outputs the shapes the samples showed, and
    traces of the exporting machine (source paths, stack traces) go.
    """
    import onnx

    model = onnx.load(str(exported))
    opset = max(entry.version for entry in model.opset_import if not entry.domain)
    model.ir_version = min(model.ir_version, ir_version_for(opset))
    names = _dimension_names(model.graph.input, call)
    _rename_dimensions(model, names)
    _correct_output_shapes(model, call)
    _strip_private(model.graph)
    for function in model.functions:
        _strip_private(function)
    del model.metadata_props[:]
    is_big = sum(len(t.raw_data) for t in model.graph.initializer) > EXTERNAL_DATA_BYTES
    onnx.save_model(
        model,
        str(out),
        save_as_external_data=is_big,
        location=f"{out.name}.data" if is_big else None,
    )


def _dimension_names(inputs: Iterable[Any], call: Call) -> dict[str, str]:
    """The exporter's symbol -> the name in the input specs."""
    wanted = {spec.name: spec.shape for spec in call.specs}
    names: dict[str, str] = {}
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        for dim, name in zip(dims, wanted.get(value.name, ()), strict=False):
            if dim.dim_param and isinstance(name, str):
                names.setdefault(dim.dim_param, name)
    return names


def _rename_dimensions(model: Any, names: Mapping[str, str]) -> None:
    """Renames symbols in all shapes, inside expressions (`2*s77`) too."""
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for graph in _graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = pattern.sub(lambda found: names[found[0]], dim.dim_param)


def _correct_output_shapes(model: Any, call: Call) -> None:
    """Gives outputs the shapes that the module's own results have.

    Exporters leave shapes out, invent names, and now and then fix a size that is dynamic. A size
    that stayed the same while every dynamic dimension took two values is fixed; one that always
    equals a dynamic input dimension has its name; others stay open.
    """
    runs = _observed(call)
    sizes = [sizes for sizes, _ in runs]
    varied = all(len({s.get(name) for s in sizes}) > 1 for name in sizes[0])
    for index, value in enumerate(model.graph.output):
        shapes = [shapes[index] for _, shapes in runs if index < len(shapes)]
        shape = value.type.tensor_type.shape
        shape.SetInParent()
        if len({len(seen) for seen in shapes}) != 1:
            continue
        if len(shape.dim) != len(shapes[0]):
            del shape.dim[:]
            shape.dim.extend(type(shape).Dimension() for _ in shapes[0])
        for axis, dim in enumerate(shape.dim):
            column = [seen[axis] for seen in shapes]
            names = [name for name in sizes[0] if [s.get(name) for s in sizes] == column]
            if len(set(column)) > 1:
                here = [s.shape[axis] for s in call.specs if axis < len(s.shape)]
                best = [n for n in (dim.dim_param, *here, *names[:1]) if n in names]
                dim.dim_param = best[0] if best else dim.dim_param or f"{value.name}_dim{axis}"
            elif varied:
                dim.dim_value = column[0]


def _observed(call: Call) -> list[tuple[dict[str, int], list[tuple[int, ...]]]]:
    """Per sample: sizes of the dynamic dimensions, shapes of the outputs in order."""
    import torch

    runs = []
    for feeds in call.samples:
        sizes: dict[str, int] = {}
        for spec in call.specs:
            for name, size in zip(spec.shape, feeds[spec.name].shape, strict=False):
                if isinstance(name, str):
                    sizes[name] = size
        if has_reset(call.module):
            call.module.reset_states()
        with torch.no_grad():
            result = call.module(*call.arguments(feeds, numbers=True))
        shapes = [tuple(getattr(leaf, "shape", ())) for _, leaf in named_leaves(result)]
        runs.append((sizes, shapes))
    return runs


def _strip_private(graph: Any) -> None:
    """Removes doc strings and metadata that hold paths of the machine that exported."""
    graph.doc_string = ""
    for inner in _graphs(graph):
        for node in inner.node:
            node.doc_string = ""
            del node.metadata_props[:]
        if hasattr(inner, "metadata_props"):
            del inner.metadata_props[:]


def _graphs(graph: Any) -> Iterable[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)
