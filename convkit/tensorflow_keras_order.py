"""The order in which Keras 2 gave outputs, from what it wrote into a SavedModel beside the graph.

The signature of such a model has its outputs sorted by name; the model had an order of its own.

Source: Keras 2.15, `saving/legacy/saved_model/save.py` and `saved_metadata.proto`. Before
TensorFlow 2.5 the same JSON lay in the object graph (`saved_object_graph.proto`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convkit.protobuf import Buffer, Span, WireError, mapped, spans
from convkit.tensorflow_proto import text

_METADATA_FILE = "keras_metadata.pb"
_ROOT = "root"


def keras_outputs(folder: Path, data: Buffer, object_graph: Span | None) -> list[str]:
    """Names of a functional Keras model's outputs in its order; [] for any other model.

    Args:
        folder: the SavedModel's.
        data: its `saved_model.pb`.
        object_graph: where the SavedObjectGraph lies in it.
    """
    try:
        for written in (*_from_file(folder / _METADATA_FILE), *_from_graph(data, object_graph)):
            config = json.loads(written).get("config")
            ends = config.get("output_layers") if isinstance(config, dict) else None
            if ends:
                return _names(ends)
    except (OSError, WireError, ValueError, KeyError, IndexError, AttributeError, TypeError):
        return []
    return []


def _from_file(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    with mapped(path) as data:
        for node in spans(data, 0, len(data)).get(1, ()):
            found = spans(data, *node)
            if 3 in found and 5 in found and text(data, found[3][0]) == _ROOT:
                yield text(data, found[5][0])


def _from_graph(data: Buffer, object_graph: Span | None) -> Iterator[str]:
    """The metadata of the first object, which is the model itself."""
    if object_graph is None:
        return
    for node in spans(data, *object_graph).get(1, ())[:1]:
        for user_object in spans(data, *node).get(4, ()):
            for metadata in spans(data, *user_object).get(3, ()):
                yield text(data, metadata)


def _names(ends: Any) -> list[str]:
    if isinstance(ends[0], str):
        return [ends[0]]
    return [str(end[0]) for end in ends]
