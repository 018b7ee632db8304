"""Rebuilds graphs of Keras 2 that call TensorFlow between their layers, with Keras 3's operations.

Keras 2 wrapped `x * 2`, `tf.concat(...)` or `x[:, 0]` into layers (`TFOpLambda`,
`SlicingOpLambda`) that Keras 3 does not have; it has the same functions in `keras.ops`.

Source: Keras 2.15, `engine/functional.py` (how nodes are written) and `layers/core/tf_op_layer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from convkit.errors import UnsupportedError
from convkit.formats.keras_config import is_functional, layers_of, name_of, walk
from convkit.tensorflow_import import import_keras

_FUNCTION, _SLICE = "TFOpLambda", "SlicingOpLambda"
_CONSTANT = "_CONSTANT_VALUE"

_RENAMED = {
    "math.reduce_sum": "sum", "math.reduce_mean": "mean", "math.reduce_max": "max",
    "math.reduce_min": "min", "math.reduce_prod": "prod", "math.reduce_std": "std",
    "math.reduce_variance": "var", "math.reduce_any": "any", "math.reduce_all": "all",
    "math.reduce_logsumexp": "logsumexp", "concat": "concatenate", "linalg.matmul": "matmul",
    "math.truediv": "true_divide", "__operators__.add": "add", "__operators__.sub": "subtract",
    "math.pow": "power", "math.sigmoid": "sigmoid", "clip_by_value": "clip",
    "math.argmax": "argmax", "math.argmin": "argmin", "identity": "identity",
    "compat.v1.transpose": "transpose", "math.equal": "equal", "image.resize": "image.resize",
    "math.softplus": "softplus", "math.l2_normalize": "normalize", "where": "where",
    "math.squared_difference": "squared_difference", "compat.v1.shape": "shape",
    "math.logical_and": "logical_and", "math.logical_or": "logical_or",
    "math.logical_not": "logical_not", "math.divide_no_nan": "divide_no_nan",
    "gather": "take", "compat.v1.gather": "take",
}  # fmt: skip
"""TensorFlow's name -> Keras's, where the last part differs or wants to be sure."""

_ARGUMENTS = {
    "keepdims": "keepdims", "keep_dims": "keepdims", "a": "x1", "b": "x2", "values": "arrays",
    "clip_value_min": "x_min", "clip_value_max": "x_max", "perm": "axes", "multiples": "repeats",
    "input": "x", "tensor": "x", "input_tensor": "x", "features": "x", "logits": "x",
    "condition": "condition", "transpose_a": "", "transpose_b": "", "name": "", "adjoint_a": "",
    "adjoint_b": "", "a_is_sparse": "", "b_is_sparse": "", "output_type": "", "epsilon": "epsilon",
}  # fmt: skip
"""TensorFlow's argument -> Keras's; "" is dropped where it asks for nothing."""

_PARTICULAR = {
    ("where", "x"): "x1", ("where", "y"): "x2", ("reshape", "shape"): "newshape",
    ("take", "params"): "x", ("take", "batch_dims"): "", ("take", "validate_indices"): "",
}  # fmt: skip
"""(Keras's function, TensorFlow's argument) -> Keras's argument."""

_ACTIVATIONS = frozenset(("exponential", "linear", "mish"))
"""Functions of TensorFlow that Keras has among its activations only."""

_BINARY = frozenset(
    ("add", "subtract", "multiply", "divide", "true_divide", "matmul", "power", "maximum",
     "minimum", "equal", "not_equal", "greater", "greater_equal", "less", "less_equal",
     "floor_divide", "logical_and", "logical_or", "squared_difference", "divide_no_nan")
)  # fmt: skip


def must_be_rebuilt(config: Mapping[str, Any]) -> bool:
    """Whether a graph of layers is written in a way that Keras 3 does not read.

    That is where it calls TensorFlow between its layers, or hands a layer a second tensor by
    keyword (`attention(query, value=value)`).
    """
    return any(
        node["class_name"] in (_FUNCTION, _SLICE)
        or any(
            _tensor_references(value)
            for entry in _entries(node.get("inbound_nodes"))
            for value in _keywords(entry).values()
        )
        for node in walk(config)
    )


def build_functional(config: Mapping[str, Any], built: Callable[[dict[str, Any]], Any]) -> Any:
    """The functional model of a configuration of Keras 2.

    Args:
        config: with TensorFlow calls among its layers.
        built: makes any other layer from its configuration.

    Raises:
        UnsupportedError: a call that has no counterpart in Keras 3.
    """
    keras = import_keras()
    inner = config["config"]
    if not is_functional(config):
        raise UnsupportedError(
            f"'{name_of(config)}' calls TensorFlow outside of a graph of layers."
        )
    results: dict[tuple[str, int], list[Any]] = {}
    waiting = []
    for layer in layers_of(config):
        node = dict(layer)
        calls = list(node.get("inbound_nodes") or ())
        maker = _maker(keras, node, built)
        if node["class_name"] == "InputLayer":
            results[name_of(node), 0] = _listed(maker.output)
        waiting += [(name_of(node), index, call, maker) for index, call in enumerate(calls)]
    while waiting:
        ready = [w for w in waiting if all(ref in results for ref in _references(w[2]))]
        if not ready:
            raise UnsupportedError(f"The layers of '{name_of(config)}' wait for each other.")
        for name, index, call, maker in ready:
            results[name, index] = _listed(_called(call, maker, results))
        waiting = [w for w in waiting if w not in ready]
    return keras.Model(
        _ends(inner["input_layers"], results),
        _ends(inner["output_layers"], results),
        name=inner.get("name"),
    )


def _maker(keras: Any, node: dict[str, Any], built: Callable[[dict[str, Any]], Any]) -> Any:
    if node["class_name"] == _FUNCTION:
        return _operation(keras, node)
    if node["class_name"] == _SLICE:
        return _slice
    bare = {key: value for key, value in node.items() if key != "inbound_nodes"}
    if layers_of(bare) and must_be_rebuilt(bare):
        return build_functional(bare, built)
    return built(bare)


def _operation(keras: Any, node: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of `keras.ops` for one of TensorFlow, taking TensorFlow's arguments."""
    written = str(node["config"].get("function"))
    name = _RENAMED.get(written, written.rpartition(".")[2])
    function = keras.ops if not name.startswith("_") else None
    for part in name.split("."):
        function = getattr(function, part, None)
    if function is None and name in _ACTIVATIONS:
        function = getattr(keras.activations, name, None)
    if function is None:
        raise UnsupportedError(
            f"Layer '{name_of(node)}' calls tf.{written}, which Keras 3 has no counterpart of.",
            hint="Build the network in Keras 3:  "
            "convkit convert package.module:factory --weights FILE",
        )

    def call(first: Any, *others: Any, **keywords: Any) -> Any:
        if name == "cast":
            return keras.ops.cast(first, keywords.get("dtype", *others[:1]))
        return function(first, *others, **_translated(node, name, keywords))

    return call


def _translated(node: Mapping[str, Any], name: str, keywords: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in keywords.items():
        new = _ARGUMENTS.get(key, key)
        if name in _BINARY and key in ("x", "y"):
            new = {"x": "x1", "y": "x2"}[key]
        new = _PARTICULAR.get((name, key), new)
        if new:
            found[new] = value
        elif value not in (None, False, "int64") and key != "name":
            raise UnsupportedError(f"Layer '{name_of(node)}' uses {key}={value!r}.")
    return found


def _slice(tensor: Any, **keywords: Any) -> Any:
    def part(value: Any) -> Any:
        if isinstance(value, Mapping):
            return slice(value.get("start"), value.get("stop"), value.get("step"))
        return Ellipsis if value in ("...", "Ellipsis") else value

    spec = keywords.get("slice_spec", ())
    return tensor[tuple(part(value) for value in _listed(spec))]


def _references(call: Any) -> list[tuple[str, int]]:
    """(layer, node index) of every tensor that one inbound node speaks of."""
    found = []
    for entry in _entries(call):
        if entry[0] != _CONSTANT:
            found.append((entry[0], entry[1]))
        for value in _keywords(entry).values():
            found += [(v[0], v[1]) for v in _tensor_references(value)]
    return found


def _entries(call: Any) -> list[Any]:
    """The entries of an inbound node: one [name, node, tensor, keywords], or a list of them."""
    if isinstance(call, list) and call and isinstance(call[0], str):
        return [call]
    return [entry for part in call for entry in _entries(part)] if isinstance(call, list) else []


def _keywords(entry: list[Any]) -> dict[str, Any]:
    return dict(entry[3]) if len(entry) > 3 and isinstance(entry[3], dict) else {}


def _tensor_references(value: Any) -> list[Any]:
    if _is_reference(value):
        return [value]
    if isinstance(value, list):
        return [found for part in value for found in _tensor_references(part)]
    return []


def _is_reference(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and all(isinstance(number, int) for number in value[1:])
    )


def _called(call: Any, maker: Any, results: Mapping[tuple[str, int], list[Any]]) -> Any:
    entries = _entries(call)
    keywords = _keywords(entries[0])
    tensors = [
        entry[2] if entry[0] == _CONSTANT else results[entry[0], entry[1]][entry[2]]
        for entry in entries
    ]
    one = isinstance(call[0], str) or len(entries) == 1
    given = tensors[0] if one else tensors
    return maker(given, **{key: _resolved(value, results) for key, value in keywords.items()})


def _resolved(value: Any, results: Mapping[tuple[str, int], list[Any]]) -> Any:
    if _is_reference(value) and (value[0], value[1]) in results:
        return results[value[0], value[1]][value[2]]
    if isinstance(value, list):
        return [_resolved(part, results) for part in value]
    return value


def _ends(written: Any, results: Mapping[tuple[str, int], list[Any]]) -> Any:
    if isinstance(written, Mapping):
        return {key: _ends(value, results) for key, value in written.items()}
    if _is_reference(written):
        return results[written[0], written[1]][written[2]]
    return [_ends(value, results) for value in written]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
