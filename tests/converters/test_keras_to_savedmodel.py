from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

from convkit import samples
from convkit.artifact import Artifact, Opening
from convkit.converters.keras_to_savedmodel import keras_to_savedmodel
from convkit.formats.keras import keras as keras_format
from convkit.formats.savedmodel import savedmodel
from convkit.step import Work
from convkit.tensorflow_import import import_keras, import_tensorflow
from tests import tf_models

pytestmark = pytest.mark.filterwarnings("ignore")

# The same kernels run in a graph; fusion may change the last digits.
_FP32 = 1e-5

_QUICK = ("fnn", "gru_stack")


def converted(path: Path, out: Path) -> Artifact:
    """Takes the step; the SavedModel as headers describe it."""
    described = keras_format.describe(path, Opening())
    source = Artifact(path, "keras", described.precision, described.inputs, described.outputs)
    assert keras_format.load is not None
    work = Work([], keras_format.load, lambda _: None, lambda *_: None)
    keras_to_savedmodel.rungs[0].run(source, out, work)
    found = savedmodel.describe(out, Opening())
    return Artifact(out, "savedmodel", found.precision, found.inputs, found.outputs)


def assert_agrees(name: str, folder: Path) -> Artifact:
    artifact = converted(tf_models.save_keras(name, folder), folder / "saved")
    model = tf_models.keras_model(name)
    with savedmodel.open(artifact) as runner:  # type: ignore[misc]
        for seed, batch in enumerate((1, 3)):
            sizes = {"batch": batch, "time": 7, "height": 20, "width": 28}
            feeds = samples.draw(artifact.inputs, sizes, seed)
            arrays = list(feeds.values())
            result = model(arrays if len(arrays) > 1 else arrays[0], training=False)
            leaves = import_tensorflow().nest.flatten(result)
            outputs = runner(feeds)
            for expected, got in zip(leaves, outputs.values(), strict=True):
                assert got.shape == expected.shape
                assert float(np.abs(got - expected.numpy()).max()) < _FP32
    return artifact


@pytest.mark.parametrize("name", _QUICK)
def test_the_savedmodel_agrees_with_keras_eager(name: str, tmp_path: Path) -> None:
    assert_agrees(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n for n in tf_models.KERAS_MODELS if n not in (*_QUICK, "subclassed", "two_heads")],
)
def test_all_other_savedmodels_agree_too(name: str, tmp_path: Path) -> None:
    assert_agrees(name, tmp_path)


def test_names_and_order_are_kept_beside_the_model(tmp_path: Path) -> None:
    artifact = assert_agrees("attention", tmp_path)
    assert [spec.name for spec in artifact.inputs] == ["query", "value"]
    kept = json.loads((artifact.path / "assets.extra/convkit_signature.json").read_text())
    order = kept["signatures"]["serving_default"]
    assert order["inputs"] == ["query", "value"]
    assert order["outputs"] == [spec.name for spec in artifact.outputs]


def test_outputs_of_a_dictionary_carry_their_own_tensors(tmp_path: Path) -> None:
    artifact = converted(tf_models.save_keras("two_heads", tmp_path), tmp_path / "saved")
    assert [spec.name for spec in artifact.outputs] == ["score", "label", "raw"]
    with savedmodel.open(artifact) as runner:  # type: ignore[misc]
        feeds = samples.draw(artifact.inputs, {"batch": 3}, 0)
        outputs = runner(feeds)
    expected = tf_models.keras_model("two_heads")(list(feeds.values()))
    for name, tensor in expected.items():
        assert float(np.abs(outputs[name] - tensor.numpy()).max()) < _FP32, name


def test_names_that_are_no_python_names_are_kept(tmp_path: Path) -> None:
    keras = import_keras()
    inputs = keras.Input((4,), name="net.pixels-in")
    outputs = keras.layers.Dense(2, name="scores-out")(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "model.keras")
    artifact = converted(tmp_path / "model.keras", tmp_path / "saved")
    assert [spec.name for spec in artifact.inputs] == ["net.pixels-in"]
    assert [spec.name for spec in artifact.outputs] == ["scores-out"]
    with savedmodel.open(artifact) as runner:  # type: ignore[misc]
        assert runner(runner.example({"batch": 2}, 0))["scores-out"].shape == (2, 2)


def test_weights_stay_variables_and_dropout_does_nothing(tmp_path: Path) -> None:
    artifact = converted(tf_models.save_keras("fnn", tmp_path), tmp_path / "saved")
    loaded = import_tensorflow().saved_model.load(str(artifact.path))
    sizes = sorted(variable.shape.num_elements() for variable in loaded.variables)
    assert sum(sizes) >= tf_models.keras_model("fnn").count_params()
    serve = loaded.signatures["serving_default"]
    x = import_tensorflow().ones((2, 20))
    first, second = (next(iter(serve(x=x).values())).numpy() for _ in range(2))
    assert np.array_equal(first, second)
