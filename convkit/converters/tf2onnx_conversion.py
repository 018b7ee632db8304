"""A frozen TensorFlow graph to an ONNX file: tf2onnx behind a guard.

What tf2onnx leaves out or translates wrongly is expanded beforehand; what is still no ONNX
operator afterwards is refused by name, where tf2onnx would write an invalid file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from convkit.converters.tf2onnx_finish import finish
from convkit.converters.tf2onnx_lists import refuse_other_orders
from convkit.converters.tf2onnx_refusals import refuse_untranslatable
from convkit.errors import ConvkitError, UnsupportedError
from convkit.step import Work
from convkit.tensorflow_graph import FrozenGraph, Port

LEAST_OPSET, DEFAULT_OPSET, GREATEST_OPSET = 13, 18, 18
"""Opsets written. tf2onnx knows none above 18; of 400 small graphs it translates most at 18 (268
where 17 has 264 and 15 has 260, before what is expanded here)."""

_RESULT = "convkit_result_{}"
_CONTROL_FLOW = ("Case", "StatelessCase", "If", "StatelessIf", "While", "StatelessWhile")


def convert(frozen: FrozenGraph, out: Path, work: Work, opset: int) -> None:
    """Writes `out`, with names, order and dynamic dimensions as the frozen graph has them.

    Raises:
        UnsupportedError: an operator, or an opset, has no translation.
    """
    if opset > GREATEST_OPSET:
        work.note(f"tf2onnx writes opset {GREATEST_OPSET} at most, so {opset} became that")
        opset = GREATEST_OPSET
    if opset < LEAST_OPSET:
        raise UnsupportedError(
            f"TensorFlow graphs are converted to opset {LEAST_OPSET} to {GREATEST_OPSET}, "
            f"not {opset}.",
            hint=f"--opset {LEAST_OPSET}",
        )
    refuse_untranslatable(frozen)
    work.progress("optimizing the TensorFlow graph", 0, None)
    optimized = _optimized(_with_own_results(frozen))
    refuse_other_orders(optimized.graph_def)
    work.progress("translating operators", 0, None)
    model = _translated(optimized, opset)
    work.progress("writing", 0, None)
    finish(model, frozen, out, work)


def _with_own_results(frozen: FrozenGraph) -> FrozenGraph:
    """Every output a node of its own: the same tensor may be given twice, or be an input."""
    graph = type(frozen.graph_def)()
    graph.CopyFrom(frozen.graph_def)
    for node in (*graph.node, *(n for f in graph.library.function for n in f.node_def)):
        if node.op in _CONTROL_FLOW:  # else the optimizer lowers them to Switch and Merge
            node.attr.pop("_lower_using_switch_merge", None)
    dtypes = _dtypes(frozen)
    outputs = []
    for index, port in enumerate(frozen.outputs):
        node = graph.node.add(op="Identity", name=_RESULT.format(index))
        node.input.append(port.tensor.removesuffix(":0"))
        node.attr["T"].type = dtypes[port.tensor]
        outputs.append(replace(port, tensor=f"{node.name}:0"))
    return replace(frozen, graph_def=graph, outputs=tuple(outputs))


def _dtypes(frozen: FrozenGraph) -> Mapping[str, int]:
    """Element types of the outputs, in TensorFlow's numbers."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen.graph_def, name="")
        return {
            port.tensor: graph.get_tensor_by_name(port.tensor).dtype.as_datatype_enum
            for port in frozen.outputs
        }


def _optimized(frozen: FrozenGraph) -> FrozenGraph:
    """Constants folded and calls inlined by TensorFlow's own optimizer."""
    import tensorflow as tf
    from tf2onnx import tf_loader

    inputs, outputs = _tensors(frozen.inputs), _tensors(frozen.outputs)
    with tf.Graph().as_default(), _quiet():
        return replace(frozen, graph_def=tf_loader.tf_optimize(inputs, outputs, frozen.graph_def))


def _translated(frozen: FrozenGraph, opset: int) -> Any:
    """The ModelProto; its optimizers run without their safety copies unless one of them fails."""
    try:
        try:
            return _run_tf2onnx(frozen, opset, guarded=False)
        except _OptimizerError:
            return _run_tf2onnx(frozen, opset, guarded=True)
    except ConvkitError:
        raise
    except Exception as cause:  # tf2onnx raises ValueError, KeyError, TypeError, RuntimeError ...
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise UnsupportedError(
            "tf2onnx cannot express this TensorFlow graph in ONNX.",
            why=(lines[0] if lines else type(cause).__name__)[:300],
        ) from cause


class _OptimizerError(Exception):
    """One of tf2onnx's optimizers failed, and the graph is half changed."""


def _run_tf2onnx(frozen: FrozenGraph, opset: int, *, guarded: bool) -> Any:
    import tensorflow as tf
    from tf2onnx import optimizer, tfonnx

    from convkit.converters.tf2onnx_expansion import rewriter
    from convkit.converters.tf2onnx_handlers import EXPANSIONS, handlers

    inputs, outputs = _tensors(frozen.inputs), _tensors(frozen.outputs)
    names = {port.tensor: port.name for port in (*frozen.inputs, *frozen.outputs)}
    with tf.Graph().as_default() as graph, _quiet():
        tf.import_graph_def(frozen.graph_def, name="")
        translated = tfonnx.process_tf_graph(
            graph,
            opset=opset,
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=names,
            custom_op_handlers=handlers(),
            custom_rewriter=[rewriter(EXPANSIONS)],
        )
        try:
            optimized = optimizer.optimize_graph(translated, catch_errors=guarded)
        except Exception as cause:
            raise _OptimizerError from cause
        return optimized.make_model("")


def _tensors(ports: tuple[Port, ...]) -> list[str]:
    return [port.tensor for port in ports]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences tf2onnx's log: what it reports is found again in the result, or raised."""
    log = logging.getLogger("tf2onnx")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)
