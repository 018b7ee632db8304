"""Runs a Keras model on TensorFlow: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convkit.artifact import TensorSpec
from convkit.errors import SamplesError, StepError
from convkit.step import Feeds, Outputs, Runner, Sizes
from convkit.tensorflow_feeds import arranged, draw_example
from convkit.tensorflow_graph import freeze_keras
from convkit.tensorflow_import import import_tensorflow
from convkit.tensorflow_keras import keras_function
from convkit.tensorflow_session import first_line
from convkit.tensorflow_signature import Port


class KerasRunner(Runner):
    """A Keras model in inference mode, on the CPU.

    Args:
        model: a `keras.Model`.
        inputs: what it takes, where the model does not say or other names are wanted.
    """

    def __init__(self, model: Any, inputs: Sequence[TensorSpec] = ()) -> None:
        self._model = model
        self._function, self.inputs, self.outputs = keras_function(model, inputs)
        layers = list(model._flatten_layers())
        self._stateful = [layer for layer in layers if getattr(layer, "stateful", False)]
        self._looks_up = any("Embedding" in type(layer).__name__ for layer in layers)

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name, in the model's order.

        Raises:
            SamplesError: an input is missing, or TensorFlow refuses it.
            StepError: the model fails, or was closed.
        """
        if self._function is None:
            raise StepError("This model was closed.")
        for layer in self._stateful:
            if hasattr(layer, "reset_state"):
                layer.reset_state()
        tf = import_tensorflow()
        ports = [Port(spec.name, "", spec) for spec in self.inputs]
        try:
            tensors = [
                tf.constant(array, spec.dtype)
                for array, spec in zip(arranged(feeds, ports), self.inputs, strict=True)
            ]
            results = self._function(*tensors)
        except (tf.errors.InvalidArgumentError, ValueError, TypeError) as cause:
            raise SamplesError("Keras refuses the inputs.", why=first_line(cause)) from cause
        except tf.errors.OpError as cause:
            raise StepError("The Keras model failed.", why=first_line(cause)) from cause
        names = (spec.name for spec in self.outputs)
        return dict(zip(names, (result.numpy() for result in results), strict=True))

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Seeded inputs the model makes sense of; ids lie within the tables they look up."""
        model, inputs = self._model, self.inputs
        return draw_example(
            model.name,
            inputs,
            sizes,
            seed,
            lambda: freeze_keras(model, inputs),
            looks_up=self._looks_up,
        )

    def close(self) -> None:
        """Lets the model go."""
        self._function = self._model = None
