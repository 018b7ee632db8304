"""Replaces TensorFlow operators inside tf2onnx's graph by what their expansions are traced to.

An expansion is a function written with TensorFlow. It is traced with the shapes known in place, so
it may look at them, and at inputs that are constants; the operators it leaves take the node's
place before tf2onnx translates them. Bodies of loops and branches are graphs like any other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Expansion = Callable[..., Any]


def rewriter(expansions: Mapping[str, Expansion]) -> Callable[[Any, Sequence[Any]], Any]:
    """A rewriter for tf2onnx that expands all nodes it finds in `expansions`, results included."""

    def expand_all(graph: Any, _: Sequence[Any]) -> Any:
        waiting = list(graph.get_nodes())
        while waiting:
            node = waiting.pop()
            expansion = expansions.get(node.type)
            if expansion is not None and node.domain in ("", "ai.onnx"):
                waiting += _expand(graph, node, expansion)
        return graph.get_nodes()

    return expand_all


def _expand(graph: Any, node: Any, expansion: Expansion) -> list[Any]:
    """Puts the traced expansion in the node's place; its nodes, empty where it does not apply."""
    traced = _traced(graph, node, expansion)
    if traced is None:
        return []
    nodes, shapes, dtypes, given, results = traced
    from onnx import numpy_helper
    from tf2onnx import utils

    scope = utils.make_name(node.name)
    names = dict(zip(given, node.input, strict=True))
    outputs, output_shapes, output_dtypes = node.output, node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    made = []
    for proto in nodes:
        if proto.op_type == "Placeholder":
            continue
        for output in proto.output:
            names[output] = f"{scope}/{output}"
        attributes = {attribute.name: attribute for attribute in proto.attribute}
        if proto.op_type == "Const":
            graph.make_const(names[proto.output[0]], numpy_helper.to_array(attributes["value"].t))
            continue
        made.append(
            graph.make_node(
                proto.op_type,
                [names[name] for name in proto.input],
                attr=attributes,
                name=f"{scope}/{proto.name}",
                outputs=[names[name] for name in proto.output],
                shapes=[shapes[name] for name in proto.output],
                dtypes=[dtypes[name] for name in proto.output],
                skip_conversion=False,
            )
        )
    for output, shape, dtype, result in zip(
        outputs, output_shapes, output_dtypes, results, strict=True
    ):
        graph.make_node(
            "Identity",
            [names[result]],
            name=utils.make_name(f"{scope}/result"),
            outputs=[output],
            shapes=[shapes[result] if shape is None else shape],
            dtypes=[dtypes[result] if dtype is None else dtype],
            skip_conversion=False,
        )
    return made


def _traced(graph: Any, node: Any, expansion: Expansion) -> Any:
    """Nodes, shapes, dtypes by tensor name, names of the inputs, names of the results."""
    import tensorflow as tf
    from tf2onnx import tf_utils

    with tf.Graph().as_default() as traced:
        given = [_argument(graph, node, index) for index in range(len(node.input))]
        results = expansion(*given, **_attributes(node, expansion))
        if results is None or results is NotImplemented:
            return None
        many = list(results) if isinstance(results, (list, tuple)) else [results]
        if len(many) != len(node.output):
            raise ValueError(f"{expansion.__name__} gives {len(many)} results for {node.type}")
        many = [_of_type(t, kind) for t, kind in zip(many, node.output_dtypes, strict=True)]
    nodes, _, _, shapes, dtypes, _ = tf_utils.tflist_to_onnx(traced, {})
    return nodes, shapes, dtypes, [t.name for t in given], [t.name for t in many]


def _of_type(tensor: Any, kind: int | None) -> Any:
    """The tensor in the type that the replaced node gives, where that is known."""
    import tensorflow as tf
    from tf2onnx import utils

    if not kind:
        return tensor
    dtype = tf.as_dtype(utils.map_onnx_to_numpy_type(kind))
    return tensor if tensor.dtype == dtype else tf.cast(tensor, dtype)


def _argument(graph: Any, node: Any, index: int) -> Any:
    """A constant where the input is one, else a placeholder of its type and shape."""
    import tensorflow as tf
    from tf2onnx import utils

    source = node.inputs[index]
    if source is not None and source.is_const():
        value = source.get_tensor_value(as_list=False)
        # Large weights stay where they are: only their shape is looked at.
        if value.size <= _LARGE:
            return tf.constant(value)
    name = node.input[index]
    dtype = graph.get_dtype(name)
    shape = graph.get_shape(name)
    sizes = None if shape is None else [None if size < 0 else size for size in shape]
    numpy_type = utils.map_onnx_to_numpy_type(dtype)
    return tf.compat.v1.placeholder(tf.as_dtype(numpy_type), sizes)


_LARGE = 4096


def _attributes(node: Any, expansion: Expansion) -> dict[str, Any]:
    """The attributes that the expansion's keyword-only parameters name, where the node has them."""
    wanted = [
        name
        for name, parameter in inspect.signature(expansion).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    return {name: _decoded(node.attr[name]) for name in wanted if name in node.attr}


def _decoded(attribute: Any) -> Any:
    from onnx import helper

    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, (list, tuple)) else value
