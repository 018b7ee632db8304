from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("keras", reason="Keras is not installed")

from convkit import library
from convkit.artifact import Opening, Precision, TensorSpec
from convkit.errors import (
    ConvkitError,
    InputsUnknownError,
    ModelError,
    UnsafeError,
    WeightsMismatchError,
)
from convkit.formats.keras import keras as keras_format
from convkit.formats.keras_factory import writes_keras
from convkit.graph import detect
from convkit.tensorflow_import import import_keras
from tests import material
from tests.keras2_files import write_hdf5

pytestmark = pytest.mark.filterwarnings("ignore")

keras = import_keras()
layers = keras.layers

_ROUNDING = 1e-6
"""Both sides run the same TensorFlow kernels; only their fusing may differ."""


@pytest.fixture(scope="module")
def network() -> Any:
    """Two inputs and two outputs whose order is not that of their names."""
    keras.utils.set_random_seed(0)
    zeta, alpha = keras.Input((4,), name="zeta"), keras.Input((3,), name="alpha")
    outputs = [layers.Dense(2, name="zz")(zeta), layers.Dense(5, name="aa")(alpha)]
    return keras.Model([zeta, alpha], outputs)


@pytest.fixture(params=[".keras", ".h5"])
def saved(request: pytest.FixtureRequest, network: Any, tmp_path: Path) -> Path:
    path = tmp_path / f"network{request.param}"
    network.save(path)
    return path


def described(path: Path, **opening: Any) -> Any:
    return keras_format.describe(path, Opening(**opening))


def opened(path: Path, **opening: Any) -> Any:
    return keras_format.open(detect(path, opening=Opening(**opening)))  # type: ignore[misc]


def test_inspecting_loads_neither_keras_nor_tensorflow(saved: Path) -> None:
    code = (
        f"import sys; from convkit.graph import detect; print(detect({str(saved)!r}).format)\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["keras", "[]"]


def test_description_agrees_with_what_is_opened(saved: Path) -> None:
    found = described(saved)
    assert [str(spec) for spec in found.inputs] == [
        "zeta: float32[batch, 4]",
        "alpha: float32[batch, 3]",
    ]
    assert (found.precision, found.parameter_count) == (Precision.FP32, 30)
    assert found.operators == {"Dense": 2}
    with opened(saved) as runner:
        assert runner.inputs == found.inputs
        assert [spec.name for spec in runner.outputs] == [spec.name for spec in found.outputs]
        assert [str(spec) for spec in runner.outputs] == [
            "zz: float32[batch, 2]",
            "aa: float32[batch, 5]",
        ]


def test_running_agrees_with_keras(saved: Path, network: Any) -> None:
    with opened(saved) as runner:
        feeds = runner.example({"batch": 4}, 0)
        outputs = runner(feeds)
    wanted = network([feeds["zeta"], feeds["alpha"]])
    for array, reference in zip(outputs.values(), wanted, strict=True):
        np.testing.assert_allclose(array, reference.numpy(), atol=_ROUNDING)


def test_chain_without_an_input_layer_has_one_name_at_each_opening(tmp_path: Path) -> None:
    chain = keras.Sequential([layers.Dense(4, name="first"), layers.Dense(2, name="last")])
    chain.build((None, 3))
    chain.save(tmp_path / "chain.h5")
    names = set()
    for _ in range(2):
        with opened(tmp_path / "chain.h5") as runner:
            names.add(tuple(spec.name for spec in (*runner.inputs, *runner.outputs)))
    (only,) = names
    assert only[0] == described(tmp_path / "chain.h5").inputs[0].name


def test_quantized_and_half_weights_are_described_as_such(tmp_path: Path) -> None:
    chain = keras.Sequential([keras.Input((16,)), layers.Dense(64, dtype="float16")])
    chain.save(tmp_path / "half.keras")
    assert described(tmp_path / "half.keras").precision is Precision.FP16
    chain = keras.Sequential([keras.Input((16,)), layers.Dense(64)])
    chain.quantize("int8")
    chain.save(tmp_path / "quantized.keras")
    assert described(tmp_path / "quantized.keras").precision is Precision.INT8


def test_ids_are_drawn_within_the_table_also_where_they_arrive_as_floats(tmp_path: Path) -> None:
    chain = keras.Sequential([keras.Input((5,), name="ids"), layers.Embedding(7, 3)])
    chain.save(tmp_path / "table.keras")
    with opened(tmp_path / "table.keras") as runner:
        ids = runner.example({"batch": 50}, 0)["ids"]
    assert 0 <= ids.min() <= ids.max() <= 6
    assert ids.max() > 5


def test_state_of_recurrent_layers_is_reset_before_each_call(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    rows = keras.Input(batch_shape=(2, 3, 4), name="rows")
    keras.Model(rows, layers.LSTM(3, stateful=True)(rows)).save(tmp_path / "state.keras")
    with opened(tmp_path / "state.keras") as runner:
        feeds = runner.example({}, 0)
        first, second = runner(feeds), runner(feeds)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_with_code_are_refused_without_trust_and_run_with_it(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"lambda{suffix}"
    chain = keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x * 2, name="twice")])
    chain.save(path)
    with pytest.raises(UnsafeError, match="'twice' is a Lambda") as caught:
        detect(path)
    assert caught.value.exit_code == 9
    assert "--trust" in caught.value.hint
    with opened(path, trust=True) as runner:
        feeds = runner.example({"batch": 2}, 0)
        (array,) = runner(feeds).values()
        np.testing.assert_array_equal(array, next(iter(feeds.values())) * 2)


def test_class_that_is_not_there_is_named_and_one_that_is_works(tmp_path: Path) -> None:
    from keras.src.saving.object_registration import GLOBAL_CUSTOM_OBJECTS

    from tests.keras_factories import Subclassed

    registered = keras.saving.register_keras_serializable("shop", "Cart")(Subclassed)
    model = registered()
    x = np.ones((2, 3), np.float32)
    wanted = model(x).numpy()
    model.save(tmp_path / "cart.keras")
    try:
        assert described(tmp_path / "cart.keras").details["custom_classes"] == ["shop>Cart"]
        with opened(tmp_path / "cart.keras") as runner:
            (array,) = runner({runner.inputs[0].name: x}).values()
        np.testing.assert_allclose(array, wanted, atol=_ROUNDING)
    finally:
        GLOBAL_CUSTOM_OBJECTS.pop("shop>Cart")
    with pytest.raises(ModelError, match="needs the class shop>Cart") as caught:
        opened(tmp_path / "cart.keras")
    assert "package.module:factory --weights" in caught.value.hint
    assert caught.value.exit_code == 5


def test_weights_alone_ask_for_their_factory(network: Any, tmp_path: Path) -> None:
    network.save_weights(tmp_path / "new.weights.h5")
    for path in (tmp_path / "new.weights.h5", write_hdf5(tmp_path / "old.h5", network, None)):
        assert described(path).parameter_count == 30
        with pytest.raises(ModelError, match="weights only") as caught:
            opened(path)
        assert caught.value.exit_code == 5
        assert f"package.module:factory --weights {path}" in caught.value.hint


@pytest.mark.parametrize("kind", ["new", "old", "full", "archive"])
def test_factory_takes_weights_of_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    from tests import keras_factories

    keras.utils.set_random_seed(3)
    model = keras_factories.two_layers()
    names = {"new": "w.weights.h5", "old": "w.h5", "full": "m.h5", "archive": "m.keras"}
    path = tmp_path / names[kind]
    if kind == "old":
        write_hdf5(path, model, None)
    else:
        (model.save_weights if kind == "new" else model.save)(path)
    x = np.ones((2, 3), np.float32)
    factory = "tests.keras_factories:two_layers"
    if kind == "old":  # this layout goes by names, or by order where all names differ
        assert detect(factory, weights=path).format == "keras"
    with library.load(factory, weights=path) as runner:
        (array,) = runner({runner.inputs[0].name: x}).values()
    np.testing.assert_allclose(array, model(x).numpy(), atol=_ROUNDING)


def test_factory_alone_gives_the_same_network_at_each_opening() -> None:
    results = []
    for _ in range(2):
        with library.load("tests.keras_factories:two_layers") as runner:
            feeds = runner.example({"batch": 2}, 0)
            results.append((runner.inputs, runner(feeds)))
    assert results[0][0] == results[1][0]
    for name, array in results[0][1].items():
        np.testing.assert_array_equal(array, results[1][1][name])


def test_factory_of_a_subclass_takes_its_inputs_from_the_user_or_an_example() -> None:
    for factory, inputs in (("Subclassed", ("x=float32[batch,3]",)), ("with_example", ())):
        with library.load(f"tests.keras_factories:{factory}", inputs=inputs) as runner:
            (array,) = runner(runner.example({"batch": 5}, 0)).values()
            assert array.shape == (5, 2)
    with pytest.raises(InputsUnknownError):
        library.load("tests.keras_factories:Subclassed")


def test_factory_whose_network_does_not_fit_is_told_by_layers(network: Any, tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "other.h5", network, None)
    with pytest.raises(WeightsMismatchError):
        library.load("tests.keras_factories:two_layers", weights=path)
    with pytest.raises(ModelError, match=r"gave a int, not a keras\.Model"):
        library.load("tests.keras_factories:number")


@pytest.mark.parametrize(
    ("source", "is_keras"),
    [
        ("import keras\ndef build(): return keras.Sequential()", True),
        ("def build():\n    from tensorflow import keras\n    return keras.Model()", True),
        ("import torch\ndef build(): return torch.nn.Linear(1, 1)", False),
        ("import torch, keras\ndef build(): return keras.Sequential()", True),
        ("import torch, keras\ndef build(): return torch.nn.Linear(1, 1)", False),
        ("from made import inner as build", True),
        ("from elsewhere import build", False),
        ("def build(:", False),
    ],
)
def test_factories_of_keras_are_told_by_what_they_use(
    source: str, is_keras: bool, tmp_path: Path
) -> None:
    (tmp_path / "made.py").write_text("from keras import Sequential\ndef inner(): ...")
    (tmp_path / "nets.py").write_text(source)
    assert writes_keras(tmp_path / "nets.py", "nets:build") is is_keras


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: max(4, int(len(whole) * share))])
    with pytest.raises(ModelError) as caught:
        opened(saved)
    assert caught.value.exit_code == 5


def test_changed_files_never_end_in_a_foreign_error(saved: Path) -> None:
    whole = saved.read_bytes()
    for at in range(30, len(whole), len(whole) // 40):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        saved.write_bytes(bytes(changed))
        with suppress(ConvkitError), opened(saved) as runner:
            runner(runner.example({"batch": 2}, 0))


def test_compressed_archives_are_read_like_plain_ones(network: Any, tmp_path: Path) -> None:
    network.save(tmp_path / "plain.keras")
    with (
        zipfile.ZipFile(tmp_path / "plain.keras") as plain,
        zipfile.ZipFile(tmp_path / "small.keras", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    assert described(tmp_path / "small.keras") == described(tmp_path / "plain.keras")
    with opened(tmp_path / "small.keras") as runner:
        assert runner(runner.example({"batch": 2}, 0))


def test_archive_that_unpacks_out_of_proportion_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", " " * (20 << 20))
    with pytest.raises(ModelError, match="out of proportion"):
        detect(path)


@pytest.mark.parametrize("config", ["[1, 2]", "{", "null", '"text"', "{}", '{"class_name": 3}'])
def test_archives_with_a_configuration_that_is_none_are_refused(
    config: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
        archive.writestr("config.json", config)
    with pytest.raises(ModelError):
        opened(path)


def test_hdf5_file_of_something_else_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["measurements"] = np.zeros(3)
    with pytest.raises(ModelError, match="measurements"):
        detect(tmp_path / "data.h5")


@pytest.mark.slow
def test_fer_of_keras_2_0_5_computes_what_keras_computes_with_it() -> None:
    path = material.fer_file()
    found = described(path)
    assert (found.details["keras_version"], found.parameter_count) == ("2.0.5", 58423)
    reference = keras.saving.load_model(path, compile=False)
    with opened(path) as runner:
        feeds = runner.example({"batch": 3}, 0)
        outputs = runner(feeds)
    wanted = reference(feeds["input_1"]).numpy()
    np.testing.assert_allclose(outputs["predictions"], wanted, atol=_ROUNDING)


@pytest.mark.slow
def test_chars2vec_puts_a_misspelling_next_to_its_word() -> None:
    weights = material.chars2vec_weights_file(50)
    alphabet = "!\"#$%&'()*+,-./0123456789:;<=>?@_abcdefghijklmnopqrstuvwxyz"
    words = ["language", "langauge", "mountain", "keyboard"]

    def one_hot(word: str) -> Any:
        return np.eye(59, dtype=np.float32)[[alphabet.index(c) for c in word]]

    inputs = (TensorSpec("characters", "float32", ("batch", "time", 59)),)
    artifact = detect(
        "tests.keras_factories:chars2vec", weights=weights, opening=Opening(inputs=inputs)
    )
    with keras_format.open(artifact) as runner:  # type: ignore[misc]
        (vectors,) = runner({"characters": np.stack([one_hot(word) for word in words])}).values()
    distance = np.linalg.norm(vectors - vectors[0], axis=1)
    assert distance[1] == min(distance[1:])
