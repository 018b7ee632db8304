"""A Keras 3 model as one TensorFlow function: what it takes and gives, by name and in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convkit.artifact import TensorSpec
from convkit.errors import InputsUnknownError
from convkit.naming import named_leaves
from convkit.tensorflow_import import import_keras, import_tensorflow
from convkit.tensorflow_proto import named_spec


def keras_function(
    model: Any, inputs: Sequence[TensorSpec] = ()
) -> tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The concrete function of a model in inference mode, the specs it takes, and those it gives.

    Raises:
        InputsUnknownError: nothing says what the model takes.
    """
    tf = import_tensorflow()
    specs = tuple(inputs) or keras_inputs(model)
    if not specs:
        raise InputsUnknownError(f"the Keras model {model.name}")
    given: list[str] = []

    def call(*tensors: Any) -> list[Any]:
        named = _named_results(model, model(packed(model, tensors, specs), training=False))
        given[:] = [name for name, _ in named]
        return [leaf for _, leaf in named]

    function = tf.function(call, autograph=False).get_concrete_function(
        *(
            tf.TensorSpec(
                [size if isinstance(size, int) else None for size in spec.shape],
                spec.dtype,
                name=f"input_{index}",
            )
            for index, spec in enumerate(specs)
        )
    )
    outputs = tuple(
        named_spec(name, tensor.dtype.name, tuple(tensor.shape.as_list()))
        for name, tensor in zip(given, function.outputs, strict=True)
    )
    return function, specs, outputs


def keras_inputs(model: Any) -> tuple[TensorSpec, ...]:
    """What a model takes, in order, under the names of its input layers; () where it is not known.

    The tensors of Keras are numbered through a process; the names of layers lie in the file.
    """
    tensors = getattr(model, "inputs", None) or []
    names = _distinct([_layer_name(tensor) for tensor in tensors])
    return tuple(
        named_spec(name, str(tensor.dtype), tuple(tensor.shape))
        for name, tensor in zip(names, tensors, strict=True)
    )


def _named_results(model: Any, result: Any) -> list[tuple[str, Any]]:
    """What a call gave: under the keys of a dictionary, else under the output layers' names.

    Keras lists the outputs of a dictionary sorted by key, and returns them in the user's order.
    """
    leaves = import_keras().tree.flatten(result)
    tensors = getattr(model, "outputs", None) or []
    if isinstance(result, Mapping) or len(tensors) != len(leaves):
        return list(named_leaves(result))
    return list(zip(_distinct([_layer_name(t) for t in tensors]), leaves, strict=True))


def packed(model: Any, tensors: Sequence[Any], specs: Sequence[TensorSpec]) -> Any:
    """Tensors in the structure in which a model takes its inputs."""
    keras = import_keras()
    structure = getattr(model, "_inputs_struct", None)
    if structure is not None:
        return keras.tree.pack_sequence_as(structure, list(tensors))
    if len(tensors) == 1:
        return tensors[0]
    return list(tensors)


def _layer_name(tensor: Any) -> str:
    history = getattr(tensor, "_keras_history", None)
    return str(history.operation.name if history is not None else tensor.name)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names, numbered where a layer gives several tensors."""
    return [
        f"{name}_{names[:i].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
