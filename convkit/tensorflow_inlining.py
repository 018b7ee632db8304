"""Makes a loaded graph plain: variables become constants, calls become the nodes they call."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from convkit.errors import UnsupportedError
from convkit.tensorflow_import import import_tensorflow
from convkit.tensorflow_proto import node_of

_MAX_BYTES = 1 << 31
_WRITES = re.compile(
    r"^(Assign(Add|Sub)?VariableOp|ResourceScatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update))$"
)


def frozen_graph_def(
    session: Any, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[Any, list[str]]:
    """The part of a session's graph between these, made plain; and what its inputs are called.

    Args:
        session: with all variables initialised.
        inputs: tensors that become placeholders; tensors in the middle of the graph are cut there.
        outputs: names of nodes to keep.

    Returns:
        The GraphDef, and the tensors of its placeholders in the order of `inputs`.

    Raises:
        UnsupportedError: it changes variables, or has too many.
    """
    tf = import_tensorflow()
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_from_session_graph as convert,
    )

    _add_reads(session.graph)
    graph_def = session.graph.as_graph_def()
    placeholders = [_cut(graph_def, session.graph, tensor) for tensor in inputs]
    kept = list(dict.fromkeys((*outputs, *map(node_of, placeholders))))
    needed = tf.compat.v1.graph_util.extract_sub_graph(graph_def, kept).node
    _refuse_writes(graph_def, needed)
    check_size("The graph", sum(_bytes_of(session.graph, node) for node in needed))
    plain = convert(session, graph_def, kept)
    return (_inlined(plain, kept) if plain.library.function else plain), placeholders


def _refuse_writes(graph_def: Any, needed: Iterable[Any]) -> None:
    """Refuses variables that change while the graph runs: as constants they would not."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    waiting, seen, found = [list(needed)], set(), []
    while waiting:
        for node in waiting.pop():
            if _WRITES.match(node.op):
                found.append(f"{node.op} in {node.name}")
            called = [f.name for v in node.attr.values() for f in (v.func, *v.list.func)]
            for name in (node.op, *called):
                if name in functions and name not in seen:
                    seen.add(name)
                    waiting.append(functions[name].node_def)
    if found:
        raise UnsupportedError(
            "This TensorFlow graph changes variables while it runs, so it cannot be frozen.",
            why=found[:5],
            hint="Give the state as an input and return its new value as an output.",
            nodes=found,
        )


def check_size(what: str, weight_bytes: int) -> None:
    """Makes sure that weights fit in one GraphDef, which TensorFlow keeps as one protobuf message.

    Raises:
        UnsupportedError: they take 2 GiB or more.
    """
    if weight_bytes >= _MAX_BYTES:
        raise UnsupportedError(
            f"{what} has {weight_bytes / (1 << 30):.1f} GiB of weights.",
            why="TensorFlow freezes graphs below 2 GiB only.",
        )


def variable_bytes(dtype: Any, shape: Sequence[int]) -> int:
    """Bytes of a variable's elements."""
    tf = import_tensorflow()
    return math.prod(shape) * int(tf.as_dtype(dtype).size)


def _bytes_of(graph: Any, node: Any) -> int:
    """Bytes of the weights a node holds; 0 where it is no variable."""
    if node.op not in ("VarHandleOp", "VariableV2", "Variable"):
        return 0
    shape = graph.get_operation_by_name(node.name).get_attr("shape")
    sizes = [dim.size for dim in shape.dim]
    return variable_bytes(node.attr["dtype"].type, sizes) if min(sizes, default=0) >= 0 else 0


def _add_reads(graph: Any) -> None:
    """Gives every resource variable the read node that TensorFlow's freezing function runs."""
    tf = import_tensorflow()
    known = {operation.name for operation in graph.get_operations()}
    with graph.as_default():
        for operation in graph.get_operations():
            name = f"{operation.name}/Read/ReadVariableOp"
            if operation.type == "VarHandleOp" and name not in known:
                dtype = operation.get_attr("dtype")
                tf.raw_ops.ReadVariableOp(resource=operation.outputs[0], dtype=dtype, name=name)


def _cut(graph_def: Any, graph: Any, tensor_name: str) -> str:
    """Puts a placeholder in the place of a tensor; what the tensor is called now."""
    tensor = graph.get_tensor_by_name(tensor_name)
    operation = tensor.op
    if operation.type == "Placeholder":
        return tensor_name
    node = next(node for node in graph_def.node if node.name == operation.name)
    if len(operation.outputs) == 1:
        node.Clear()
        node.name = operation.name
    else:
        old = tensor_name.removesuffix(":0")
        node = graph_def.node.add(name=f"{operation.name}_{tensor.value_index}_input")
        for reader in graph_def.node:
            reader.input[:] = [node.name if given == old else given for given in reader.input]
    node.op = "Placeholder"
    node.attr["dtype"].type = tensor.dtype.base_dtype.as_datatype_enum
    node.attr["shape"].shape.CopyFrom(tensor.shape.as_proto())
    return f"{node.name}:0"


def _inlined(graph_def: Any, kept: Sequence[str]) -> Any:
    """The graph without calls, by TensorFlow's own optimizer with everything else switched off."""
    tf = import_tensorflow()
    from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
    from tensorflow.python.framework.convert_to_constants import disable_lower_using_switch_merge
    from tensorflow.python.grappler import tf_optimizer

    graph_def = disable_lower_using_switch_merge(graph_def)
    for function in graph_def.library.function:
        if "api_implements" in function.attr:  # Keras marks functions that cuDNN could replace
            del function.attr["api_implements"]
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(graph_def, name="")
    meta = tf.compat.v1.train.export_meta_graph(graph_def=graph_def, graph=graph)
    meta.collection_def["train_op"].node_list.value.extend(kept)
    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1  # small graphs too
    options.optimizers.append("function")
    options.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    return tf_optimizer.OptimizeGraph(config, meta)
