"""What a TensorFlow graph would do if it ran: the nodes that some tensors need, in functions too.

SECURITY: a TensorFlow graph is a program. It can read and write files, and its loader runs a part
of it. Graphs that would do more than compute are refused without trust.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from convkit.errors import UnsafeError
from convkit.tensorflow_proto import (
    Function,
    Graph,
    Node,
    constant,
    constant_texts,
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
_TABLE_FILES = ("InitializeTableFromTextFile",)

_UNSAFE = frozenset(
    (
        "PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles",
        "Save", "SaveSlices", *_RESTORING, "DTensorRestore", "MergeV2Checkpoints",
        "LoadAndRemapMatrix", "GenerateVocabRemapping", "RecordInput", "Skipgram",
        "WholeFileReader", "TextLineReader", "TFRecordReader", "FixedLengthRecordReader",
        "LMDBReader", "TextLineDataset", "TFRecordDataset", "FixedLengthRecordDataset",
        "LMDBDataset", "SqlDataset", "CSVDataset", "MatchingFilesDataset", "SaveDataset",
        "LoadDataset", "SnapshotDataset", "SnapshotDatasetReader", "SnapshotNestedDatasetReader",
        "SnapshotChunkDataset", "ListSnapshotChunksDataset", "CacheDataset", "DatasetToTFRecord",
        "DataServiceDataset", "RegisterDataset", "DistributedSave", "GeneratorDataset",
        "CreateSummaryFileWriter", "CreateSummaryDbWriter", "DumpTensor",
        "CalibrationStatisticsSaver", "CopyHost", "Copy", "ImmutableConst", "Rpc", "TryRpc",
        "DecodeProto", "EncodeProto", "FileSystemSetConfiguration", "RemoteCall",
        "SymbolicGradient", "Send", "Recv",
    )
)  # fmt: skip
"""Operators that call Python, touch files or reach out, without version and `Experimental`.

Source: TensorFlow's SECURITY.md, and the operators of tensorflow/core/ops/*.cc that take a path, an
address or a Python function.
"""

_UNSAFE_BEGINNINGS = (
    "Rpc", "DebugIdentity", "DebugNan", "DebugNumeric", "XlaCustomCall", "Gcs", "BigQuery",
    "ConfigureDistributedTPU", "ConfigureAndInitializeGlobalTPU", "Collective",
)  # fmt: skip
_VERSION = re.compile(r"V\d+$")
_UPWARDS = re.compile(rb"(^|[/\\])\.\.($|[/\\])")
"""Two dots as a whole part of a path; names of weights may hold them too (`stft..basis`)."""


class Reach:
    """The nodes that some tensors need.

    Args:
        graph: the graph, with its functions.
        ends: tensors and nodes to begin at.
        stand_ins: also functions that TensorFlow may call in place of those that are called.
    """

    def __init__(self, graph: Graph, ends: Iterable[str], *, stand_ins: bool = False) -> None:
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
        if stand_ins:
            self._add([f for f in graph.functions.values() if f.stands_in])

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
        self._add(list(functions_used(self._graph, node)))

    def _add(self, waiting: list[Function]) -> None:
        while waiting:
            function = waiting.pop()
            if function.name in self.functions:
                continue
            self.functions[function.name] = function
            for inner in function.nodes:
                waiting += functions_used(self._graph, inner)


def check_safe(
    path: Path,
    graph: Graph,
    ends: Iterable[str],
    saver: Sequence[str] = (),
    assets: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Makes sure that loading and running a model only computes.

    Args:
        path: the model, for the message.
        graph: its graph.
        ends: what is run: outputs, and what sets the model up.
        saver: what takes the checkpoint's name, and the node that restores from it.
        assets: tensors that take paths of files in the folder `assets` -> these files.

    Raises:
        UnsafeError: the graph calls Python, or reads or writes files.
    """
    runs = Reach(graph, ends, stand_ins=True).all_nodes()
    restores = Reach(graph, saver[1:]).all_nodes()
    allowed = _TABLE_FILES if assets else ()
    found = _unsafe(graph, runs, allowed) or _unsafe(graph, restores, (*_RESTORING, *allowed))
    if found is not None:
        raise UnsafeError(
            f"{path} does more than compute: its node {found.name} is a {found.op}.",
            why="It would call Python code, touch files or reach the network when it runs.",
            hint="If you know where the model comes from:  --trust",
            operator=found.op,
            node=found.name,
        )
    opens = any(_plain(node.op) in _TABLE_FILES for node in runs)
    fed = {node_of(tensor) for tensor in (*assets, *saver[:1])}
    for node in [*(runs if opens else ()), *restores]:
        _refuse_paths(path, [] if node.name in fed else list(constant_texts(graph, node)))
    _refuse_paths(path, [name.encode() for name in assets.values()])


def _unsafe(graph: Graph, nodes: Iterable[Node], allowed: tuple[str, ...]) -> Node | None:
    for node in nodes:
        plain = _plain(node.op)
        is_known = plain in _UNSAFE or plain in _TABLE_FILES
        if is_known and plain not in allowed:
            return node
        if plain.startswith(_UNSAFE_BEGINNINGS):
            return node
        if node.op == "PrintV2" and text_attribute(graph, node, "output_stream").startswith("file"):
            return node
        if any(text_attribute(graph, node, name) for name in ("vocab_file", "debug_ops_spec")):
            return node
    return None


def _plain(operator: str) -> str:
    """An operator's name without its version."""
    return _VERSION.sub("", operator.lstrip("_").removeprefix("Experimental"))


def _refuse_paths(path: Path, texts: Iterable[bytes]) -> None:
    """Refuses texts that lead out of a model's folder, where the model opens files by name."""
    for text in texts:
        if text.startswith((b"/", b"~", b"\\")) or b"://" in text or _UPWARDS.search(text):
            raise UnsafeError(
                f"{path} names a file outside of its folder: {text[:200].decode(errors='replace')}",
                why="It would be read when the model is loaded.",
                hint="If you know where the model comes from:  --trust",
            )


def _weights(counts: Mapping[str, int]) -> dict[str, int]:
    return {dtype: n for dtype, n in counts.items() if dtype.startswith(_WEIGHTS) and n}
