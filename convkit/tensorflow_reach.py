"""What a TensorFlow graph would do if it ran: the nodes that some tensors need, in functions too.

SECURITY: a TensorFlow graph is a program. It can read and write files, and its loader runs a part
of it. Graphs that would do more than compute are refused without trust.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from convkit.errors import UnsafeError
from convkit.tensorflow_proto import (
    Function,
    Graph,
    Node,
    constant,
    dtype_attribute,
    element_count,
    functions_used,
    node_of,
    shape_attribute,
    text_attribute,
)

VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
_WEIGHTS = ("float", "bfloat", "int8", "uint8", "int4", "uint4", "complex")
"""What the dtypes of weights begin with; integers of more bits are indices and shapes."""

_BOOKKEEPING = (
    "Const", "Identity", "IdentityN", "NoOp", "Placeholder", "PlaceholderWithDefault",
    "ReadVariableOp", "PartitionedCall", "StatefulPartitionedCall", *VARIABLES,
)  # fmt: skip
"""Operators that compute nothing, so no list of operators names them."""

_RESTORING = ("RestoreV2", "Restore", "RestoreSlice")

_UNSAFE = frozenset(
    (
        "PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles",
        "SaveV2", "Save", "SaveSlices", *_RESTORING, "MergeV2Checkpoints", "WholeFileReader",
        "WholeFileReaderV2", "TextLineReader", "TextLineReaderV2", "TFRecordReader",
        "TFRecordReaderV2", "FixedLengthRecordReader", "FixedLengthRecordReaderV2", "LMDBReader",
        "TextLineDataset", "TFRecordDataset", "TFRecordDatasetV2", "FixedLengthRecordDataset",
        "FixedLengthRecordDatasetV2", "SqlDataset", "SaveDataset", "SaveDatasetV2", "LoadDataset",
        "SnapshotDataset", "SnapshotDatasetV2", "CacheDataset", "CacheDatasetV2", "CSVDataset",
        "CSVDatasetV2", "CreateSummaryFileWriter", "CreateSummaryDbWriter", "DebugIdentity",
        "DebugIdentityV2", "DebugIdentityV3", "DebugNanCount", "DebugNumericSummary",
        "DebugNumericSummaryV2", "ImmutableConst", "RpcCall", "TryRpc", "DecodeProtoV2",
        "EncodeProto", "GcsConfigureCredentials",
    )
)  # fmt: skip
"""Operators that call Python, touch files or reach out.

Source: TensorFlow's SECURITY.md, and the operators of tensorflow/core/ops/*.cc that take a path, an
address or a Python function.
"""


class Reach:
    """The nodes that some tensors need.

    Args:
        graph: the graph, with its functions.
        ends: tensors and nodes to begin at.
    """

    def __init__(self, graph: Graph, ends: Iterable[str]) -> None:
        self._graph = graph
        nodes = {node.name: node for node in graph.nodes}
        self.nodes: list[Node] = []
        """Nodes of the graph itself."""
        self.functions: dict[str, Function] = {}
        """Functions that these call, directly or not."""
        waiting, seen = [node_of(end) for end in ends], set[str]()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in nodes:
                continue
            seen.add(name)
            self.nodes.append(nodes[name])
            self._call(nodes[name])
            waiting += [node_of(tensor) for tensor in nodes[name].inputs]

    def all_nodes(self) -> list[Node]:
        """Nodes of the graph and of the functions."""
        inner = [node for function in self.functions.values() for node in function.nodes]
        return [*self.nodes, *inner]

    def operators(self) -> dict[str, int]:
        """Operators that compute something, with their number, most frequent first."""
        calls = (*_BOOKKEEPING, *self._graph.functions)
        counts = Counter(node.op for node in self.all_nodes() if node.op not in calls)
        return dict(counts.most_common())

    def weight_elements(self) -> tuple[dict[str, int], dict[str, int]]:
        """Elements of variables, and of constants with more than one, by dtype."""
        variables, constants = Counter[str](), Counter[str]()
        for node in self.all_nodes():
            if node.op in VARIABLES:
                count = element_count(shape_attribute(self._graph, node) or ())
                variables[dtype_attribute(self._graph, node)] += count
            elif node.op == "Const":
                dtype, sizes, _ = constant(self._graph, node)
                if sizes and element_count(sizes) > 1:
                    constants[dtype] += element_count(sizes)
        return _weights(variables), _weights(constants)

    def _call(self, node: Node) -> None:
        waiting = list(functions_used(self._graph, node))
        while waiting:
            function = waiting.pop()
            if function.name in self.functions:
                continue
            self.functions[function.name] = function
            for inner in function.nodes:
                waiting += functions_used(self._graph, inner)


def check_safe(path: Path, graph: Graph, ends: Iterable[str], saver: Iterable[str] = ()) -> None:
    """Makes sure that loading and running a model only computes.

    Args:
        path: the model, for the message.
        graph: its graph.
        ends: what is run: outputs, and what sets the model up.
        saver: nodes that restore the variables, which may read the checkpoint.

    Raises:
        UnsafeError: the graph calls Python, or reads or writes files.
    """
    found = _unsafe(graph, ends, ()) or _unsafe(graph, saver, _RESTORING)
    if found is not None:
        raise UnsafeError(
            f"{path} does more than compute: its node {found.name} is a {found.op}.",
            why="It would call Python code, touch files or reach the network when it runs.",
            hint="If you know where the model comes from:  --trust",
            operator=found.op,
            node=found.name,
        )


def _unsafe(graph: Graph, ends: Iterable[str], allowed: tuple[str, ...]) -> Node | None:
    for node in Reach(graph, ends).all_nodes():
        if node.op in _UNSAFE and node.op not in allowed:
            return node
        if node.op == "PrintV2" and text_attribute(graph, node, "output_stream").startswith("file"):
            return node
    return None


def _weights(counts: Mapping[str, int]) -> dict[str, int]:
    return {dtype: n for dtype, n in counts.items() if dtype.startswith(_WEIGHTS) and n}
