"""Where a TensorFlow graph that says nothing of it begins and ends: as named, or as guessed.

Guessed inputs are placeholders that some output needs; guessed outputs are nodes that nothing reads
and that compute something.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from convkit.errors import ModelError, UnknownNameError
from convkit.protobuf import BYTES, Buffer, fields, lone_spans, mapped, spans
from convkit.tensorflow_proto import (
    ANY_RANK,
    Graph,
    Node,
    Sizes,
    dtype_attribute,
    named_spec,
    node_of,
    read_graph,
    shape_attribute,
    text,
)
from convkit.tensorflow_signature import Port, initializers_of, saver_names, wire_errors

_PLACEHOLDERS = ("Placeholder", "PlaceholderV2")
_STORED = ("Const", "VariableV2", "Variable", "VarHandleOp")
_AT_WORK = (
    "Assert", "Assign", "AssignSub", "AssignAdd", "AssignVariableOp", "AssignSubVariableOp",
    "AssignAddVariableOp", "NoOp", "SaveV2", "Save", "RestoreV2", "Restore", "MergeV2Checkpoints",
    "Print", "PrintV2", "MergeSummary", "ScalarSummary", "HistogramSummary", "ImageSummary",
    "InitializeTableV2", "LookupTableImportV2", "InitializeTableFromTextFileV2",
    "VarIsInitializedOp", "IsVariableInitialized", "ShardedFilename", "FileWriter",
)  # fmt: skip
"""Operators that nothing reads and that give no result of the model."""

_COMPARISONS = (
    "Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "LogicalAnd", "LogicalOr",
    "LogicalNot", "IsNan", "IsInf", "IsFinite", "All", "Any",
)  # fmt: skip
_RESULT_TYPES = ("DstT", "output_type", "out_type", "Tparams", "T", "dtype")
"""Attributes that give the type of a result, the most particular first."""

_UNKNOWN = "unknown"
_SCALARS_SINCE = 24

_TRAINING = ("gradients", "save", "report_uninitialized_variables")
"""Name scopes that TensorFlow 1 keeps for training and saving."""


_NODE_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
_OPERATOR = re.compile(r"_?[A-Z][A-Za-z0-9_>]*")
"""What names look like. Source: node_def_util.cc and op_def_util.cc of TensorFlow."""


@dataclass(frozen=True)
class GraphFile:
    """A file with a TensorFlow graph.

    Attributes:
        path: the file.
        graph: the graph in it.
        is_meta: whether it is the `.meta` of a checkpoint, with variables in files beside it.
        saver: what takes the name of these files, and what restores the variables from them.
        initializers: nodes that set the model up.
    """

    path: Path
    graph: Graph
    is_meta: bool
    saver: tuple[str, ...] = ()
    initializers: tuple[str, ...] = ()


def is_graph(path: Path) -> bool:
    """Whether a file is a GraphDef: it begins with a node, a named one with an operator."""
    try:
        with mapped(path) as data:
            return _begins_with_node(data, 0, len(data))
    except (OSError, ValueError):  # no permission, no protobuf, no text
        return False


def is_meta_graph(path: Path) -> bool:
    """Whether a file is a MetaGraphDef, which has a GraphDef as its second field."""
    try:
        with mapped(path) as data:
            for number, kind, begin, stop in fields(data, 0, len(data)):
                if kind != BYTES or number not in (1, 2):
                    return False
                if number == 2:
                    return _begins_with_node(data, begin, stop)
    except (OSError, ValueError):
        return False
    return False


def _begins_with_node(data: Buffer, start: int, end: int) -> bool:
    for number, kind, begin, stop in fields(data, start, end):
        if kind != BYTES or number not in (1, 2, 4):
            return False
        if number == 1:
            found = spans(data, begin, stop)
            return (
                1 in found
                and 2 in found
                and _NODE_NAME.fullmatch(text(data, found[1][0])) is not None
                and _OPERATOR.fullmatch(text(data, found[2][0])) is not None
            )
    return False


@contextmanager
def graph_file(path: Path) -> Iterator[GraphFile]:
    """The graph of a GraphDef file or of a checkpoint's `.meta`, its file mapped meanwhile.

    Raises:
        ModelError: the file is missing, damaged, or holds no graph.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    is_meta = is_meta_graph(path)
    with mapped(path) as data:
        span, saver, initializers = (0, len(data)), tuple[str, ...](), tuple[str, ...]()
        with wire_errors(path, len(data)):
            if is_meta:
                lone_spans(data, 0, len(data), 1, 2, 3)
                found = spans(data, 0, len(data))
                span, saver = found[2][-1], saver_names(data, found.get(3, []))
                initializers = initializers_of(data, found.get(4, []))
            graph = read_graph(data, *span)
            if not graph.nodes:
                raise ModelError(f"{path} holds no graph.", hint="Save or download it again.")
            yield GraphFile(path, graph, is_meta, saver, initializers)


def named_ends(
    file: GraphFile, input_names: Sequence[str] = (), output_names: Sequence[str] = ()
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of the graph in a file, as named, else guessed.

    Shapes of outputs, and of inputs in the middle of the graph, are not known from headers alone:
    their spec is of unknown rank.

    Raises:
        ModelError: the outputs cannot be guessed.
        UnknownNameError: the graph has no such tensor.
    """
    graph, path = file.graph, file.path
    nodes = {node.name: node for node in graph.nodes}
    outputs = [_known(name, nodes, path) for name in output_names] or _sinks(graph, path)
    if input_names:
        inputs = [_known(name, nodes, path) for name in input_names]
    else:
        needed = {node.name for node in reachable(nodes, outputs)}
        inputs = [n.name for n in graph.nodes if n.op in _PLACEHOLDERS and n.name in needed]
    return (
        tuple(_port(graph, nodes, name) for name in inputs),
        tuple(_port(graph, nodes, name) for name in outputs),
    )


def reachable(nodes: Mapping[str, Node], ends: Sequence[str]) -> list[Node]:
    """Nodes that these tensors need, themselves included."""
    waiting, seen = [node_of(name) for name in ends], dict[str, Node]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in nodes:
            continue
        seen[name] = nodes[name]
        waiting += [node_of(tensor) for tensor in nodes[name].inputs]
    return list(seen.values())


def with_spec(port: Port, dtype: str, sizes: Sizes | None) -> Port:
    """A port whose element type or shape TensorFlow found out."""
    spec = port.spec
    if spec.dtype == dtype and ANY_RANK not in spec.shape:
        return port
    return replace(port, spec=named_spec(port.name, dtype, sizes))


def _known(name: str, nodes: Mapping[str, Node], path: Path) -> str:
    if node_of(name) not in nodes:
        raise UnknownNameError(f"tensor of {path.name}", name, _candidates(nodes, node_of(name)))
    return name


def _candidates(nodes: Mapping[str, Node], name: str) -> list[str]:
    """Names worth showing: the nearest, else where the graph begins and ends; not thousands."""
    near = difflib.get_close_matches(name, nodes, n=8, cutoff=0.3)
    read = {node_of(tensor) for node in nodes.values() for tensor in node.inputs}
    ends = [n for n, node in nodes.items() if node.op in _PLACEHOLDERS or n not in read]
    return near or ends[:8]


def _sinks(graph: Graph, path: Path) -> list[str]:
    read = {node_of(tensor) for node in graph.nodes for tensor in node.inputs}
    ignored = (*_PLACEHOLDERS, "PlaceholderWithDefault", *_STORED, *_AT_WORK)
    found = [
        node.name
        for node in graph.nodes
        if node.name not in read
        and node.op not in ignored
        and node.name.partition("/")[0] not in _TRAINING
    ]
    if not found:
        raise ModelError(
            f"Nothing tells what {path} computes: every node is read by another one.",
            hint="Name its outputs:  --outputs NAME",
        )
    return found


def _port(graph: Graph, nodes: Mapping[str, Node], name: str) -> Port:
    node = nodes[node_of(name)]
    tensor = name if ":" in name else f"{name}:0"
    shown = node.name if tensor.endswith(":0") else tensor
    if node.op in (*_PLACEHOLDERS, "PlaceholderWithDefault"):
        sizes = _placeholder_sizes(graph, node)
        return Port(shown, tensor, named_spec(shown, dtype_attribute(graph, node), sizes))
    return Port(shown, tensor, named_spec(shown, _result_dtype(graph, node), None))


def _result_dtype(graph: Graph, node: Node) -> str:
    """The element type that a node gives, as far as its attributes tell; else `unknown`."""
    if node.op in _COMPARISONS:
        return "bool"
    for attribute in _RESULT_TYPES:
        if found := dtype_attribute(graph, node, attribute):
            return found
    return _UNKNOWN


def _placeholder_sizes(graph: Graph, node: Node) -> Sizes | None:
    """A placeholder's shape. Graphs written before version 24 say "unknown" with an empty one.

    Source: the shape function of Placeholder in TensorFlow's array_ops.cc.
    """
    sizes = shape_attribute(graph, node)
    return None if sizes == () and graph.producer < _SCALARS_SINCE else sizes
