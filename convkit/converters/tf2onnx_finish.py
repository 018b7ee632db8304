"""Puts what tf2onnx made in order: inputs and outputs as the signature has them, checked, saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convkit.converters.tf2onnx_shapes import Shape, output_shapes
from convkit.errors import UnsupportedError
from convkit.step import Work
from convkit.tensorflow_graph import FrozenGraph, Port
from convkit.tensorflow_proto import ANY_RANK

EXTERNAL_DATA_BYTES = 1 << 30
"""Weights above this go to one file beside the model; a protobuf message ends at 2 GiB."""

_IR_VERSION = 8
"""The oldest that admits opset 18. Source: onnx `docs/Versioning.md`."""

_MICROSOFT = "com.microsoft"


def finish(model: Any, frozen: FrozenGraph, out: Path, work: Work) -> None:
    """Checks a fresh model and writes it to `out`.

    Raises:
        UnsupportedError: operators are left that ONNX does not have, or the model is invalid.
    """
    from convkit.converters.tf2onnx_recurrent import fuse_recurrent

    _refuse_foreign(model)
    _tidy(model)
    for text in fuse_recurrent(model):
        work.note(text)
    _set_ends(model, frozen)
    _save(model, out)
    _check(out)


def graphs(graph: Any) -> Iterator[Any]:
    """A GraphProto and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def _refuse_foreign(model: Any) -> None:
    from onnx import defs

    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    foreign: dict[str, list[str]] = {}
    for graph in graphs(model.graph):
        for node in graph.node:
            if not node.domain and not defs.has(node.op_type, opset):
                foreign.setdefault(node.op_type, []).append(node.name)
    if not foreign:
        return
    why = [
        f"{operator} in {', '.join(nodes[:3])}{' ...' if len(nodes) > 3 else ''}"
        for operator, nodes in sorted(foreign.items())
    ]
    count = len(foreign)
    raise UnsupportedError(
        f"{count} TensorFlow operator{'s have' if count > 1 else ' has'} no translation to "
        f"ONNX: {', '.join(sorted(foreign))}.",
        why=why,
        hint="Replace them in the network by operators that ONNX has.",
        operators=foreign,
    )


def _tidy(model: Any) -> None:
    """Removes what only concerns the machine and the run that converted."""
    used = {node.domain for graph in graphs(model.graph) for node in graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or not entry.domain]
    if _MICROSOFT in used and all(entry.domain != _MICROSOFT for entry in kept):
        kept.append(type(kept[0])(domain=_MICROSOFT, version=1))
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.ir_version = min(model.ir_version, _IR_VERSION)
    model.doc_string = model.graph.doc_string = ""
    for graph in graphs(model.graph):
        graph.doc_string = ""
        # tf2onnx's shapes carry invented names, and are stale where a node was replaced.
        del graph.value_info[:]
        for node in graph.node:
            node.doc_string = ""


def _set_ends(model: Any, frozen: FrozenGraph) -> None:
    """Inputs and outputs in the signature's order, with its types and dimension names."""
    from onnx import helper

    graph = model.graph
    found = {value.name: value for value in (*graph.input, *graph.output)}
    inputs = [
        helper.make_tensor_value_info(port.name, _type(port, found), _input_shape(port))
        for port in frozen.inputs
    ]
    del graph.input[:]
    graph.input.extend(inputs)
    shapes = output_shapes(model, frozen)
    outputs = [
        helper.make_tensor_value_info(port.name, _type(port, found), shapes[port.name])
        for port in frozen.outputs
    ]
    del graph.output[:]
    graph.output.extend(outputs)


def _type(port: Port, found: Mapping[str, Any]) -> int:
    """The element type as tf2onnx has it; an input that nothing reads is not there."""
    import numpy as np
    from onnx import helper

    made = found.get(port.name)
    kind = made.type.tensor_type.elem_type if made is not None else 0
    return int(kind or helper.np_dtype_to_tensor_dtype(np.dtype(port.spec.dtype)))


def _input_shape(port: Port) -> Shape:
    return None if ANY_RANK in port.spec.shape else list(port.spec.shape)


def _save(model: Any, out: Path) -> None:
    import onnx

    is_big = sum(len(t.raw_data) for t in model.graph.initializer) > EXTERNAL_DATA_BYTES
    onnx.save_model(
        model,
        str(out),
        save_as_external_data=is_big,
        location=f"{out.name}.data" if is_big else None,
    )


def _check(out: Path) -> None:
    """The ONNX checker on the file, and a load in ONNX Runtime.

    Raises:
        UnsupportedError: one of them refuses it.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnx.checker.check_model(str(out))
        onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # the checker and the runtime raise types of their own
        text = str(cause).strip()
        raise UnsupportedError(
            "What tf2onnx made of this TensorFlow graph is not valid ONNX.",
            why=(text.splitlines() or [type(cause).__name__])[0][:400],
        ) from cause
