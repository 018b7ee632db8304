"""Reads a SavedModel's signatures without TensorFlow, their tensors in the model's own order.

Source: tensorflow/core/protobuf `saved_model.proto`, `meta_graph.proto`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convkit.artifact import TensorSpec
from convkit.errors import ModelError, UnknownNameError, UnsupportedError, UsageError
from convkit.protobuf import (
    BYTES,
    VARINT,
    Buffer,
    Span,
    WireError,
    fields,
    lone_spans,
    mapped,
    spans,
)
from convkit.tensorflow_keras_order import keras_outputs
from convkit.tensorflow_proto import (
    Function,
    Graph,
    called_function,
    dtype_name,
    map_entry,
    named_spec,
    natural,
    node_of,
    read_graph,
    read_shape,
    text,
)

DEFAULT_SIGNATURE = "serving_default"
ORDER_FILE = Path("assets.extra", "convkit_signature.json")
"""Where a SavedModel that convkit wrote keeps the order of its inputs and outputs."""

_SERVE = "serve"
_HIDDEN = "__saved_model_"
_MAX_CALLS = 8


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: its name for the user, the tensor it is, and its spec."""

    name: str
    tensor: str
    spec: TensorSpec


@dataclass(frozen=True)
class Signature:
    """One way to call a SavedModel; inputs and outputs in the model's own order."""

    name: str
    method: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class MetaGraph:
    """One MetaGraphDef: its tags, the TensorFlow that wrote it, signatures and graph.

    Attributes:
        object_graph: where the SavedObjectGraph lies (TensorFlow 2 only).
        initializers: tensors and nodes that set the model up when it is loaded.
        saver: tensors and nodes that restore its variables: what takes the file's name, and what
            does the work; empty without variables.
        assets: tensor -> the file in the folder `assets` whose path it takes.
    """

    tags: tuple[str, ...]
    tensorflow_version: str
    signatures: Mapping[str, Signature]
    graph: Graph
    object_graph: Span | None
    initializers: tuple[str, ...]
    saver: tuple[str, ...]
    assets: Mapping[str, str]


@contextmanager
def saved_model(folder: Path) -> Iterator[MetaGraph]:
    """The meta graph to serve of the SavedModel in a folder, its file mapped meanwhile.

    Raises:
        ModelError: there is no SavedModel, or it is damaged.
        UnsupportedError: it is written in Protocol Buffers' text format.
    """
    path = folder / "saved_model.pb"
    if not path.is_file():
        if (folder / "saved_model.pbtxt").is_file():
            raise UnsupportedError(
                f"{folder} holds its SavedModel as text (saved_model.pbtxt).",
                hint="Write it in binary form, as tf.saved_model.save does.",
            )
        raise ModelError(f"There is no file {path}.", hint="A SavedModel's folder holds it.")
    with mapped(path) as data, wire_errors(path, len(data)):
        found = tuple(_meta_graphs(data, folder))
        if not found:
            raise ModelError(f"{path} holds no graph.", hint="Save or download it again.")
        yield next((meta for meta in found if meta.tags == (_SERVE,)), None) or next(
            (meta for meta in found if _SERVE in meta.tags), found[0]
        )


@contextmanager
def wire_errors(path: Path, size_bytes: int) -> Iterator[None]:
    """Turns errors of reading a protobuf file into ours; attributes are read late, so within too.

    Raises:
        ModelError: the file is damaged.
    """
    try:
        yield
    except (WireError, UnicodeDecodeError, KeyError, IndexError) as cause:
        raise ModelError(
            f"{path} is damaged or truncated.",
            why=f"{cause}; it has {size_bytes} bytes.",
            hint="Save or download it again.",
        ) from cause


def choose(signatures: Mapping[str, Signature], wanted: str | None, where: Path) -> Signature:
    """The signature of that name; without a name the default one, else the only one.

    Raises:
        ModelError: there is no signature at all.
        UnknownNameError: no signature has that name.
        UsageError: there are several, none the default, and no name.
    """
    if not signatures:
        raise ModelError(
            f"{where} has no signature, so nothing says what goes in and comes out.",
            hint="Save it with one:  tf.saved_model.save(model, path, signatures=function)",
        )
    if wanted is not None:
        if wanted not in signatures:
            raise UnknownNameError("signature", wanted, signatures)
        return signatures[wanted]
    if DEFAULT_SIGNATURE in signatures:
        return signatures[DEFAULT_SIGNATURE]
    if len(signatures) > 1:
        raise UsageError(
            f"{where} has {len(signatures)} signatures and none is called {DEFAULT_SIGNATURE}.",
            why=f"They are: {', '.join(sorted(signatures))}",
            hint=f"Name one:  --signature {min(signatures)}",
            signatures=sorted(signatures),
        )
    return next(iter(signatures.values()))


def _meta_graphs(data: Buffer, folder: Path) -> Iterator[MetaGraph]:
    for number, kind, begin, stop in fields(data, 0, len(data)):
        if number == 2 and kind == BYTES:
            yield _meta_graph(data, (begin, stop), folder)


def _meta_graph(data: Buffer, span: Span, folder: Path) -> MetaGraph:
    lone_spans(data, *span, 1, 2, 3, 7)
    found = spans(data, *span)
    about = spans(data, *found[1][-1]) if 1 in found else {}
    graph = read_graph(data, *(found[2][-1] if 2 in found else (0, 0)))
    signatures = {}
    object_graph = found[7][-1] if 7 in found else None
    outputs = keras_outputs(folder, data, object_graph)
    initializers = initializers_of(data, found.get(4, []))
    for entry in found.get(5, ()):
        name, value = map_entry(data, entry)
        if not name.startswith(_HIDDEN):
            order = _stored_order(folder, name) or {"inputs": [], "outputs": outputs}
            signatures[name] = _signature(data, value, name, graph, order)
        elif name == "__saved_model_init_op":
            initializers += tuple(tensor for tensor, _ in _tensors(data, value, 2).values())
    return MetaGraph(
        tags=tuple(sorted({text(data, tag) for tag in about.get(4, ())})),
        tensorflow_version=text(data, about[5][-1]) if 5 in about else "",
        signatures=signatures,
        graph=graph,
        object_graph=object_graph,
        initializers=initializers,
        saver=saver_names(data, found.get(3, [])),
        assets=dict(_asset(data, entry) for entry in found.get(6, ())),
    )


def _asset(data: Buffer, span: Span) -> tuple[str, str]:
    """Tensor and file name of an AssetFileDef."""
    found = lone_spans(data, *span, 1, 2)
    tensor = lone_spans(data, *found[1], 1).get(1) if 1 in found else None
    return text(data, tensor) if tensor else "", text(data, found[2]) if 2 in found else ""


def saver_names(data: Buffer, found: list[Span]) -> tuple[str, ...]:
    """The tensor that takes the file's name and the node that restores, of a SaverDef."""
    named = spans(data, *found[-1]) if found else {}
    return tuple(text(data, named[number][-1]) for number in (1, 3) if number in named)


def initializers_of(data: Buffer, entries: list[Span]) -> tuple[str, ...]:
    """Nodes of the collections that set a TensorFlow 1 model up."""
    names: tuple[str, ...] = ()
    for entry in entries:
        key, value = map_entry(data, entry)
        if key in ("legacy_init_op", "saved_model_main_op", "table_initializer"):
            for nodes in spans(data, *value).get(1, ()):
                names += tuple(text(data, name) for name in spans(data, *nodes).get(1, ()))
    return names


def _signature(
    data: Buffer, span: Span, name: str, graph: Graph, stored: Mapping[str, list[str]]
) -> Signature:
    inputs, outputs = _tensors(data, span, 1), _tensors(data, span, 2)
    method = spans(data, *span).get(3)
    return Signature(
        name,
        text(data, method[-1]) if method else "",
        _ports(inputs, stored.get("inputs") or _call_order(inputs, graph)),
        _ports(outputs, stored.get("outputs") or []),
    )


def _ports(tensors: Mapping[str, tuple[str, TensorSpec]], order: list[str]) -> tuple[Port, ...]:
    """Ports in this order where it names them all, else as TensorFlow sorts them."""
    names = order if sorted(order) == sorted(tensors) else sorted(tensors, key=natural)
    return tuple(Port(name, *tensors[name]) for name in names)


def _tensors(data: Buffer, span: Span, number: int) -> dict[str, tuple[str, TensorSpec]]:
    """A SignatureDef's TensorInfos by name: tensor name and spec.

    A composite tensor (sparse, ragged) has no single tensor; its name is "".
    """
    found = {}
    for entry in spans(data, *span).get(number, ()):
        name, value = map_entry(data, entry)
        tensor, dtype, sizes = "", 0, None
        for key, kind, begin, stop in fields(data, *value):
            if key == 1 and kind == BYTES:
                tensor = text(data, (begin, stop))
            elif key == 2 and kind == VARINT:
                dtype = stop
            elif key == 3 and kind == BYTES:
                sizes = read_shape(data, (begin, stop))
        found[name] = tensor, named_spec(name, dtype_name(dtype), sizes)
    return found


def _stored_order(folder: Path, signature: str) -> dict[str, list[str]]:
    """{"inputs": names, "outputs": names} as convkit stored them for a signature; else nothing."""
    try:
        document = json.loads((folder / ORDER_FILE).read_text())
        order = document.get("signatures", {}).get(signature, document)
        return {side: [_name(entry) for entry in order[side]] for side in ("inputs", "outputs")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def channels_last_names(folder: Path) -> frozenset[str]:
    """Inputs and outputs whose channels convkit moved to the end when it wrote the model."""
    try:
        document = json.loads((folder / ORDER_FILE).read_text())
        return frozenset(map(str, document.get("channels_last", ())))
    except (OSError, ValueError, TypeError, AttributeError):
        return frozenset()


def _name(entry: Any) -> str:
    return str(entry["name"] if isinstance(entry, dict) else entry)


def _call_order(inputs: Mapping[str, tuple[str, TensorSpec]], graph: Graph) -> list[str]:
    """Names in the order in which the function behind a signature takes them; else nothing.

    TensorFlow 2 wraps the function a user wrote into one that takes the signature's inputs sorted
    by name; the call inside still has the order of the user's function.
    """
    waiting = {node_of(tensor): name for name, (tensor, _) in inputs.items()}
    nodes, order = graph.nodes, []
    for _ in range(_MAX_CALLS):
        calls = [node for node in nodes if waiting.keys() & {node_of(i) for i in node.inputs}]
        function = called_function(graph, calls[0]) if len(calls) == 1 else None
        if function is None:
            break
        order = [waiting[node_of(i)] for i in calls[0].inputs if node_of(i) in waiting]
        waiting = _passed_on(calls[0].inputs, function, waiting)
        nodes = function.nodes
    return order


def _passed_on(
    given: tuple[str, ...], function: Function, waiting: Mapping[str, str]
) -> dict[str, str]:
    """Argument name inside the function -> input name outside."""
    return {
        argument: waiting[node_of(tensor)]
        for tensor, argument in zip(given, function.arguments, strict=False)
        if node_of(tensor) in waiting
    }
