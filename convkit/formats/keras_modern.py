"""Rewrites a configuration of Keras 1 or 2 so that Keras 3 builds the same model from it.

Keras 3 refuses names and arguments that older versions wrote, also where they change nothing.

Source: the release notes of Keras 3 ("breaking changes") and the constructors of its layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from convkit.errors import UnsupportedError
from convkit.formats.keras_config import (
    input_dtype,
    input_name,
    is_sequential,
    layers_of,
    sequential_shape,
)

_KINDS = ("initializers", "regularizers", "constraints", "losses", "metrics", "optimizers")
_MODELS = {"Functional": "keras.src.models.functional", "Sequential": "keras"}
_OLD_ROOTS = ("keras", "tf_keras", "tensorflow")
_RENAMED_CLASSES = {
    "CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU", "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization", "SyncBatchNormalization": "BatchNormalization",
    "LSTMV2": "LSTM", "GRUV2": "GRU", "Convolution1D": "Conv1D", "Convolution2D": "Conv2D",
    "Convolution3D": "Conv3D", "Deconvolution2D": "Conv2DTranspose",
    "SeparableConvolution2D": "SeparableConv2D", "MaxPool2D": "MaxPooling2D",
}  # fmt: skip
_RENAMED_ARGUMENTS = {("LeakyReLU", "alpha"): "negative_slope"}
_HARMLESS = frozenset(
    (
        "implementation", "fused", "input_length", "input_dim", "virtual_batch_size", "stateful",
        "batch_input_shape", "input_shape", "build_input_shape", "input_dtype",
        "experimental_run_tf_function", "query_shape", "key_shape", "value_shape",
    )
)  # fmt: skip
"""Arguments that say how to compute and not what, or what the input layer says as well."""

_TRAINING = ("_initializer", "_regularizer", "_constraint")
"""Endings of arguments that a trained model no longer needs."""

_ASKS_NOTHING: tuple[Any, ...] = (None, 0, 1, "", [], {}, ())
"""Values by which an argument that is gone asked for nothing; False is a 0 here, True no 1."""


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in the words of Keras 3; the same object's content where nothing is old."""
    rewritten: dict[str, Any] = copy.deepcopy(dict(config))
    rewritten.pop("compile_config", None)
    _visit(rewritten, _rewrite)
    return rewritten


def without_unknown(
    config: dict[str, Any], arguments: Callable[[str, str], frozenset[str] | None]
) -> None:
    """Removes arguments that a layer does not take and that asked for nothing, in place.

    Args:
        config: the configuration.
        arguments: (class name, module) -> what the class takes; None for a class that is not known.

    Raises:
        UnsupportedError: an argument that is gone changed what the layer computes.
    """

    def check(node: dict[str, Any]) -> None:
        inner = node.get("config")
        kind = str(node["class_name"])
        known = arguments(kind, str(node.get("module") or ""))
        if not isinstance(inner, dict) or known is None:
            return
        for name in [name for name in inner if name not in known]:
            value = inner.pop(name)
            harmless = name in _HARMLESS or name.endswith(_TRAINING)
            if not harmless and (value is True or value not in _ASKS_NOTHING):
                raise UnsupportedError(
                    f"Layer '{inner.get('name', kind)}' ({kind}) uses {name}={value!r}, which "
                    "Keras 3 does not have.",
                    hint="Build the network in Keras 3:  "
                    "convkit convert package.module:factory --weights FILE",
                )

    _visit(config, check)


def _visit(node: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Calls `change` on every object of a configuration, from the outside in."""
    if isinstance(node, dict):
        if "class_name" in node:
            change(node)
        for value in node.values():
            _visit(value, change)
    elif isinstance(node, list):
        for value in node:
            _visit(value, change)


def _rewrite(node: dict[str, Any]) -> None:
    kind = node["class_name"] = _RENAMED_CLASSES.get(node["class_name"], node["class_name"])
    _rewrite_place(node)
    inner = node.get("config")
    if kind == "Sequential":
        _rewrite_chain(node)
    elif isinstance(inner, dict):
        _rewrite_arguments(kind, inner)
    node.pop("build_config", None)  # layers of a graph or chain are built when it is put together


def _rewrite_place(node: dict[str, Any]) -> None:
    """The module and registered name under which Keras 3 knows a class of its own."""
    module, kind = node.get("module"), node["class_name"]
    if not isinstance(module, str) or module.partition(".")[0] not in _OLD_ROOTS:
        return
    if kind == "Policy":
        node["class_name"] = "DTypePolicy"
    if kind in _MODELS:
        node["module"] = _MODELS[kind]
    elif kind in ("Policy", "DTypePolicy"):
        node["module"] = "keras"
    else:
        kinds = [word for word in _KINDS if word in module]
        node["module"] = f"keras.{kinds[0]}" if kinds else _layer_module(module)
    node["registered_name"] = None


def _layer_module(module: str) -> str:
    """Keras 3's own operations keep their module; every layer lies in `keras.layers`."""
    return module if module.startswith(("keras.src.ops", "keras.ops")) else "keras.layers"


def _rewrite_chain(node: dict[str, Any]) -> None:
    """Gives a chain an input layer of its own, whose name then is the same at each loading."""
    if isinstance(node.get("config"), list):  # Keras 1 and 2.0
        node["config"] = {"name": node.get("name", "sequential"), "layers": node["config"]}
    layers = layers_of(node)
    if not layers or layers[0].get("class_name") == "InputLayer" or not is_sequential(node):
        return
    shape = sequential_shape(node)
    if shape is None:
        return
    first: dict[str, Any] = {
        "class_name": "InputLayer",
        "config": {
            "batch_shape": list(shape),
            "dtype": input_dtype(layers[0]),
            "name": input_name(layers[0]),
        },
    }
    if "module" in layers[0]:
        first |= {"module": "keras.layers", "registered_name": None}
    node["config"]["layers"] = [first, *layers]


def _rewrite_arguments(kind: str, inner: dict[str, Any]) -> None:
    if kind == "InputLayer":
        shape = inner.pop("batch_input_shape", None)
        if shape is not None:
            inner["batch_shape"] = shape
    else:
        inner.pop("batch_input_shape", None)
    axis = inner.get("axis")
    if kind == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
        inner["axis"] = axis[0]
    for (owner, old), new in _RENAMED_ARGUMENTS.items():
        if kind == owner and old in inner:
            inner[new] = inner.pop(old)
