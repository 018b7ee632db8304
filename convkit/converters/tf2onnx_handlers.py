"""What tf2onnx is given beside its own translations: expansions, and handlers written in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tf2onnx import utils
from tf2onnx.graph import Graph
from tf2onnx.onnx_opset.controlflow import wire_if_branch
from tf2onnx.onnx_opset.nn import Resize
from tf2onnx.tf_loader import find_function

from convkit.converters import tf2onnx_arithmetic, tf2onnx_images, tf2onnx_indexing

EXPANSIONS: Mapping[str, Callable[..., Any]] = {
    **tf2onnx_arithmetic.EXPANSIONS,
    **tf2onnx_images.EXPANSIONS,
    **tf2onnx_indexing.EXPANSIONS,
}


def handlers() -> Mapping[str, tuple[Callable[..., None], list[Any]]]:
    """Operators whose translation is written in ONNX, in the form tf2onnx takes them."""
    resizes = ("ResizeBilinear", "ResizeNearestNeighbor")
    cases = ("Case", "StatelessCase")
    return dict.fromkeys(resizes, (_resize, [])) | dict.fromkeys(cases, (_case, []))


def _resize(graph: Any, node: Any, name: str, _: Any) -> None:
    """Resize, with sizes instead of factors where a factor is no whole number.

    tf2onnx writes factors; as float32 they may round to one pixel less than TensorFlow gives.
    """
    images, size = node.input[0], node.inputs[1]
    old = graph.get_shape(images)
    new = size.get_tensor_value() if size.is_const() else None
    is_known = old is not None and new is not None and min(old[1:3]) > 0
    if not is_known or any(n % o for n, o in zip(new, old[1:3], strict=True)):
        # Of an image with unknown sides tf2onnx writes sizes.
        graph.set_shape(images, None if old is None else [old[0], -1, -1, old[3]])
    Resize.version_11(graph, node)
    graph.set_shape(images, old)


def _case(graph: Any, node: Any, name: str, _: Any) -> None:
    """A chain of Ifs: branch 0 where the index is 0, else branch 1 where it is 1, and so on.

    Any index without a branch means the last one.
    """
    branches = [find_function(function) for function in node.get_attr_value("branches")]
    index, inputs = node.input[0], node.input[1:]
    shapes, dtypes, outputs = node.output_shapes, node.output_dtypes, node.output
    graph.remove_node(node.name)
    for branch in branches:
        branch.parent_graph = graph
        wire_if_branch(graph, branch, inputs, shapes, dtypes, branch.graph_name, name)
    rest = branches[-1]
    for number in reversed(range(len(branches) - 1)):
        is_first = number == 0
        home = graph if is_first else Graph([], output_shapes={}, dtypes={}, is_subgraph=True)
        if not is_first:
            home.parent_graph = graph
        wanted = home.make_const(utils.make_name("branch"), np.array(number, np.int32)).output[0]
        condition = home.make_node("Equal", [index, wanted]).output[0]
        chosen = home.make_node(
            "If", [condition], name=name if is_first else utils.make_name(name),
            output_count=len(outputs), shapes=shapes, dtypes=dtypes, skip_conversion=True,
            outputs=outputs if is_first else None,
            branches={"then_branch": branches[number], "else_branch": rest},
        )  # fmt: skip
        if not is_first:
            home.outputs = list(chosen.output)
            rest = home
