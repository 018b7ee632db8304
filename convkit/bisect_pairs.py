"""What two models have in common inside: which values of an ONNX graph are which of the other's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact
from convkit.errors import UsageError
from convkit.exposing import Exposed, ExposedGraph, ExposedNetwork
from convkit.module_parameters import parameter_values
from convkit.module_scopes import module_values
from convkit.step import Feeds

if TYPE_CHECKING:
    from convkit.exposing_program import ExposedProgram
    from convkit.exposing_source import ExposedSource

_TENSORFLOW = ("keras", "savedmodel", "tf_frozen")

Load = Callable[[Artifact], Any]


@dataclass(frozen=True)
class Pair:
    """Two models, one of them an ONNX graph, which says how tensors follow from each other.

    Attributes:
        graph: the ONNX graph.
        other: the other side; may be ONNX too.
        names: value of the graph -> key of the other side.
        graph_is_reference: which side is the truth.
    """

    graph: ExposedGraph
    other: Exposed
    names: Mapping[str, str]
    graph_is_reference: bool = False


def paired(
    reference: Artifact, candidate: Artifact, load: Load | None, samples: Sequence[Feeds]
) -> Pair:
    """Opens both and finds their common values.

    Raises:
        UsageError: neither is ONNX, or they have no common values.
        ModelError: a model cannot be opened.
    """
    if candidate.format == "onnx":
        pair = _to_onnx(reference, ExposedGraph(candidate), load, samples)
    elif reference.format == "onnx" and load is not None:
        pair = _from_onnx(ExposedGraph(reference), candidate, load)
    else:
        pair = None
    if pair is None:
        raise UsageError(
            f"Tensors inside {reference.format} and {candidate.format} cannot be matched.",
            why="Inner tensors are compared where one side is ONNX and the other keeps its names.",
            hint="Convert both to onnx first, or verify without --bisect.",
        )
    return pair


def _to_onnx(
    reference: Artifact, graph: ExposedGraph, load: Load | None, samples: Sequence[Feeds]
) -> Pair | None:
    if reference.format == "onnx":
        other = ExposedGraph(reference)
        return Pair(graph, other, _same(graph, other.makers))
    if load is None:
        raise UsageError(f"A {reference.format} reference needs to be loaded; pass load=.")
    if reference.format == "torch":
        network = load(reference)
        exposed = ExposedNetwork(network, samples[0] if samples else ())
        names = parameter_values(graph, exposed.modules) | module_values(graph, exposed.modules)
        return Pair(graph, exposed, names)
    if reference.format in _TENSORFLOW:
        from convkit.exposing_tensorflow import ExposedTensorFlow

        model = ExposedTensorFlow(reference, load)
        return Pair(graph, model, _same(graph, model.tensors))
    return None


def _from_onnx(graph: ExposedGraph, candidate: Artifact, load: Load) -> Pair | None:
    if candidate.format == "torch":
        made = _from_torch(load(candidate), candidate)
        return Pair(graph, made, _same(graph, made.names), True) if made is not None else None
    if candidate.format == "savedmodel":
        from convkit.exposing_tensorflow import ExposedTensorFlow

        model = ExposedTensorFlow(candidate, load)
        return Pair(graph, model, _same(graph, model.tensors), graph_is_reference=True)
    return None


def _from_torch(network: Any, candidate: Artifact) -> ExposedProgram | ExposedSource | None:
    """A PyTorch network that was made from ONNX; None for others."""
    from convkit.exposing_program import ExposedProgram, named_nodes
    from convkit.exposing_source import ExposedSource
    from convkit.formats.torch_source import is_source_folder

    if is_source_folder(candidate.path):
        return ExposedSource(network, candidate.path)
    return ExposedProgram(network) if named_nodes(network) else None


def _same(graph: ExposedGraph, keys: Any) -> dict[str, str]:
    known = set(keys)
    return {name: name for name in graph.makers if name in known}
