"""Reads a Keras configuration: inputs, outputs, layers, and whether code hides in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convkit.artifact import TensorSpec
from convkit.errors import UnsafeError
from convkit.tensorflow_proto import ANY_RANK, named_spec

Config = Mapping[str, Any]

_CODE = (
    "Lambda", "__lambda__", "__pickle__", "TorchModuleWrapper", "JaxLayer", "FlaxLayer",
    "TFSMLayer",
)  # fmt: skip
"""Classes whose configuration is code, or names a file that is."""

_LAST_PART = re.compile(r"[.>]")
"""Keras finds `layers.Lambda` in `keras` as well as `Lambda` in `keras.layers`."""

_OWN = ("keras", "tf_keras", "tensorflow", "builtins")


def is_sequential(config: Config) -> bool:
    """Whether the configuration is a chain of layers."""
    return config.get("class_name") == "Sequential"


def is_functional(config: Config) -> bool:
    """Whether the configuration is a graph of layers."""
    inner = config.get("config")
    return isinstance(inner, Mapping) and "input_layers" in inner


def layers_of(config: Config) -> list[Config]:
    """The configurations of a model's layers; Keras 1 and 2.0 kept those of a chain as a list."""
    inner = config.get("config")
    found = inner.get("layers", ()) if isinstance(inner, Mapping) else inner
    return [layer for layer in found or () if isinstance(layer, Mapping)]


def name_of(layer: Config) -> str:
    """A layer's name."""
    inner = layer.get("config")
    inner = inner if isinstance(inner, Mapping) else {}
    return str(inner.get("name") or layer.get("name") or layer.get("class_name"))


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every object of a configuration, from the outside in."""
    if isinstance(node, Mapping):
        if "class_name" in node:
            yield dict(node)
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from walk(value)


def check_no_code(path: Path, config: Config) -> None:
    """Makes sure that building the model runs no code from its file.

    Raises:
        UnsafeError: a layer's configuration holds code, or names a file that does.
    """
    for node in walk(config):
        kind = _LAST_PART.split(str(node["class_name"]))[-1]
        if kind in _CODE:
            raise UnsafeError(
                f"{path} carries Python code: its layer '{name_of(node)}' is a {kind}.",
                why="Building the model would run it.",
                hint="If you know where the model comes from:  --trust",
                layer=name_of(node),
                class_name=kind,
            )
        inner = node.get("config")
        file = inner.get("vocabulary") if isinstance(inner, Mapping) else None
        if isinstance(file, str):
            raise UnsafeError(
                f"{path} names a file outside of it: {file[:200]!r}.",
                why=f"Its layer '{name_of(node)}' would read its vocabulary from there.",
                hint="If you know where the model comes from:  --trust",
                layer=name_of(node),
            )


def custom_classes(config: Config) -> list[tuple[str, str]]:
    """Registered name (or class name) and module of classes that are not of Keras."""
    found: dict[str, str] = {}
    for node in walk(config):
        module = str(node.get("module") or "")
        name = str(node.get("registered_name") or node["class_name"])
        if (module and module.partition(".")[0] not in _OWN) or ">" in name:
            found[name] = module
    return list(found.items())


def inputs_of(config: Config) -> tuple[TensorSpec, ...]:
    """What the model takes, under the names of its input layers; () where it does not say."""
    layers = layers_of(config)
    if is_functional(config):
        by_name = {name_of(layer): layer for layer in layers}
        names = _distinct(_ends(config["config"]["input_layers"]))
        found = [_layer_input(by_name.get(name, {}), name) for name in names]
        return tuple(spec for spec in found if spec is not None)
    if is_sequential(config) and layers:
        shape = sequential_shape(config)
        if shape is None:
            return ()
        return (named_spec(input_name(layers[0]), input_dtype(layers[0]), shape),)
    return _built_inputs(config)


def outputs_of(config: Config) -> tuple[TensorSpec, ...]:
    """What the model gives: by the keys of a dictionary, else by the names of its output layers.

    Shapes take a run to know.
    """
    layers = layers_of(config)
    if is_functional(config):
        ends = config["config"]["output_layers"]
        keys = list(_keys(ends)) if isinstance(ends, Mapping) else []
        names = [".".join(path) for path in keys] or _distinct(_ends(ends))
    else:
        names = [name_of(layers[-1])] if is_sequential(config) and layers else []
    return tuple(TensorSpec(name, "float32", (ANY_RANK,)) for name in names)


def layer_counts(config: Config) -> dict[str, int]:
    """How many layers of which class there are, those inside of nested models too."""
    counts: Counter[str] = Counter()
    waiting = layers_of(config)
    while waiting:
        layer = waiting.pop()
        inner = layers_of(layer)
        waiting += inner
        if not inner and layer.get("class_name") != "InputLayer":
            counts[str(layer.get("class_name"))] += 1
    return dict(counts.most_common())


def input_name(first: Config) -> str:
    """The name of a chain's input: its input layer's, else as Keras 2 made it from the first."""
    name = name_of(first)
    return name if first.get("class_name") == "InputLayer" else f"{name}_input"


def input_dtype(first: Config) -> str:
    """The element type of a chain's input; an embedding looks integers up."""
    if first.get("class_name") == "Embedding":
        return "int32"
    inner = first.get("config")
    written = inner.get("dtype") if isinstance(inner, Mapping) else None
    return _dtype(written) if first.get("class_name") == "InputLayer" else "float32"


def sequential_shape(config: Config) -> tuple[int | None, ...] | None:
    """The shape a chain takes, batch included; None where it was never built."""
    first = layers_of(config)[0]
    inner = config.get("config")
    candidates = [
        _shape_in(first.get("config")),
        inner.get("build_input_shape") if isinstance(inner, Mapping) else None,
        (config.get("build_config") or {}).get("input_shape"),
    ]
    if layers_of(first):
        nested = inputs_of(first)
        sizes = nested[0].shape if len(nested) == 1 else None
        candidates.append([n if isinstance(n, int) else None for n in sizes] if sizes else None)
    return next((shape for shape in map(_sizes, candidates) if shape is not None), None)


def _shape_in(inner: Any) -> Any:
    """The shape that a layer's configuration asks of its input."""
    if not isinstance(inner, Mapping):
        return None
    for key in ("batch_shape", "batch_input_shape"):
        if inner.get(key) is not None:
            return inner[key]
    return [None, *inner["input_shape"]] if inner.get("input_shape") is not None else None


def _layer_input(layer: Config, name: str) -> TensorSpec | None:
    shape = _sizes(_shape_in(layer.get("config")))
    inner = layer.get("config")
    if shape is None or not isinstance(inner, Mapping):
        return None
    return named_spec(name, _dtype(inner.get("dtype")), shape)


def _built_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """What a subclassed model was built for."""
    built = config.get("build_config")
    shape = _sizes(built.get("input_shape")) if isinstance(built, Mapping) else None
    return (named_spec("inputs", "float32", shape),) if shape else ()


def _sizes(shape: Any) -> tuple[int | None, ...] | None:
    if not isinstance(shape, list | tuple) or not shape:
        return None
    if not all(size is None or isinstance(size, int) for size in shape):
        return None
    return tuple(shape)


def _dtype(written: Any) -> str:
    """The element type a configuration names, by itself or as a policy."""
    if isinstance(written, Mapping):
        inner = written.get("config")
        written = inner.get("name") if isinstance(inner, Mapping) else None
    text = str(written or "float32")
    return {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}.get(text, text)


def _ends(written: Any) -> list[str]:
    """Layer names of `input_layers` or `output_layers`: [name, 0, 0], lists and dictionaries."""
    if isinstance(written, Mapping):
        return [name for key in sorted(written) for name in _ends(written[key])]
    if _is_end(written):
        return [written[0]]
    if isinstance(written, list | tuple):
        return [name for entry in written for name in _ends(entry)]
    return []


def _is_end(written: Any) -> bool:
    """Whether this is [layer, node, tensor]."""
    is_list = isinstance(written, list | tuple) and len(written) >= 3
    return is_list and isinstance(written[0], str) and isinstance(written[1], int)


def _keys(written: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where each end lies in a nest of dictionaries and lists, in the order they were written."""
    if _is_end(written):
        yield path
        return
    if isinstance(written, list | tuple):
        written = dict(enumerate(written))
    for key, entry in written.items() if isinstance(written, Mapping) else ():
        yield from _keys(entry, (*path, str(key)))


def _distinct(names: Sequence[str]) -> list[str]:
    return [
        f"{name}_{names[:i].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
