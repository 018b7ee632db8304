"""Networks born in TensorFlow: small Keras models with seeded weights, and graphs of functions.

`KERAS_MODELS` are the classic networks and one Keras model per family of layers, `FUNCTIONS` are
graphs that no layer gives (branches, loops, Fourier transforms ...), `TF_BORN` names the 21 that
every importer is measured with. All makers write below a folder and return what they wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convkit.artifact import TensorSpec
from convkit.tensorflow_import import import_keras, import_tensorflow

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


def _sequential(shape: tuple[int | None, ...], *layers: Any, name: str = "x") -> Any:
    keras = import_keras()
    return keras.Sequential([keras.Input(shape, name=name), *layers])


def fnn() -> Any:
    """A classifier of (20) into 3."""
    layers = import_keras().layers
    return _sequential(
        (20,),
        layers.Dense(64, activation="relu"),
        layers.Dense(32, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(3, activation="softmax"),
    )


def cnn() -> Any:
    """A classifier of (28, 28, 1) images into 10."""
    layers = import_keras().layers
    return _sequential(
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
    return _sequential(
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
    return _sequential(
        (steps, 5),
        layers.LSTM(50, activation="relu", return_sequences=True),
        layers.LSTM(50, activation="relu"),
        layers.Dense(25),
        layers.Dense(1),
    )


def lstm_forecaster() -> Any:
    """The next value of a series of 60."""
    layers = import_keras().layers
    return _sequential(
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
    return _sequential((10, 5), layers.GRU(7), layers.Dense(2))


def gru_reset_before() -> Any:
    """A GRU whose reset comes before the matrix, as in its first paper; all states."""
    layers = import_keras().layers
    return _sequential((None, 5), layers.GRU(7, reset_after=False, return_sequences=True))


def gru_stack() -> Any:
    """GRUs forwards and backwards with a Dense layer between, over any number of steps."""
    layers = import_keras().layers
    return _sequential(
        (None, 5),
        layers.Bidirectional(layers.GRU(6, return_sequences=True)),
        layers.Dense(8, activation="relu"),
        layers.GRU(4, go_backwards=True),
    )


def simple_rnn() -> Any:
    """An Elman network, forwards and backwards, then one with ReLU."""
    layers = import_keras().layers
    return _sequential(
        (10, 5),
        layers.Bidirectional(layers.SimpleRNN(6, return_sequences=True)),
        layers.SimpleRNN(4, activation="relu"),
    )


def masked_gru() -> Any:
    """A GRU that skips steps which are all zero."""
    layers = import_keras().layers
    return _sequential((10, 5), layers.Masking(), layers.GRU(7), layers.Dense(2))


def gru_hard_gates() -> Any:
    """A GRU with gates that ONNX's operator has no name for."""
    layers = import_keras().layers
    return _sequential((10, 5), layers.GRU(7, recurrent_activation="hard_sigmoid"))


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
    return _sequential(
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
    return _sequential(
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
    return _sequential(
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
    discriminator = _sequential(
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
    return _sequential(
        (10,), layers.Dense(64, activation="relu"), layers.Dense(32, activation="relu")
    )


def second_stage() -> Any:
    """The last layer of the classifier, fed with what `first_stage` gives."""
    layers = import_keras().layers
    return _sequential((32,), layers.Dense(1, activation="sigmoid"), name="features")


# One per family of layers.


def depthwise() -> Any:
    """Depthwise and separable convolutions with dilation and strides."""
    layers = import_keras().layers
    return _sequential(
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
    return _sequential(
        (None, 6),
        layers.Conv1D(8, 3, padding="causal", activation="elu"),
        layers.Conv1D(8, 3, padding="same", dilation_rate=2, activation="gelu"),
        layers.GlobalMaxPooling1D(),
    )


def conv3d() -> Any:
    """A volume."""
    layers = import_keras().layers
    return _sequential(
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
    return _sequential((None, 5), layers.Bidirectional(layers.LSTM(6, return_sequences=True)))


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
    return _sequential(
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
    return _sequential(
        (None, None, 3),
        layers.Conv2D(5, 3, strides=2, padding="same", activation="relu"),
        layers.UpSampling2D(2),
        layers.Conv2D(2, 1),
    )


def two_heads() -> Any:
    """Two inputs; three outputs, one of them given twice."""
    keras = import_keras()
    layers = keras.layers
    left, right = keras.Input((4,), name="zeta"), keras.Input((6,), name="alpha")
    both = layers.Concatenate()([left, right])
    score = layers.Dense(3, name="score")(both)
    label = layers.Softmax(name="label")(score)
    return keras.Model([left, right], {"score": score, "label": label, "raw": both})


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


# Graphs that no layer gives.


@dataclass(frozen=True)
class Function:
    """A TensorFlow function and what it takes."""

    call: Callable[..., Any]
    inputs: tuple[TensorSpec, ...]


_ROWS = (TensorSpec("x", "float32", ("batch", 6)),)
_IMAGES = (TensorSpec("x", "float32", ("batch", 6, 7, 3)),)


def _cond(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    warm = tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2, lambda: tf.tanh(x))
    return {"y": warm}


def _while(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    count, y = tf.while_loop(
        lambda i, v: tf.reduce_sum(tf.abs(v)) > 0.5,
        lambda i, v: (i + 1, v * 0.5),
        (tf.constant(0), x),
        maximum_iterations=20,
    )
    return {"count": count, "y": y}


def _misc(x: Any, index: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    values, order = tf.math.top_k(x, 3)
    kept = tf.boolean_mask(tf.transpose(x), [True, False, True, True, False, True])
    gathered = tf.gather(x, index % 6, axis=1, batch_dims=1)
    scattered = tf.tensor_scatter_nd_update(tf.transpose(x), [[1], [4]], tf.transpose(x)[2:4])
    return {
        "values": values,
        "order": order,
        "kept": kept,
        "products": tf.einsum("bi,bj->bij", x, x),
        "gathered": gathered,
        "scattered": scattered,
        "one_hot": tf.one_hot(index % 5, 5),
    }


def _rfft(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    return {"magnitude": tf.abs(tf.signal.rfft(x))}


def _resize(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    return {
        "nearest": tf.image.resize(x, (13, 10), "nearest"),
        "bicubic": tf.image.resize(x, (13, 10), "bicubic"),
        "bilinear": tf.image.resize(x, (4, 11), "bilinear"),
    }


def _tensor_array(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    rows = tf.transpose(x)

    def step(i: Any, total: Any, written: Any) -> Any:
        total = total * 0.5 + rows[i]
        return i + 1, total, written.write(i, total)

    written = tf.TensorArray(tf.float32, size=6)
    start = (tf.constant(0), tf.zeros_like(rows[0]), written)
    return {"y": tf.while_loop(lambda i, *_: i < 6, step, start)[2].stack()}


def _erfc(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    return {"gelu": tf.nn.gelu(x), "erfc": tf.math.erfc(x), "log1p": tf.math.log1p(tf.abs(x))}


def _antialias(x: Any) -> dict[str, Any]:
    tf = import_tensorflow()
    return {
        "small": tf.image.resize(x, (3, 4), "bilinear", antialias=True),
        "lanczos": tf.image.resize(x, (9, 5), "lanczos3"),
        "area": tf.image.resize(x, (4, 4), "area"),
    }


FUNCTIONS: Mapping[str, Function] = {
    "cond": Function(_cond, _ROWS),
    "while_loop": Function(_while, _ROWS),
    "misc": Function(_misc, (*_ROWS, TensorSpec("index", "int32", ("batch", 4)))),
    "rfft": Function(_rfft, (TensorSpec("x", "float32", ("batch", 32)),)),
    "resize": Function(_resize, _IMAGES),
    "tensor_array": Function(_tensor_array, _ROWS),
    "erfc": Function(_erfc, _ROWS),
    "antialias": Function(_antialias, _IMAGES),
}

TF_BORN = (
    "fnn", "cnn", "depthwise", "dcgan_generator", "conv1d", "conv3d", "lstm", "gru", "bilstm",
    "simple_rnn", "embedding", "group_norm", "attention", "any_size", "two_heads",
    "cond", "while_loop", "misc", "rfft", "resize", "tensor_array",
)  # fmt: skip
"""The 21 graphs of TensorFlow's that an importer of ONNX is to give back."""


# TensorFlow 1.


def tf1_frozen(folder: Path) -> Path:
    """A regression with placeholders, one of them unused, frozen to a GraphDef."""
    tf = import_tensorflow()
    path = folder / "regression.pb"
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        prediction = _regression()
        session.run(tf.compat.v1.global_variables_initializer())
        frozen = tf.compat.v1.graph_util.convert_variables_to_constants(
            session, graph.as_graph_def(), [prediction.op.name]
        )
    path.write_bytes(frozen.SerializeToString())
    return path


def tf1_checkpoint(folder: Path) -> Path:
    """The same as a checkpoint; the path of its meta graph."""
    tf = import_tensorflow()
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        _regression()
        session.run(tf.compat.v1.global_variables_initializer())
        prefix = tf.compat.v1.train.Saver().save(session, str(folder / "model.ckpt"))
    return Path(f"{prefix}.meta")


def tf1_reference(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the regression computes, in numpy."""
    slope, offset = _regression_weights()
    return np.tanh(x @ slope + offset)


def _regression() -> Any:
    """The graph: `x` (N, 2) and a target that only training needs; `prediction` (N, 1)."""
    tf = import_tensorflow()
    v1 = tf.compat.v1
    slope, offset = _regression_weights()
    x = v1.placeholder(tf.float32, [None, 2], name="x")
    target = v1.placeholder(tf.float32, [None, 1], name="target")
    with v1.variable_scope("regression", use_resource=False):
        weight = v1.get_variable("weight", initializer=slope)
        bias = v1.get_variable("bias", initializer=offset)
    prediction = tf.tanh(tf.matmul(x, weight) + bias, name="prediction")
    tf.reduce_mean(tf.square(prediction - target), name="loss")
    return prediction


def _regression_weights() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(_SEED)
    slope = generator.standard_normal((2, 1)).astype(np.float32)
    return slope, generator.standard_normal(1).astype(np.float32)
