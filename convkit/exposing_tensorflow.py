"""Runs a TensorFlow model so that it shows chosen inner tensors, by ONNX name where it has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convkit.artifact import Artifact, TensorSpec
from convkit.exposing import Exposed
from convkit.step import Feeds, Outputs
from convkit.tensorflow_graph import FrozenGraph, freeze_keras, run
from convkit.tensorflow_import import import_tensorflow
from convkit.tensorflow_session import cpu_config

_VALUES = "assets.extra/convkit_values.json"
"""What the importer wrote beside a SavedModel: ONNX value -> its tensor, and its layout."""
_CHANNELS_LAST = "channels-last"


class ExposedTensorFlow(Exposed):
    """A frozen graph.

    Attributes:
        tensors: key -> (tensor of the graph, whether channels stand last there). Keys are ONNX
            names in a model that was made from ONNX; else they are the tensors' own names.
    """

    def __init__(self, artifact: Artifact, load: Callable[[Artifact], Any]) -> None:
        tf = import_tensorflow()
        frozen = _frozen(artifact, load)
        self.inputs: tuple[TensorSpec, ...] = tuple(port.spec for port in frozen.inputs)
        self.outputs = tuple(port.name for port in frozen.outputs)
        self._frozen = frozen
        self._graph = tf.Graph()
        with self._graph.as_default():
            tf.graph_util.import_graph_def(frozen.graph_def, name="")
        config = cpu_config()
        # Fusing a bias with what follows it fails in TensorFlow where the sum is asked for as well.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        self.tensors = _tensors(artifact, self._graph)

    def run(self, keys: Sequence[str], feeds: Feeds) -> Outputs:
        """The outputs and the tensors of these keys."""
        known = [key for key in keys if key in self.tensors]
        inner = [self.tensors[key][0] for key in known]
        call = self._session.make_callable(
            [*(port.tensor for port in self._frozen.outputs), *inner],
            feed_list=[port.tensor for port in self._frozen.inputs],
        )
        results = run(call, [feeds[port.name] for port in self._frozen.inputs])
        shown = dict(zip(self.outputs, results, strict=False))
        for key, array in zip(known, results[len(self.outputs) :], strict=True):
            shown[key] = _channels_second(array) if self.tensors[key][1] else array
        return shown


def _channels_second(array: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(np.moveaxis(array, -1, 1)) if array.ndim > 2 else array


def _frozen(artifact: Artifact, load: Callable[[Artifact], Any]) -> FrozenGraph:
    loaded = load(artifact)
    if isinstance(loaded, FrozenGraph):
        return loaded
    return freeze_keras(loaded, artifact.opening.inputs)


def _tensors(artifact: Artifact, graph: Any) -> dict[str, tuple[str, bool]]:
    own = {
        tensor.name: (tensor.name, False)
        for operation in graph.get_operations()
        if operation.type not in ("Const", "Placeholder", "NoOp")
        for tensor in operation.outputs
    }
    file = artifact.path / _VALUES
    if not file.is_file():
        return own
    written: Mapping[str, Mapping[str, str]] = json.loads(file.read_text())
    places = _by_ending(own)
    found = {}
    for name, entry in written.items():
        tensor = places.get(entry["tensor"])
        if tensor:
            found[name] = (tensor, entry["layout"] == _CHANNELS_LAST)
    return found


def _by_ending(names: Mapping[str, Any]) -> dict[str, str]:
    """Names inside a function -> names in the graph it was inlined into, which put a scope before.

    The shortest is the call of the signature itself; a name in two calls at one depth is neither's.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/")
        for begin in range(len(parts)):
            found.setdefault("/".join(parts[begin:]), []).append(name)
    chosen = {}
    for ending, candidates in found.items():
        shortest = min(candidate.count("/") for candidate in candidates)
        nearest = [candidate for candidate in candidates if candidate.count("/") == shortest]
        if len(nearest) == 1:
            chosen[ending] = nearest[0]
    return chosen
