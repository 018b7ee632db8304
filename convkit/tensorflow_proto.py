"""Reads TensorFlow's graph messages without TensorFlow: nodes, functions, shapes, element types.

Payloads of constants are skipped, so a graph with its weights inside is read in the time its
structure takes.

Source: tensorflow/core/framework `graph.proto`, `node_def.proto`, `attr_value.proto`,
`function.proto`, `op_def.proto`, `tensor.proto`, `tensor_shape.proto`, `types.proto`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from convkit.artifact import Dimension, TensorSpec
from convkit.protobuf import BYTES, VARINT, Buffer, Span, fields, lone_spans, signed, spans

Sizes = tuple[int | None, ...]
"""A shape as TensorFlow keeps it: None is an unknown size."""

ANY_RANK = "..."
"""The only dimension of a shape whose rank is unknown."""

DTYPES: Mapping[int, str] = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string",
    8: "complex64", 9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32",
    14: "bfloat16", 15: "qint16", 16: "quint16", 17: "uint16", 18: "complex128", 19: "float16",
    20: "resource", 21: "variant", 22: "uint32", 23: "uint64", 24: "float8_e5m2",
    25: "float8_e4m3fn", 29: "int4", 30: "uint4",
}  # fmt: skip
"""DataType -> numpy's spelling. Source: types.proto; 100 is added for a reference type."""

_REFERENCE = 100
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_STANDS_IN = "api_implements"
"""Attribute of functions that do the same. Source: grappler/optimizers/function_api_info.cc."""


@dataclass(frozen=True)
class Node:
    """One NodeDef; `attributes` says where the AttrValue messages lie."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Span] = field(repr=False)


@dataclass(frozen=True)
class Function:
    """One FunctionDef: argument names, and result name -> what it returns (`call:output:0`).

    `stands_in`: TensorFlow may call it in place of another one that is called.
    """

    name: str
    arguments: tuple[str, ...]
    nodes: tuple[Node, ...]
    returns: Mapping[str, str]
    stands_in: bool = False


@dataclass(frozen=True)
class Graph:
    """A GraphDef: its nodes, the functions of its library, and who wrote it."""

    data: Buffer = field(repr=False)
    nodes: tuple[Node, ...]
    functions: Mapping[str, Function]
    producer: int

    def all_nodes(self) -> Iterator[Node]:
        """Nodes of the graph and of every function in its library."""
        yield from self.nodes
        for function in self.functions.values():
            yield from function.nodes


def read_graph(data: Buffer, start: int, end: int) -> Graph:
    """The GraphDef at [start, end).

    Raises:
        WireError: the bytes break the wire format.
        UnicodeDecodeError: a name is no text.
    """
    nodes: list[Node] = []
    functions: dict[str, Function] = {}
    producer = 0
    for number, kind, begin, stop in fields(data, start, end):
        if kind != BYTES:
            continue
        if number == 1:
            nodes.append(_node(data, begin, stop))
        elif number == 2:
            for span in spans(data, begin, stop).get(1, ()):
                function = _function(data, *span)
                functions[function.name] = function
        elif number == 4:
            producer = integer(data, (begin, stop), 1)
    return Graph(data, tuple(nodes), functions, producer)


def text(data: Buffer, span: Span) -> str:
    """The UTF-8 text at a span."""
    return bytes(data[span[0] : span[1]]).decode()


def integer(data: Buffer, span: Span, number: int, default: int = 0) -> int:
    """The last varint of a field in the message at a span."""
    value = default
    for found, kind, _, number_read in fields(data, *span):
        if found == number and kind == VARINT:
            value = signed(number_read)
    return value


def dtype_name(value: int) -> str:
    """A DataType in numpy's spelling; `type<n>` for one that is not known here."""
    return DTYPES.get(value % _REFERENCE, f"type{value}")


def dtype_attribute(graph: Graph, node: Node, name: str = "dtype") -> str:
    """An attribute that holds an element type; "" where the node lacks it."""
    span = node.attributes.get(name)
    return dtype_name(integer(graph.data, span, 6)) if span else ""


def text_attribute(graph: Graph, node: Node, name: str) -> str:
    """An attribute that holds text; "" where the node lacks it."""
    span = node.attributes.get(name)
    found = spans(graph.data, *span).get(2) if span else None
    return text(graph.data, found[-1]) if found else ""


def shape_attribute(graph: Graph, node: Node, name: str = "shape") -> Sizes | None:
    """An attribute that holds a shape; None where the rank is unknown."""
    span = node.attributes.get(name)
    found = spans(graph.data, *span).get(7) if span else None
    return read_shape(graph.data, found[0]) if found else None


def called_function(graph: Graph, node: Node) -> Function | None:
    """The function that a call node calls; None for any other node."""
    span = node.attributes.get("f") if node.op in _CALLS else None
    named = spans(graph.data, *span).get(10) if span else None
    name = spans(graph.data, *named[0]).get(1) if named else None
    return graph.functions.get(text(graph.data, name[0])) if name else None


def functions_used(graph: Graph, node: Node) -> Iterator[Function]:
    """Functions of the library that a node calls, runs as a branch or a body, or is named after."""
    if node.op in graph.functions:
        yield graph.functions[node.op]
    for span in node.attributes.values():
        found = spans(graph.data, *span)
        named = list(found.get(10, ()))
        for values in found.get(1, ()):
            named += spans(graph.data, *values).get(9, ())
        for function in named:
            name = lone_spans(graph.data, *function, 1).get(1)
            if name and text(graph.data, name) in graph.functions:
                yield graph.functions[text(graph.data, name)]


def constant(graph: Graph, node: Node) -> tuple[str, Sizes, int]:
    """Element type, shape and payload bytes of a Const node."""
    span = node.attributes.get("value")
    found = spans(graph.data, *span).get(8) if span else None
    if not found:
        return "", (), 0
    dtype = 0
    sizes: Sizes = ()
    begin, end = found[0]
    for number, kind, start, stop in fields(graph.data, begin, end):
        if number == 1 and kind == VARINT:
            dtype = stop
        elif number == 2 and kind == BYTES:
            sizes = read_shape(graph.data, (start, stop)) or ()
    return dtype_name(dtype), sizes, end - begin


def constant_texts(graph: Graph, node: Node) -> Iterator[bytes]:
    """The strings of a Const node."""
    span = node.attributes.get("value")
    for tensor in spans(graph.data, *span).get(8, ()) if span else ():
        for begin, end in spans(graph.data, *tensor).get(8, ()):
            yield bytes(graph.data[begin:end])


def read_shape(data: Buffer, span: Span) -> Sizes | None:
    """A TensorShapeProto; None where the rank is unknown."""
    sizes: list[int | None] = []
    for number, kind, begin, stop in fields(data, *span):
        if number == 2 and kind == BYTES:
            size = integer(data, (begin, stop), 1)
            sizes.append(size if size >= 0 else None)
        elif number == 3 and kind == VARINT and stop:
            return None
    return tuple(sizes)


def element_count(sizes: Sizes) -> int:
    """Elements of a tensor of a fully known shape."""
    return math.prod(size or 0 for size in sizes)


def named_spec(name: str, dtype: str, sizes: Sizes | None) -> TensorSpec:
    """A spec whose unknown sizes have names: `batch` first, then what the rank suggests.

    An unknown first size is the batch. The sides of channels-last images are `height` and `width`,
    the second axis of a sequence is `time`, of token ids `sequence`; elsewhere the name says input
    and axis.
    """
    if sizes is None:
        return TensorSpec(name, dtype, (ANY_RANK,))
    shape: tuple[Dimension, ...] = tuple(
        _dimension(name, dtype, sizes, axis) if size is None else size
        for axis, size in enumerate(sizes)
    )
    return TensorSpec(name, dtype, shape)


def node_of(tensor: str) -> str:
    """The node a tensor name (`dense/BiasAdd:0`, `^dense`) speaks of."""
    return tensor.removeprefix("^").partition(":")[0]


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A sorting key by which `output_2` comes before `output_10`."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


def _dimension(name: str, dtype: str, sizes: Sizes, axis: int) -> str:
    if axis == 0:
        return "batch"
    rank = len(sizes)
    if rank == 4 and axis in (1, 2) and sizes[3] is not None:
        return ("height", "width")[axis - 1]
    if rank == 4 and axis in (2, 3) and sizes[1] is not None:
        return ("height", "width")[axis - 2]
    if rank == 5 and axis in (1, 2, 3) and sizes[4] is not None:
        return ("depth", "height", "width")[axis - 1]
    if rank == 3 and axis == 1 and sizes[2] is not None:
        return "time"
    if rank == 2 and dtype.startswith(("int", "uint", "bool")):
        return "sequence"
    return f"{name}_dim{axis}"


def _node(data: Buffer, start: int, end: int) -> Node:
    name = op = ""
    inputs: list[str] = []
    attributes: dict[str, Span] = {}
    for number, kind, begin, stop in fields(data, start, end):
        if kind != BYTES:
            continue
        if number == 1:
            name = text(data, (begin, stop))
        elif number == 2:
            op = text(data, (begin, stop))
        elif number == 3:
            inputs.append(text(data, (begin, stop)))
        elif number == 5:
            key, value = map_entry(data, (begin, stop))
            attributes[key] = value
    return Node(name, op, tuple(inputs), attributes)


def map_entry(data: Buffer, span: Span) -> tuple[str, Span]:
    """Key and the place of the value of one entry of a map with text keys."""
    found = lone_spans(data, *span, 1, 2)
    key = text(data, found[1]) if 1 in found else ""
    return key, found.get(2, (span[1], span[1]))


def _function(data: Buffer, start: int, end: int) -> Function:
    name = ""
    arguments: tuple[str, ...] = ()
    nodes: list[Node] = []
    returns: dict[str, str] = {}
    attributes: set[str] = set()
    lone_spans(data, start, end, 1)
    for number, kind, begin, stop in fields(data, start, end):
        if kind != BYTES:
            continue
        if number == 1:
            signature = spans(data, begin, stop)
            name = text(data, signature[1][-1]) if 1 in signature else ""
            arguments = tuple(
                text(data, spans(data, *argument)[1][-1]) for argument in signature.get(2, ())
            )
        elif number == 3:
            nodes.append(_node(data, begin, stop))
        elif number == 4:
            key, value = map_entry(data, (begin, stop))
            returns[key] = text(data, value)
        elif number == 5:
            attributes.add(map_entry(data, (begin, stop))[0])
    return Function(name, arguments, tuple(nodes), returns, _STANDS_IN in attributes)
