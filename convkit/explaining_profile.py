"""Where the time of an ONNX model goes, node by node, as ONNX Runtime runs it.

The runtime writes down what each node took, and the graph as it runs it: fused, folded, with the
nodes that it inserted. Both are put together here.

Source: ONNX Runtime documentation, "Profiling tools" (a trace in Chrome's format, times in
microseconds) and "Graph optimizations" (optimized_model_filepath);
onnxruntime_session_options_config_keys.h for the keys below.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact
from convkit.formats.onnx_header import read_header
from convkit.formats.onnx_language import open_onnx
from convkit.formats.onnx_session import SessionRunner, import_runtime
from convkit.onnx_folder import graph_file
from convkit.processors import thread_count

if TYPE_CHECKING:
    import onnx

    from convkit.step import Feeds

CPU = "CPUExecutionProvider"

_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_WEIGHTS_KEY = "session.optimized_model_external_initializers_file_name"
_LEAST_BYTES_KEY = "session.optimized_model_external_initializers_min_size_in_bytes"
_KERNEL = "_kernel_time"
_FATAL = 4
_EVENTS = 400_000
"""The runtime keeps a million events at most; each node of each call is one."""
_LEAST_CALLS, _MOST_CALLS = 4, 2000
_LEAST_CHOSEN = 3

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """A node as it runs.

    Attributes:
        ms: of a call of the model, without the bodies inside the node; the mean of the fastest
            quarter of its calls.
        count: how often it runs in a call.
        inputs, outputs: names of values; empty where the graph does not know the node.
        input_types: (dtype, shape) of what comes in, weights that were packed left out.
        output_types: (dtype, shape) of what goes out.
        attributes: numbers and words only.
    """

    name: str
    op_type: str
    domain: str
    provider: str
    ms: float
    count: int
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    input_types: tuple[tuple[str, Shape], ...] = ()
    output_types: tuple[tuple[str, Shape], ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """All nodes of a model with their times.

    Attributes:
        nodes: in the order in which they run.
        call_count: calls that were profiled.
        weights: name of a constant -> (dtype, shape).
        graph_outputs: names of values.
    """

    nodes: tuple[Node, ...]
    call_count: int
    weights: Mapping[str, tuple[str, Shape]]
    graph_outputs: frozenset[str]

    @property
    def total_ms(self) -> float:
        """All nodes of a call."""
        return sum(node.ms for node in self.nodes)

    def producer(self, value: str) -> Node | None:
        """The node that gives a value; None for inputs and constants."""
        return self._givers.get(value)

    def consumers(self, node: Node) -> list[Node]:
        """The nodes that take what a node gives, each once."""
        takers = {id(one): one for value in node.outputs for one in self._takers.get(value, ())}
        return list(takers.values())

    @cached_property
    def _givers(self) -> Mapping[str, Node]:
        return {value: node for node in self.nodes for value in node.outputs if value}

    @cached_property
    def _takers(self) -> Mapping[str, list[Node]]:
        takers: defaultdict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for value in node.inputs:
                if value:
                    takers[value].append(node)
        return takers


def profile(
    artifact: Artifact, feeds: Feeds, time_s: float, providers: Sequence[str] = (CPU,)
) -> Profile:
    """Runs a model for so long with the runtime's profiler on.

    Args:
        artifact: an ONNX model or a folder with one.
        feeds: its inputs.
        time_s: at most; four calls are made in any case.
        providers: of the runtime, in order of preference.

    Raises:
        ConvkitError: the model cannot be opened or run.
    """
    with tempfile.TemporaryDirectory(prefix="convkit-profile-") as folder:
        file = graph_file(artifact.path)
        traced = _traced(file, Path(folder), providers)

        class Traced(SessionRunner):
            """The model with its session exchanged for one that is profiled."""

            def __init__(self, artifact: Artifact, expose: Sequence[str] = ()) -> None:
                super().__init__(artifact, expose)
                self.session = traced

        with open_onnx(artifact, Traced) as runner:
            calls = run_for(time_s, lambda: runner(feeds), len(_all_nodes_of(Path(folder))))
        return _read(traced, Path(folder), calls)


def profile_bytes(model: bytes, feeds: Feeds, time_s: float) -> Profile:
    """The same of a small model that lies in memory, which names all its nodes."""
    with tempfile.TemporaryDirectory(prefix="convkit-profile-") as folder:
        session = _session(model, Path(folder), (CPU,), None)
        calls = run_for(time_s, lambda: session.run(None, dict(feeds)), 1)
        return _read(session, Path(folder), calls)


def run_for(time_s: float, call: Callable[[], Any], node_count: int) -> int:
    """Calls until the time is over, within what the runtime's profiler keeps; says how often."""
    most = max(_LEAST_CALLS, min(_MOST_CALLS, _EVENTS // max(1, node_count)))
    started, done = time.perf_counter(), 0
    while done < _LEAST_CALLS or (done < most and time.perf_counter() - started < time_s):
        call()
        done += 1
    return done


def _traced(file: Path, folder: Path, providers: Sequence[str]) -> Any:
    """A session with the profiler on; the runtime finds a name for every node."""
    import onnx

    read_header(file)  # says what is wrong with it in plain words
    proto = onnx.load(file, load_external_data=False)
    if not _name_all(proto):
        return _session(str(file), folder, providers, None)
    return _session(proto.SerializeToString(), folder, providers, file.parent)


def _name_all(proto: onnx.ModelProto) -> bool:
    """Names the nodes that have no name, the runtime's trace knows no other; whether any had none.

    Bodies and functions are included.
    """
    nameless = [node for node in _protos(proto) if not node.name]
    for number, node in enumerate(nameless):
        node.name = f"{node.op_type}#{number}"
    return bool(nameless)


def _protos(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _inside(proto.graph.node)
    for function in proto.functions:
        yield from _inside(function.node)


def _inside(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for body in _bodies(node):
            yield from _inside(body.node)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        body
        for attribute in node.attribute
        for body in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]


def _session(
    model: str | bytes, folder: Path, providers: Sequence[str], weights: Path | None
) -> Any:
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = thread_count()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace")
    options.optimized_model_filepath = str(folder / "graph.onnx")
    options.add_session_config_entry(_WEIGHTS_KEY, "weights.bin")
    options.add_session_config_entry(_LEAST_BYTES_KEY, "1024")
    if weights is not None:
        options.add_session_config_entry(_FOLDER_KEY, str(weights.resolve()))
    return runtime.InferenceSession(model, options, providers=list(providers), enable_fallback=0)


def _graph(folder: Path) -> onnx.GraphProto:
    import onnx

    model = onnx.load(folder / "graph.onnx", load_external_data=False)
    return model.graph


def _all_nodes_of(folder: Path) -> list[onnx.NodeProto]:
    return list(_inside(_graph(folder).node))


def _read(session: Any, folder: Path, calls: int) -> Profile:
    """The trace and the graph put together."""
    from onnx import TensorProto

    graph = _graph(folder)
    known = {node.name: node for node in _inside(graph.node)}
    times, seen = _times(json.loads(Path(session.end_profiling()).read_text()), calls)
    inner = {
        name: sum(times.get(child.name, 0.0) for body in _bodies(node) for child in body.node)
        for name, node in known.items()
    }
    nodes = tuple(
        _node(name, event, count, max(0.0, times[name] - inner.get(name, 0.0)), known.get(name))
        for name, (event, count) in seen.items()
    )
    weights = {
        tensor.name: (TensorProto.DataType.Name(tensor.data_type).lower(), tuple(tensor.dims))
        for tensor in graph.initializer
    }
    outputs = frozenset(value.name for value in graph.output)
    return Profile(nodes, calls, weights, outputs)


def _times(
    events: Sequence[Mapping[str, Any]], calls: int
) -> tuple[dict[str, float], dict[str, tuple[Mapping[str, Any], int]]]:
    """Per node its milliseconds in a call, and its last event with how often it runs in a call."""
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    per_call = max(1, len(runs) // calls)  # a language model takes a text in several runs
    starts = runs[::per_call][:calls]
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * len(starts))
    seen: dict[str, tuple[Mapping[str, Any], int]] = {}
    at = 0
    ordered = sorted((e for e in events if e["cat"] == "Node"), key=lambda event: event["ts"])
    for event in ordered:
        if not event["name"].endswith(_KERNEL):
            continue
        while at + 1 < len(starts) and event["ts"] >= starts[at + 1]:
            at += 1
        name = event["name"].removesuffix(_KERNEL)
        sums[name][at] += event["dur"] / 1e3
        count = seen[name][1] + 1 if name in seen else 1
        seen[name] = event, count
    times = {name: statistics.fmean(_undisturbed(each)) for name, each in sums.items()}
    counted = {
        name: (event, max(1, round(count / len(starts)))) for name, (event, count) in seen.items()
    }
    return times, counted


def _undisturbed(times: Sequence[float]) -> list[float]:
    """The fastest quarter: what other programs took from a node is no part of the explanation."""
    return sorted(times)[: max(_LEAST_CHOSEN, len(times) // 4)]


def _node(
    name: str, event: Mapping[str, Any], count: int, ms: float, proto: onnx.NodeProto | None
) -> Node:
    facts = event["args"]
    return Node(
        name=name,
        op_type=facts["op_name"],
        domain="" if proto is None else proto.domain,
        provider=facts.get("provider", ""),
        ms=ms,
        count=count,
        inputs=() if proto is None else tuple(proto.input),
        outputs=() if proto is None else tuple(proto.output),
        input_types=_types(facts.get("input_type_shape", ())),
        output_types=_types(facts.get("output_type_shape", ())),
        attributes={} if proto is None else _attributes(proto),
    )


def _types(entries: Sequence[Mapping[str, Sequence[int]]]) -> tuple[tuple[str, Shape], ...]:
    return tuple((dtype, tuple(shape)) for entry in entries for dtype, shape in entry.items())


def _attributes(proto: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    simple = (
        onnx.AttributeProto.INT,
        onnx.AttributeProto.FLOAT,
        onnx.AttributeProto.INTS,
        onnx.AttributeProto.STRING,
    )
    found = {
        attribute.name: onnx.helper.get_attribute_value(attribute)
        for attribute in proto.attribute
        if attribute.type in simple
    }
    return {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value
        for name, value in found.items()
    }
