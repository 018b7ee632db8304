"""TensorFlow SavedModels, of both generations: a folder with `saved_model.pb` and its variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convkit.artifact import Artifact, Description, Opening, Precision
from convkit.errors import ModelError, UnsafeError
from convkit.step import Format, Package, Runner
from convkit.tensorflow_checkpoint import check_shards
from convkit.tensorflow_ends import is_graph
from convkit.tensorflow_reach import VARIABLES, Reach, check_safe
from convkit.tensorflow_signature import MetaGraph, Signature, choose, saved_model

_HUB_FILES = "blobs"
"""Where a hub's cache keeps the files that `snapshots/<revision>/` links to."""

_GRAPH_FILES = ("saved_model.pb", "saved_model.pbtxt")


def _matches(path: Path, opening: Opening) -> bool:
    if opening.factory is not None:
        return False
    if path.is_file():  # recognised so that the error can name the folder
        return path.name in _GRAPH_FILES and not is_graph(path)
    return any((path / name).is_file() for name in _GRAPH_FILES)


def _describe(path: Path, opening: Opening) -> Description:
    """Precision, signatures, sizes and operators, from headers alone.

    Raises:
        ModelError: missing, damaged, without signature, or without its variables.
        UnsafeError: its graph does more than compute, and is not trusted.
        UnknownNameError, UsageError: which signature is meant cannot be told.
    """
    if path.is_file():
        raise ModelError(
            f"{path} is a part of a SavedModel, the graph without its variables.",
            hint=f"Name the folder:  {path.absolute().parent}",
        )
    with saved_model(path) as meta:
        signature = _checked(path, opening, meta)
        reach = Reach(meta.graph, [port.tensor for port in signature.outputs])
        variables, constants = reach.weight_elements()
        weights = {
            dtype: variables.get(dtype, 0) + constants.get(dtype, 0)
            for dtype in {**variables, **constants}
        }
        return Description(
            precision=Precision.of_weights(weights),
            inputs=opening.inputs or tuple(port.spec for port in signature.inputs),
            outputs=tuple(port.spec for port in signature.outputs),
            parameter_count=sum((variables or constants).values()),
            operators=reach.operators(),
            details=_details(meta, signature, constants if variables else {}),
        )


def _details(meta: MetaGraph, chosen: Signature, constants: dict[str, int]) -> dict[str, Any]:
    details: dict[str, Any] = {
        "tensorflow_version": meta.tensorflow_version,
        "generation": 1 if meta.object_graph is None else 2,
        "tags": list(meta.tags),
        "signature": chosen.name,
        "signatures": {
            signature.name: {
                "inputs": [str(port.spec) for port in signature.inputs],
                "outputs": [str(port.spec) for port in signature.outputs],
            }
            for signature in meta.signatures.values()
        },
    }
    optional = {
        "constant_elements": sum(constants.values()),
        "string_tensors": [
            port.name for port in (*chosen.inputs, *chosen.outputs) if port.spec.dtype == "string"
        ],
    }
    return details | {name: value for name, value in optional.items() if value}


def _load(artifact: Artifact) -> Any:
    """The signature as a `FrozenGraph`.

    Raises:
        ModelError, UnsafeError, UsageError: see `_describe`.
    """
    from convkit.tensorflow_graph import freeze_saved_model

    path, opening = artifact.path, artifact.opening
    with saved_model(path) as meta:
        _checked(path, opening, meta)
    return freeze_saved_model(path, opening.signature)


def _open(artifact: Artifact) -> Runner:
    """A runner on a session that holds the loaded model.

    Raises:
        ModelError, UnsafeError, UsageError: see `_describe`.
    """
    from convkit.formats.savedmodel_runner import SavedModelRunner

    path, opening = artifact.path, artifact.opening
    with saved_model(path) as meta:
        signature = _checked(path, opening, meta)
        reach = Reach(meta.graph, [port.tensor for port in signature.outputs])
        operators = reach.operators()
        assigns = any(name.startswith("Assign") for name in operators)
        looks_up = any("Gather" in name for name in operators)
    return SavedModelRunner(path, opening, meta.saver if assigns else (), looks_up)


def _checked(path: Path, opening: Opening, meta: MetaGraph) -> Signature:
    """The signature that is meant, of a model that is whole and safe to load."""
    signature = choose(meta.signatures, opening.signature, path)
    if not opening.trust:
        _refuse_links(path)
        ends = [port.tensor for port in signature.outputs]
        check_safe(path, meta.graph, [*ends, *meta.initializers], meta.saver, meta.assets)
    if any(node.op in VARIABLES for node in meta.graph.nodes):
        if not (path / "variables").is_dir():
            raise ModelError(
                f"There is no folder {path / 'variables'}, which holds the model's variables.",
                hint="Copy the whole model, not saved_model.pb alone.",
            )
        check_shards(path / "variables" / "variables")
    return signature


def _refuse_links(path: Path) -> None:
    """Makes sure that every file of a model lies in its folder, or in the hub's cache around it.

    Raises:
        UnsafeError: one is a link to somewhere else.
    """
    folders = (path.resolve(), path.resolve().parent.parent / _HUB_FILES)
    for file in (*path.glob("*"), *path.glob("variables/*"), *path.glob("assets/*")):
        target = file.resolve()
        if not any(target.is_relative_to(folder) for folder in folders):
            raise UnsafeError(
                f"{file} is a link out of the model's folder, to {target}.",
                hint="If you know where the model comes from:  --trust",
            )


savedmodel = Format(
    name="savedmodel",
    suffixes=("",),
    needs=(Package("tensorflow", "savedmodel"),),
    matches=_matches,
    describe=_describe,
    open=_open,
    load=_load,
    heeds=("signature",),
)
