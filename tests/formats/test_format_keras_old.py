"""Files of Keras 2 that Keras 3 alone refuses, or reads wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("keras", reason="Keras is not installed")

from convkit import library
from convkit.errors import UnsupportedError, WeightsMismatchError
from convkit.tensorflow_import import import_keras
from tests import keras2_files as old

pytestmark = pytest.mark.filterwarnings("ignore")

keras = import_keras()
layers = keras.layers
ops = keras.ops

_ROUNDING = 1e-6
"""Both sides run the same TensorFlow kernels; only their fusing may differ."""

Twin = tuple[Any, old.Config]
"""A network in the words of Keras 3, and its configuration in those of Keras 2."""


def removed_arguments() -> Twin:
    """Convolutions and norms with arguments that Keras 3 does not take."""
    x = keras.Input((8, 8, 4), name="image")
    y = layers.DepthwiseConv2D(3, name="depthwise")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.LeakyReLU(negative_slope=0.2, name="leaky")(y)
    y = layers.SeparableConv2D(3, 3, name="separable")(y)
    y = layers.Conv2DTranspose(2, 3, strides=2, name="transposed")(y)
    config = old.graph(
        [
            old.entry("image", [8, 8, 4]),
            old.layer("DepthwiseConv2D", "depthwise", "image", kernel_size=[3, 3], groups=1),
            old.layer(
                "BatchNormalization", "norm", "depthwise", axis=[3], fused=True, renorm=False,
                virtual_batch_size=None,
            ),
            old.layer("LeakyReLU", "leaky", "norm", alpha=0.2),
            old.layer(
                "SeparableConv2D", "separable", "leaky", filters=3, kernel_size=[3, 3], groups=1,
                kernel_initializer=None, kernel_regularizer=None, kernel_constraint=None,
            ),
            old.layer(
                "Conv2DTranspose", "transposed", "separable", filters=2, kernel_size=[3, 3],
                strides=[2, 2], groups=1,
            ),
        ],
        ["image"],
        ["transposed"],
    )  # fmt: skip
    return keras.Model(x, y), config


def chain_without_input_layer() -> Twin:
    """Recurrent layers whose first one says what the chain takes."""
    network = keras.Sequential(
        [
            keras.Input((None, 5), name="first_input"),
            layers.LSTM(4, return_sequences=True, name="first"),
            layers.GRU(3, reset_after=False, name="second"),
        ]
    )
    config = old.chain(
        [
            old.layer(
                "LSTM", "first", batch_input_shape=[None, None, 5], units=4, implementation=2,
                return_sequences=True, time_major=False, unroll=False,
            ),
            old.layer("GRU", "second", units=3, implementation=1, reset_after=False),
        ]
    )  # fmt: skip
    return network, config


def calls_of_tensorflow() -> Twin:
    """Arithmetic, slices and reductions between the layers of a graph."""
    x = keras.Input((6,), name="x")
    hidden = layers.Dense(6, name="hidden")(x)
    joined = ops.concatenate([hidden * 2.0 + x, hidden[:, :2]], axis=-1)
    result = 1.0 - ops.sqrt(ops.mean(ops.relu(joined), axis=-1, keepdims=True) + 0.5)
    network = keras.Model(x, layers.Dense(2, name="last")(result))
    part = {"start": None, "stop": None, "step": None}
    config = old.graph(
        [
            old.entry("x", [6]),
            old.layer("Dense", "hidden", "x", units=6),
            old.function("twice", "math.multiply", ["hidden", 0, 0, {"y": 2.0, "name": None}]),
            old.function("sum", "__operators__.add", ["twice", 0, 0, {"y": ["x", 0, 0]}]),
            {
                **old.layer("SlicingOpLambda", "part", function="__operators__.getitem"),
                "inbound_nodes": [
                    ["hidden", 0, 0, {"slice_spec": [part, {**part, "stop": 2}]}]
                ],
            },
            old.function("joined", "concat", [["sum", 0, 0, {"axis": -1}], ["part", 0, 0, {}]]),
            old.function("relu", "nn.relu", ["joined", 0, 0, {"name": None}]),
            old.function(
                "mean", "math.reduce_mean", ["relu", 0, 0, {"axis": -1, "keepdims": True}]
            ),
            old.function("more", "__operators__.add", ["mean", 0, 0, {"y": 0.5, "name": None}]),
            old.function("root", "math.sqrt", ["more", 0, 0, {}]),
            old.function(
                "rest", "math.subtract", ["_CONSTANT_VALUE", -1, 1.0, {"y": ["root", 0, 0]}]
            ),
            old.layer("Dense", "last", "rest", units=2),
        ],
        ["x"],
        ["last"],
    )  # fmt: skip
    return network, config


def attention_by_keyword() -> Twin:
    """A layer that gets its second tensor by keyword."""
    x = keras.Input((5, 8), name="x")
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, value=x)
    network = keras.Model(x, layers.LayerNormalization(name="norm")(layers.Add(name="sum")([x, y])))
    config = old.graph(
        [
            old.entry("x", [5, 8]),
            old.layer(
                "MultiHeadAttention", "attention", ("x", {"value": ["x", 0, 0]}), num_heads=2,
                key_dim=4, value_dim=4, query_shape=[None, 5, 8], key_shape=[None, 5, 8],
                value_shape=[None, 5, 8],
            ),
            old.layer("Add", "sum", "x", "attention"),
            old.layer("LayerNormalization", "norm", "sum", axis=[2]),
        ],
        ["x"],
        ["norm"],
    )  # fmt: skip
    return network, config


TWINS: dict[str, Callable[[], Twin]] = {
    made.__name__: made
    for made in (
        removed_arguments, chain_without_input_layer, calls_of_tensorflow, attention_by_keyword,
    )
}  # fmt: skip


@pytest.fixture(scope="module", params=list(TWINS))
def twin(request: pytest.FixtureRequest) -> Twin:
    keras.utils.set_random_seed(0)
    network, config = TWINS[request.param]()
    generator = np.random.default_rng(0)
    for variable in network.weights:  # zeros and ones would hide a mix-up
        variable.assign(variable + 0.1 * generator.random(variable.shape))
    return network, config


@pytest.mark.parametrize("write", [old.write_archive, old.write_hdf5])
def test_networks_of_keras_2_compute_what_they_computed(
    twin: Twin, write: Callable[..., Path], tmp_path: Path
) -> None:
    network, _ = twin
    path = write(tmp_path / ("old.keras" if write is old.write_archive else "old.h5"), *twin)
    _, described = library.inspect(path)
    with library.load(path) as runner:
        assert [spec.name for spec in runner.inputs] == [spec.name for spec in described.inputs]
        assert [spec.name for spec in runner.outputs] == [spec.name for spec in described.outputs]
        feeds = runner.example({"batch": 3}, 0)
        (array,) = runner(feeds).values()
    np.testing.assert_allclose(array, network(*feeds.values()).numpy(), atol=_ROUNDING)


def test_weights_go_to_the_layers_of_their_names_whatever_order_they_come_in(
    tmp_path: Path,
) -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    left, right = layers.Dense(4, name="left")(x), layers.Dense(4, name="right")(x)
    network = keras.Model(x, layers.Subtract(name="difference")([left, right]))
    config = old.graph(
        [
            old.entry("x", [4]),
            old.layer("Dense", "right", "x", units=4),
            old.layer("Dense", "left", "x", units=4),
            old.layer("Subtract", "difference", "left", "right"),
        ],
        ["x"],
        ["difference"],
    )
    names = ["x", "left", "right", "difference"]
    path = old.write_hdf5(tmp_path / "branches.h5", network, config, names)
    with library.load(path) as runner:
        feeds = runner.example({"batch": 2}, 0)
        (array,) = runner(feeds).values()
    np.testing.assert_allclose(array, network(feeds["x"]).numpy(), atol=_ROUNDING)


@pytest.mark.parametrize(
    ("kind", "config", "named"),
    [
        ("LSTM", {"units": 2, "time_major": True}, "time_major=True"),
        ("DepthwiseConv1D", {"kernel_size": 1, "groups": 2}, "groups=2"),
    ],
)
def test_argument_that_is_gone_and_changed_the_result_is_refused_by_name(
    kind: str, config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    network = keras.Sequential([keras.Input((3, 4), name="x"), layers.Flatten(name="part")])
    written = old.graph(
        [old.entry("x", [3, 4]), old.layer(kind, "part", "x", **config)], ["x"], ["part"]
    )
    path = old.write_archive(tmp_path / "gone.keras", network, written)
    with pytest.raises(UnsupportedError, match=f"'part' .{kind}. uses {named}") as caught:
        library.load(path)
    assert caught.value.exit_code == 5


def test_call_of_tensorflow_without_counterpart_is_refused_by_name(tmp_path: Path) -> None:
    network = keras.Sequential([keras.Input((3,), name="x"), layers.Dense(1, name="last")])
    config = old.graph(
        [old.entry("x", [3]), old.function("odd", "raw_ops.Betainc", ["x", 0, 0, {}])],
        ["x"],
        ["odd"],
    )
    path = old.write_hdf5(tmp_path / "odd.h5", network, config)
    with pytest.raises(UnsupportedError, match=r"'odd' calls tf\.raw_ops\.Betainc"):
        library.load(path)


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    network = keras.Sequential([keras.Input((3,), name="x"), layers.Dense(4, name="last")])
    config = old.graph(
        [old.entry("x", [3]), old.layer("Dense", "last", "x", units=5)], ["x"], ["last"]
    )
    path = old.write_hdf5(tmp_path / "misfit.h5", network, config)
    with pytest.raises(WeightsMismatchError, match="last"):
        library.load(path)
