"""Keras models of one family of layers each."""

from __future__ import annotations

from typing import Any

from convkit.tensorflow_import import import_keras


def sequential(shape: tuple[int | None, ...], *layers: Any, name: str = "x") -> Any:
    """A `keras.Sequential` that takes an input of this shape (without the batch) and name."""
    keras = import_keras()
    return keras.Sequential([keras.Input(shape, name=name), *layers])


def depthwise() -> Any:
    """Depthwise and separable convolutions with dilation and strides."""
    layers = import_keras().layers
    return sequential(
        (17, 15, 4),
        layers.DepthwiseConv2D(3, padding="same", dilation_rate=2, depth_multiplier=2),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.SeparableConv2D(6, 3, strides=2, padding="same"),
        layers.AveragePooling2D(2, padding="same"),
        layers.GlobalAveragePooling2D(),
    )


def conv1d() -> Any:
    """A causal and a dilated convolution over a series."""
    layers = import_keras().layers
    return sequential(
        (None, 6),
        layers.Conv1D(8, 3, padding="causal", activation="elu"),
        layers.Conv1D(8, 3, padding="same", dilation_rate=2, activation="gelu"),
        layers.GlobalMaxPooling1D(),
    )


def conv3d() -> Any:
    """A volume."""
    layers = import_keras().layers
    return sequential(
        (8, 9, 7, 2),
        layers.Conv3D(4, 3, strides=2, padding="same", activation="swish"),
        layers.AveragePooling3D(2),
        layers.Flatten(),
    )


def lstm() -> Any:
    """An LSTM that gives all states, the last one, and its cell."""
    keras = import_keras()
    steps = keras.Input((None, 5), name="steps")
    states, last, cell = keras.layers.LSTM(
        6, return_sequences=True, return_state=True, name="memory"
    )(steps)
    return keras.Model(steps, [states, last, cell])


def bilstm() -> Any:
    """An LSTM both ways."""
    layers = import_keras().layers
    return sequential((None, 5), layers.Bidirectional(layers.LSTM(6, return_sequences=True)))


def embedding() -> Any:
    """The mean of embedded tokens; zeros are padding."""
    keras = import_keras()
    layers = keras.layers
    ids = keras.Input((None,), dtype="int32", name="ids")
    vectors = layers.Embedding(101, 12, mask_zero=True)(ids)
    return keras.Model(ids, layers.Dense(3)(layers.GlobalAveragePooling1D()(vectors)))


def group_norm() -> Any:
    """Group normalization, a PReLU, and another activation or two."""
    layers = import_keras().layers
    return sequential(
        (6, 5, 8),
        layers.GroupNormalization(groups=4),
        layers.PReLU(shared_axes=[1, 2]),
        layers.Conv2D(4, 1, activation="mish"),
        layers.Softmax(),
    )


def attention() -> Any:
    """Attention of one sequence over another, of any lengths."""
    keras = import_keras()
    layers = keras.layers
    query = keras.Input((None, 12), name="query")
    value = keras.Input((None, 12), name="value")
    mixed = layers.MultiHeadAttention(num_heads=3, key_dim=4)(query, value)
    return keras.Model([query, value], layers.LayerNormalization()(query + mixed))


def any_size() -> Any:
    """A convolution and an upsampling over images of any size."""
    layers = import_keras().layers
    return sequential(
        (None, None, 3),
        layers.Conv2D(5, 3, strides=2, padding="same", activation="relu"),
        layers.UpSampling2D(2),
        layers.Conv2D(2, 1),
    )


def two_heads() -> Any:
    """Two inputs; three outputs of a dictionary whose order is not the alphabet's."""
    keras = import_keras()
    layers = keras.layers
    left, right = keras.Input((4,), name="zeta"), keras.Input((6,), name="alpha")
    both = layers.Concatenate()([left, right])
    score = layers.Dense(3, name="score")(both)
    label = layers.Softmax(name="label")(score)
    return keras.Model([left, right], {"score": score, "label": label, "raw": both})
