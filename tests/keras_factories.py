"""Factories of Keras models, as a user would write them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers


def chars2vec() -> keras.Model:
    """The network of the package chars2vec, which ships its weights alone; 50 dimensions."""
    characters = keras.Input((None, 59), name="characters")
    hidden = layers.LSTM(50, return_sequences=True)(characters)
    return keras.Model(characters, layers.LSTM(50)(hidden))


def two_layers() -> keras.Model:
    """Three numbers in, two out."""
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, activation="tanh"), layers.Dense(2)]
    )


class Subclassed(keras.Model):
    """A network that does not say what it takes before it is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first = layers.Dense(4, activation="relu")
        self.second = layers.Dense(2)

    def call(self, x: Any) -> Any:
        """The forward pass."""
        return self.second(self.first(x))


def with_example() -> tuple[keras.Model, Any]:
    """A subclassed network with an example of what it takes."""
    return Subclassed(), np.zeros((2, 3), np.float32)


def number() -> int:
    """No network."""
    return 3
