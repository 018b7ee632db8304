"""Networks born in TensorFlow: small Keras models with seeded weights, and graphs of functions.

`KERAS_MODELS` are the classic networks and one Keras model per family of layers; `TF_BORN` names 21
of them and of `tf_functions.FUNCTIONS`, which every importer is measured with. All makers write
below a folder and return what they wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convkit.tensorflow_import import import_keras, import_tensorflow
from tests.keras_layer_models import (
    any_size,
    attention,
    bilstm,
    conv1d,
    conv3d,
    depthwise,
    embedding,
    group_norm,
    lstm,
    sequential,
    two_heads,
)
from tests.tf1_models import tf1_checkpoint, tf1_frozen  # noqa: F401 - found here by name
from tests.tf_functions import FUNCTIONS

Maker = Callable[[], Any]
_SEED = 11


def keras_model(name: str) -> Any:
    """The Keras model of that name with seeded weights; biases and norms are filled in too."""
    keras = import_keras()
    keras.backend.clear_session()
    keras.utils.set_random_seed(_SEED)
    model = KERAS_MODELS[name]()
    generator = np.random.default_rng(_SEED)
    for weight in model.weights:
        if weight.path.endswith(("bias", "beta", "moving_mean")):
            weight.assign(generator.uniform(-0.3, 0.3, weight.shape))
        elif weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return model


def save_keras(name: str, folder: Path, suffix: str = ".keras") -> Path:
    """A Keras model as one file, `.keras` or `.h5`."""
    path = folder / f"{name}{suffix}"
    keras_model(name).save(path)
    return path


def save_keras_as_savedmodel(name: str, folder: Path) -> Path:
    """A Keras model as a SavedModel, as Keras exports it."""
    path = folder / name
    keras_model(name).export(path, format="tf_saved_model", verbose=False)
    return path


def save_function(name: str, folder: Path) -> Path:
    """A function of `FUNCTIONS` as a SavedModel with the signature `serving_default`."""
    tf = import_tensorflow()
    function = FUNCTIONS[name]
    module = tf.Module()
    specs = [
        tf.TensorSpec(
            [size if isinstance(size, int) else None for size in spec.shape],
            spec.dtype,
            name=spec.name,
        )
        for spec in function.inputs
    ]
    module.call = tf.function(function.call, input_signature=specs, autograph=False)
    path = folder / name
    tf.saved_model.save(module, str(path), signatures=module.call)
    return path


def save_tf_born(name: str, folder: Path) -> Path:
    """One of `TF_BORN` as a SavedModel."""
    save = save_keras_as_savedmodel if name in KERAS_MODELS else save_function
    return save(name, folder)


# The classic networks. Sizes in (..., ...) leave the batch out.


def fnn() -> Any:
    """A classifier of (20) into 3."""
    layers = import_keras().layers
    return sequential(
        (20,),
        layers.Dense(64, activation="relu"),
        layers.Dense(32, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(3, activation="softmax"),
    )


def cnn() -> Any:
    """A classifier of (28, 28, 1) images into 10."""
    layers = import_keras().layers
    return sequential(
        (28, 28, 1),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(64, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dense(10, activation="softmax"),
    )


def cnn64() -> Any:
    """A classifier of (64, 64, 3) images into 10."""
    layers = import_keras().layers
    return sequential(
        (64, 64, 3),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(10, activation="softmax"),
    )


def rnn() -> Any:
    """Two LSTMs with ReLU in place of tanh, over ten steps of 5."""
    return _relu_lstm(10)


def rnn_dynamic() -> Any:
    """The same over any number of steps."""
    return _relu_lstm(None)


def _relu_lstm(steps: int | None) -> Any:
    layers = import_keras().layers
    return sequential(
        (steps, 5),
        layers.LSTM(50, activation="relu", return_sequences=True),
        layers.LSTM(50, activation="relu"),
        layers.Dense(25),
        layers.Dense(1),
    )


def lstm_forecaster() -> Any:
    """The next value of a series of 60."""
    layers = import_keras().layers
    return sequential(
        (60, 1),
        layers.LSTM(50, return_sequences=True),
        layers.Dropout(0.2),
        layers.LSTM(50),
        layers.Dropout(0.2),
        layers.Dense(1),
    )


def gru() -> Any:
    """A GRU whose reset comes after the matrix, as Keras 3 has it, over ten steps of 5."""
    layers = import_keras().layers
    return sequential((10, 5), layers.GRU(7), layers.Dense(2))


def gru_reset_before() -> Any:
    """A GRU whose reset comes before the matrix, as in its first paper; all states."""
    layers = import_keras().layers
    return sequential((None, 5), layers.GRU(7, reset_after=False, return_sequences=True))


def gru_stack() -> Any:
    """GRUs forwards and backwards with a Dense layer between, over any number of steps."""
    layers = import_keras().layers
    return sequential(
        (None, 5),
        layers.Bidirectional(layers.GRU(6, return_sequences=True)),
        layers.Dense(8, activation="relu"),
        layers.GRU(4, go_backwards=True),
    )


def simple_rnn() -> Any:
    """An Elman network, forwards and backwards, then one with ReLU."""
    layers = import_keras().layers
    return sequential(
        (10, 5),
        layers.Bidirectional(layers.SimpleRNN(6, return_sequences=True)),
        layers.SimpleRNN(4, activation="relu"),
    )


def masked_gru() -> Any:
    """A GRU that skips steps which are all zero."""
    layers = import_keras().layers
    return sequential((10, 5), layers.Masking(), layers.GRU(7), layers.Dense(2))


def gru_hard_gates() -> Any:
    """A GRU with gates that ONNX's operator has no name for."""
    layers = import_keras().layers
    return sequential((10, 5), layers.GRU(7, recurrent_activation="hard_sigmoid"))


def autoencoder() -> Any:
    """784 pixels through 32 numbers."""
    keras = import_keras()
    pixels = keras.Input((784,), name="pixels")
    code = keras.layers.Dense(32, activation="relu", name="code")(pixels)
    restored = keras.layers.Dense(784, activation="sigmoid", name="restored")(code)
    return keras.Model(pixels, restored)


def encoder() -> Any:
    """The first half of `autoencoder`: it shares the layers."""
    keras = import_keras()
    whole = autoencoder()
    return keras.Model(whole.input, whole.get_layer("code").output)


def conv_autoencoder() -> Any:
    """An image (28, 28, 1) through (14, 14, 16)."""
    layers = import_keras().layers
    return sequential(
        (28, 28, 1),
        layers.Conv2D(16, 3, activation="relu", padding="same"),
        layers.MaxPooling2D(2, padding="same"),
        layers.Conv2D(8, 3, activation="relu", padding="same"),
        layers.UpSampling2D(2),
        layers.Conv2D(1, 3, activation="sigmoid", padding="same"),
    )


def gan_generator() -> Any:
    """100 random numbers to 784 pixels."""
    layers = import_keras().layers
    return sequential(
        (100,),
        layers.Dense(128),
        layers.LeakyReLU(negative_slope=0.2),
        layers.Dense(256),
        layers.LeakyReLU(negative_slope=0.2),
        layers.Dense(784, activation="tanh"),
        name="latent",
    )


def dcgan_generator() -> Any:
    """100 random numbers to an image, with transposed convolutions."""
    layers = import_keras().layers
    return sequential(
        (100,),
        layers.Dense(7 * 7 * 128),
        layers.LeakyReLU(negative_slope=0.2),
        layers.Reshape((7, 7, 128)),
        layers.Conv2DTranspose(64, 4, strides=2, padding="same"),
        layers.LeakyReLU(negative_slope=0.2),
        layers.Conv2DTranspose(1, 4, strides=2, padding="same", activation="tanh"),
        name="latent",
    )


def gan() -> Any:
    """The generator, and a frozen discriminator that judges what it makes."""
    keras = import_keras()
    layers = keras.layers
    discriminator = sequential(
        (784,),
        layers.Dense(256),
        layers.LeakyReLU(negative_slope=0.2),
        layers.Dropout(0.3),
        layers.Dense(128),
        layers.LeakyReLU(negative_slope=0.2),
        layers.Dense(1, activation="sigmoid"),
    )
    discriminator.trainable = False
    return keras.Sequential([keras.Input((100,), name="latent"), gan_generator(), discriminator])


def transformer_classifier() -> Any:
    """Four encoder blocks over a hundred steps of 64, and a classifier."""
    keras = import_keras()
    layers = keras.layers
    steps = keras.Input((100, 64), name="steps")
    x = steps
    for _ in range(4):
        mixed = layers.MultiHeadAttention(num_heads=4, key_dim=256, dropout=0.1)(x, x)
        x = layers.LayerNormalization(epsilon=1e-6)(x + mixed)
        inner = layers.Dense(4, activation="relu")(x)
        inner = layers.Dense(64)(inner)
        x = layers.LayerNormalization(epsilon=1e-6)(x + inner)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(128, activation="relu")(x)
    x = layers.Dropout(0.4)(x)
    return keras.Model(steps, layers.Dense(2, activation="softmax", name="label")(x))


def subclassed() -> Any:
    """A subclass of `keras.Model` with a call of its own, called once so that it is built."""
    keras = import_keras()

    class Residual(keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Dense(16, activation="relu")
            self.second = keras.layers.Dense(8)
            self.norm = keras.layers.BatchNormalization()
            self.head = keras.layers.Dense(3)

        def call(self, x: Any, training: bool = False) -> Any:
            y = self.second(self.first(x))
            return self.head(self.norm(x + y, training=training))

    model = Residual()
    model(np.zeros((2, 8), np.float32))
    return model


def first_stage() -> Any:
    """The first two layers of a classifier of (10) that is cut in two."""
    layers = import_keras().layers
    return sequential(
        (10,), layers.Dense(64, activation="relu"), layers.Dense(32, activation="relu")
    )


def second_stage() -> Any:
    """The last layer of the classifier, fed with what `first_stage` gives."""
    layers = import_keras().layers
    return sequential((32,), layers.Dense(1, activation="sigmoid"), name="features")


KERAS_MODELS: Mapping[str, Maker] = {
    maker.__name__: maker
    for maker in (
        fnn, cnn, cnn64, rnn, rnn_dynamic, lstm_forecaster, gru, gru_reset_before, gru_stack,
        simple_rnn, masked_gru, gru_hard_gates, autoencoder, encoder, conv_autoencoder,
        gan_generator, dcgan_generator, gan, transformer_classifier, subclassed, first_stage,
        second_stage, depthwise, conv1d, conv3d, lstm, bilstm, embedding, group_norm, attention,
        any_size, two_heads,
    )
}  # fmt: skip


TF_BORN = (
    "fnn", "cnn", "depthwise", "dcgan_generator", "conv1d", "conv3d", "lstm", "gru", "bilstm",
    "simple_rnn", "embedding", "group_norm", "attention", "any_size", "two_heads",
    "cond", "while_loop", "misc", "rfft", "resize", "tensor_array",
)  # fmt: skip
"""The 21 graphs of TensorFlow's that an importer of ONNX is to give back."""


def chars2vec_300() -> Any:
    """The network of the largest chars2vec, without weights."""
    from tests.material_keras import chars2vec

    return chars2vec(300)
