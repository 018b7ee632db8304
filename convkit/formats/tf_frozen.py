"""TensorFlow 1 graphs: a frozen GraphDef (`.pb`), or a checkpoint with its graph (`.ckpt.meta`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convkit.artifact import Artifact, Description, Opening, Precision
from convkit.errors import ModelError
from convkit.step import Format, Package, Runner
from convkit.tensorflow_checkpoint import check_shards, is_index, read_index, shard_paths
from convkit.tensorflow_ends import GraphFile, graph_file, is_graph, is_meta_graph, named_ends
from convkit.tensorflow_reach import VARIABLES, Reach, check_safe
from convkit.tensorflow_signature import Port


def _matches(path: Path, opening: Opening) -> bool:
    if opening.factory is not None or not path.is_file():
        return False
    # An index is recognised so that the error can name the file with the graph.
    return is_graph(path) or is_meta_graph(path) or is_index(path)


def _describe(path: Path, opening: Opening) -> Description:
    """Precision, inputs, outputs, sizes and operators, from the file's structure alone.

    Raises:
        ModelError: damaged, or a file of the checkpoint is missing.
        UnknownNameError: the graph has no tensor of a name that was given.
        UnsafeError: its graph does more than compute, and is not trusted.
    """
    if is_index(path):
        raise _not_the_graph(path)
    with graph_file(path) as file:
        inputs, outputs = _checked(file, opening)
        reach = Reach(file.graph, [port.tensor for port in outputs])
        variables, constants = reach.weight_elements()
        weights = {
            dtype: variables.get(dtype, 0) + constants.get(dtype, 0)
            for dtype in {**variables, **constants}
        }
        guessed = [
            side
            for side, names in (("inputs", opening.input_names), ("outputs", opening.output_names))
            if not names
        ]
        details: dict[str, Any] = {
            "kind": "checkpoint" if file.is_meta else "frozen graph",
            "graph_version": file.graph.producer,
            "node_count": len(file.graph.nodes),
        }
        if guessed:
            details["guessed"] = guessed
        return Description(
            precision=Precision.of_weights(weights),
            inputs=opening.inputs or tuple(port.spec for port in inputs),
            outputs=tuple(port.spec for port in outputs),
            parameter_count=sum(weights.values()),
            operators=reach.operators(),
            details=details,
            data_files=_data_files(path) if file.is_meta else (),
        )


def _not_the_graph(index: Path) -> ModelError:
    meta = index.with_suffix(".meta")
    if meta.is_file():
        return ModelError(
            f"{index} is a part of a checkpoint, the list of its variables.",
            hint=f"Name the file with the graph:  {meta}",
        )
    return ModelError(
        f"{index} is a part of a checkpoint, the list of its variables.",
        why=f"The graph they belong to would lie in {meta.name}, which is not there.",
        hint="Keras can fill a network from it:  load_weights, then save the model.",
    )


def _data_files(meta: Path) -> tuple[Path, ...]:
    prefix = meta.with_suffix("")
    count, _ = read_index(prefix)
    return (prefix.with_name(f"{prefix.name}.index"), *shard_paths(prefix, count))


def _load(artifact: Artifact) -> Any:
    """The graph as a `FrozenGraph`, variables of a checkpoint folded.

    Raises:
        ModelError, UnknownNameError, UnsafeError: see `_describe`.
    """
    from convkit.tensorflow_graph import read_checkpoint, read_frozen

    opening = artifact.opening
    with graph_file(artifact.path) as file:
        _checked(file, opening)
        read = read_checkpoint if file.is_meta else read_frozen
    return read(artifact.path, opening.input_names, opening.output_names)


def _open(artifact: Artifact) -> Runner:
    """A runner on a session with the frozen graph.

    Raises:
        ModelError, UnknownNameError, UnsafeError: see `_describe`.
    """
    from convkit.formats.tf_frozen_runner import FrozenGraphRunner

    return FrozenGraphRunner(_load(artifact), artifact.path.name, artifact.opening.inputs)


def _checked(file: GraphFile, opening: Opening) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of a graph that is whole and safe to run."""
    inputs, outputs = named_ends(file, opening.input_names, opening.output_names)
    if not opening.trust:
        ends = [*(port.tensor for port in outputs), *file.initializers]
        check_safe(file.path, file.graph, ends, file.saver)
    if file.is_meta and any(node.op in VARIABLES for node in file.graph.nodes):
        check_shards(file.path.with_suffix(""))
    return inputs, outputs


tf_frozen = Format(
    name="tf_frozen",
    suffixes=(".pb", ".meta"),
    needs=(Package("tensorflow", "savedmodel"),),
    matches=_matches,
    describe=_describe,
    open=_open,
    load=_load,
    heeds=("input_names", "output_names"),
)
