"""What an ONNX file says of its model, read without the onnx package and without weight payloads.

The file is mapped; of a tensor only its name, type, dims and where its bytes lie are read. Weights
in other files are named, not opened (see onnx_external).

Source: onnx/onnx.proto (onnx 1.23); field numbers as commented below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from convkit.artifact import TensorSpec
from convkit.errors import ModelError
from convkit.formats.onnx_quantized import READERS, Reads
from convkit.formats.onnx_tensor import TensorHeader, read_entry, read_tensor
from convkit.formats.onnx_types import read_value, text
from convkit.protobuf import BYTES, VARINT, Buffer, WireError, fields, mapped, signed, spans, varint

_MAX_DEPTH = 32
"""How deep graphs may nest: a level is three messages, protobuf's own limit is a hundred."""

# ModelProto: ir_version 1, producer_name 2, producer_version 3, domain 4, model_version 5,
# doc_string 6, graph 7, opset_import 8, metadata_props 14, training_info 20, functions 25
_MODEL_WIRE = {1: VARINT, 5: VARINT, **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)}
_GRAPH_KEY = bytes((7 << 3 | BYTES,))
_NEWEST_IR = 99


@dataclass(frozen=True)
class NodeHeader:
    """A node of the main graph.

    Attributes:
        ints: its integer attributes by name (axis, bits ...).
        metadata: its metadata_props.
        captured: values that its subgraphs read from around them.
    """

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ints: Mapping[str, int]
    metadata: Mapping[str, str]
    captured: list[str]

    @property
    def reads(self) -> tuple[str, ...]:
        """Every value it depends on; absent optional inputs are left out."""
        return tuple(name for name in (*self.inputs, *self.captured) if name)


@dataclass
class Header:
    """The structure of an ONNX model.

    Attributes:
        ir_version_at: offset of the IR version's number.
        opsets: domain -> version; the default domain is "".
        opset_at: domain -> offset of the version's number.
        inputs: without those that are initializers.
        initializers: of the main graph and all subgraphs, values of Constant nodes included.
        operators: (domain, op_type) -> count, subgraphs and functions included.
        functions: (domain, name) of the model's own functions.
        reads: how nodes read what may be quantized weights.
        nodes: nodes of the main graph, in order; empty unless asked for.
        values: specs of intermediate values, as far as the file has them; empty unless asked for.
    """

    path: Path
    size_bytes: int
    ir_version: int = 0
    ir_version_at: int = 0
    producer: str = ""
    producer_version: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    opset_at: dict[str, int] = field(default_factory=dict)
    graph_name: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    initializers: list[TensorHeader] = field(default_factory=list)
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    functions: list[tuple[str, str]] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    reads: Reads = field(default_factory=Reads)
    nodes: list[NodeHeader] = field(default_factory=list)
    values: dict[str, TensorSpec] = field(default_factory=dict)


def is_onnx(path: Path) -> bool:
    """Whether a file begins as an ONNX model does, a truncated one included; never raises."""
    try:
        if not path.is_file():
            return False
        with mapped(path) as data:
            return _begins_as_model(data)
    except OSError:
        return False


def _begins_as_model(data: Buffer) -> bool:
    has_version = has_graph = False
    try:
        for number, wire, at, value in fields(data, 0, len(data)):
            if _MODEL_WIRE.get(number, wire) != wire:
                return False
            if number == 1:
                has_version = 0 < value <= _NEWEST_IR
            elif number == 7:
                has_graph = has_graph or _begins_as_graph(data, at, value)
    except WireError as cut:
        return has_version and (has_graph or data[cut.offset : cut.offset + 1] == _GRAPH_KEY)
    return has_version and has_graph


def _begins_as_graph(data: Buffer, begin: int, end: int) -> bool:
    """Every field of a GraphProto is a message or a string, numbered 1 to 16."""
    if begin == end:
        return True
    key, _ = varint(data, begin, end)
    return key & 7 == BYTES and 1 <= key >> 3 <= 16


def read_header(path: Path, *, with_nodes: bool = False) -> Header:
    """Reads the structure of the ONNX model at `path`.

    Args:
        path: the file.
        with_nodes: also keep the main graph's nodes and the specs of its values.

    Raises:
        ModelError: the file is missing, empty, truncated, damaged or no ONNX model.
    """
    try:
        with mapped(path) as data:
            return _read_mapped(path, data, with_nodes)
    except OSError as cause:
        raise ModelError(f"{path} cannot be read: {cause.strerror}.") from cause


def _read_mapped(path: Path, data: Buffer, with_nodes: bool) -> Header:
    size = len(data)
    if size == 0:
        raise ModelError(f"{path} is empty.", hint="Copy or download the model again.")
    header = Header(path, size)
    try:
        _Reader(data, header, with_nodes).read()
    except WireError as cause:
        _refuse(path, size, cause)
    if not header.ir_version or not (header.operators or header.outputs):
        missing = "ir_version" if not header.ir_version else "graph"
        raise ModelError(
            f"{path} is not an ONNX model.",
            why=f"Its {size} bytes hold no {missing}.",
            size_bytes=size,
        )
    return header


def _refuse(path: Path, size: int, cause: WireError) -> NoReturn:
    raise ModelError(
        f"{path} is truncated, damaged or not an ONNX model.",
        why=f"At byte {cause.offset} of {size}: {cause.reason}.",
        hint="Copy or download the model again, and compare its size with the original's.",
        offset=cause.offset,
        size_bytes=size,
    ) from cause


class _Reader:
    """Fills a Header; subgraphs wait on a list instead of the call stack."""

    def __init__(self, data: Buffer, header: Header, with_nodes: bool) -> None:
        self._data = data
        self._header = header
        self._with_nodes = with_nodes
        self._waiting: list[tuple[int, int, int, list[str]]] = []
        self._names: dict[bytes, str] = {}
        self._inputs: list[TensorSpec] = []
        self._outputs: list[TensorSpec] = []

    def read(self) -> None:
        header, data = self._header, self._data
        for number, wire, at, value in fields(data, 0, header.size_bytes):
            if wire == VARINT and number == 1:
                header.ir_version, header.ir_version_at = signed(value), at
            elif wire != BYTES:
                continue
            elif number == 2:
                header.producer = text(data, at, value)
            elif number == 3:
                header.producer_version = text(data, at, value)
            elif number == 7:
                self._read_main(at, value)
            elif number == 8:
                self._read_opset(at, value)
            elif number == 14:
                header.metadata.update((read_entry(data, at, value),))
            elif number == 25:
                self._read_function(at, value)
        self._read_waiting()
        own = {tensor.name for tensor in header.initializers}
        header.inputs = tuple(spec for spec in self._inputs if spec.name not in own)
        header.outputs = tuple(self._outputs)

    def _read_waiting(self) -> None:
        while self._waiting:
            begin, end, depth, captured = self._waiting.pop()
            if depth > _MAX_DEPTH:
                raise WireError(begin, f"graphs nest deeper than {_MAX_DEPTH}")
            for number, wire, at, value in fields(self._data, begin, end):
                if wire == BYTES and number == 1:
                    self._read_node(at, value, depth, captured)
                elif wire == BYTES and number == 5:
                    self._read_initializer(at, value)

    def _read_main(self, begin: int, end: int) -> None:
        """GraphProto: node 1, name 2, initializer 5, input 11, output 12, values 13, sparse 15."""
        data = self._data
        for number, wire, at, value in fields(data, begin, end):
            if wire != BYTES:
                continue
            if number == 1:
                self._read_node(at, value, 0, None)
            elif number == 2:
                self._header.graph_name = text(data, at, value)
            elif number == 5:
                self._read_initializer(at, value)
            elif number == 11:
                self._inputs.append(read_value(data, at, value))
            elif number == 12:
                self._outputs.append(read_value(data, at, value))
            elif number == 13 and self._with_nodes:
                spec = read_value(data, at, value)
                self._header.values[spec.name] = spec
            elif number == 15:
                self._read_sparse(at, value)

    def _read_opset(self, begin: int, end: int) -> None:
        """OperatorSetIdProto: domain 1, version 2."""
        domain, version, where = "", 0, begin
        for number, wire, at, value in fields(self._data, begin, end):
            if number == 1 and wire == BYTES:
                domain = text(self._data, at, value)
            elif number == 2 and wire == VARINT:
                version, where = signed(value), at
        domain = "" if domain == "ai.onnx" else domain
        self._header.opsets[domain] = version
        self._header.opset_at[domain] = where

    def _read_function(self, begin: int, end: int) -> None:
        """FunctionProto: name 1, node 7, domain 10."""
        name = domain = ""
        captured: list[str] = []
        for number, wire, at, value in fields(self._data, begin, end):
            if wire != BYTES:
                continue
            if number == 1:
                name = text(self._data, at, value)
            elif number == 10:
                domain = text(self._data, at, value)
            elif number == 7:
                self._read_node(at, value, 1, captured)
        self._header.functions.append((domain, name))

    def _read_node(self, begin: int, end: int, depth: int, captured: list[str] | None) -> None:
        """NodeProto: input 1, output 2, name 3, op_type 4, attribute 5, domain 7, metadata 9.

        `captured` is the list a subgraph's reads go to; None for a node of the main graph.
        """
        data = self._data
        parts = spans(data, begin, end)
        op_type = self._name(*parts[4][-1]) if 4 in parts else ""
        domain = self._name(*parts[7][-1]) if 7 in parts else ""
        domain = "" if domain == "ai.onnx" else domain
        self._header.operators[domain, op_type] += 1
        reads = captured if captured is not None else []
        is_constant = op_type == "Constant" and 2 in parts
        constant = text(data, *parts[2][0]) if is_constant else ""
        ints = self._read_attributes(parts.get(5, ()), constant, depth, reads)
        if op_type in READERS and 1 in parts:
            taken, given = ([text(data, *s) for s in parts.get(which, ())] for which in (1, 2))
            self._header.reads.note(op_type, taken, given, ints)
        if not self._with_nodes:
            return
        inputs = tuple(text(data, *span) for span in parts.get(1, ()))
        if captured is not None:
            captured.extend(inputs)
            return
        name = text(data, *parts[3][-1]) if 3 in parts else ""
        outputs = tuple(text(data, *span) for span in parts.get(2, ()))
        metadata = dict(read_entry(data, *span) for span in parts.get(9, ()))
        node = NodeHeader(op_type, domain, name, inputs, outputs, ints, metadata, reads)
        self._header.nodes.append(node)

    def _read_attributes(
        self, attributes: Sequence[tuple[int, int]], constant: str, depth: int, captured: list[str]
    ) -> dict[str, int]:
        """AttributeProto: name 1, i 3, t 5, g 6, tensors 10, graphs 11.

        Graphs inside wait for their turn; the tensor of a Constant node is kept under its output.
        """
        data = self._data
        ints: dict[str, int] = {}
        for begin, end in attributes:
            name = ""
            for number, wire, at, value in fields(data, begin, end):
                if number == 1 and wire == BYTES:
                    name = self._name(at, value)
                elif number == 3 and wire == VARINT:
                    ints[name] = signed(value)
                elif wire == BYTES and number in (6, 11):
                    self._waiting.append((at, value, depth + 1, captured))
                elif wire == BYTES and number == 5 and constant:
                    self._read_initializer(at, value, constant)
        return ints

    def _read_sparse(self, begin: int, end: int) -> None:
        """SparseTensorProto: values 1, a TensorProto of the non-zero elements."""
        for number, wire, at, value in fields(self._data, begin, end):
            if number == 1 and wire == BYTES:
                self._read_initializer(at, value)

    def _read_initializer(self, begin: int, end: int, name: str = "") -> None:
        tensor = read_tensor(self._data, begin, end, name)
        self._header.initializers.append(tensor)

    def _name(self, begin: int, end: int) -> str:
        """A name that recurs, decoded once."""
        raw = self._data[begin:end]
        found = self._names.get(raw)
        if found is None:
            found = self._names[raw] = raw.decode("utf-8", "backslashreplace")
        return found
