"""What cannot be converted from TensorFlow and Keras, as a user meets it: one message, one code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")

from convkit import cli
from convkit.tensorflow_import import import_keras, import_tensorflow
from tests import tf_models
from tests.tf1_models import tf1_frozen

pytestmark = pytest.mark.filterwarnings("ignore")


def _halved(source: Path, target: Path) -> None:
    content = source.read_bytes()
    target.write_bytes(content[: len(content) // 2])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, nearly all of them bad."""
    folder = tmp_path_factory.mktemp("models")
    tf_models.save_keras("fnn", folder)
    tf_models.save_keras("fnn", folder, ".h5")
    tf_models.keras_model("fnn").save_weights(folder / "alone.weights.h5")
    tf1_frozen(folder)
    for kind in (".keras", ".h5"):
        _halved(folder / f"fnn{kind}", folder / f"cut{kind}")
    _halved(folder / "regression.pb", folder / "cut.pb")
    _save_lambda(folder / "lambda.keras")
    _save_savedmodels(folder)
    (folder / "empty").mkdir()
    with zipfile.ZipFile(folder / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        archive.writestr("config.json", b"{" + b" " * (1 << 27))
        archive.writestr("model.weights.h5", bytes(100))
    return folder


def _save_lambda(path: Path) -> None:
    keras = import_keras()
    x = keras.Input((4,), name="x")
    y = keras.layers.Lambda(lambda tensor: tensor * 2 + 1, output_shape=(4,))(x)
    keras.Model(x, y).save(path)


def _save_savedmodels(folder: Path) -> None:
    tf = import_tensorflow()
    good = tf_models.save_keras_as_savedmodel("fnn", folder).rename(folder / "good")
    for name in ("no_variables", "cut_variables", "cut_graph", "other"):
        shutil.copytree(good, folder / name)
    shutil.rmtree(folder / "no_variables/variables")
    data = next((folder / "cut_variables/variables").glob("*.data*"))
    _halved(data, data)
    graph = folder / "cut_graph/saved_model.pb"
    _halved(graph, graph)
    (folder / "other/saved_model.pb").write_bytes(b"\x08\x07\x12\x05other")
    _save_function(lambda x: tf.py_function(lambda a: a * 2, [x], tf.float32), folder / "python")
    _save_function(lambda x: tf.strings.as_string(x), folder / "text")


def _save_function(function: Any, path: Path) -> None:
    tf = import_tensorflow()
    module = tf.Module()
    spec = tf.TensorSpec([None, 2], tf.float32, "x")
    module.call = tf.function(lambda x: {"y": function(x)}, input_signature=[spec])
    tf.saved_model.save(module, str(path), signatures=module.call.get_concrete_function())


CASES = [
    ("no_variables", 5, "There is no folder no_variables/variables"),
    ("cut_variables", 5, "is truncated"),
    ("cut_graph", 5, "cut_graph/saved_model.pb is damaged or truncated"),
    ("other", 5, "other/saved_model.pb"),
    ("good --signature serving_defualt", 2, "Did you mean 'serving_default'?"),
    ("alone.weights.h5", 5, "holds weights only (3,523 numbers)"),
    ("lambda.keras", 9, "its layer 'lambda' is a Lambda"),
    ("python", 9, "EagerPyFunc"),
    ("python --trust", 5, "calls Python functions, which no file holds"),
    ("text", 5, "works on strings"),
    ("regression.pb --outputs predictoin", 2, "Did you mean 'prediction'?"),
    ("cut.pb", 5, "cut.pb is damaged or truncated"),
    ("cut.keras", 5, "it is truncated"),
    ("cut.h5", 5, "cut.h5 is damaged or truncated"),
    ("empty", 5, "The folder empty holds no model of a known format"),
    ("bomb.keras", 5, "unpacks out of proportion"),
]


@pytest.mark.parametrize(("words", "code", "said"), CASES, ids=[case[0] for case in CASES])
def test_bad_models_end_in_one_message_and_leave_nothing_behind(
    words: str,
    code: int,
    said: str,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = sorted(models.rglob("*"))
    monkeypatch.chdir(models)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["convkit", "convert", *words.split(), "--to", "onnx"])
    capfd.readouterr()
    got = cli.outcome(lambda: cli.cli.main(prog_name="convkit", standalone_mode=False))
    captured = capfd.readouterr()
    assert got == code, captured
    assert captured.out == ""
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) <= 5
    assert sorted(models.rglob("*")) == before


def run(models: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as nobody's terminal would have set it up."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "convkit.cli", "convert", *words]
    return subprocess.run(command, cwd=models, env=environment, capture_output=True, text=True)


def test_tensorflow_itself_says_nothing(models: Path) -> None:
    done = run(models, "python", "--to", "onnx", "--trust")
    assert done.returncode == 5
    assert done.stderr.startswith("This TensorFlow graph calls Python functions")
    assert len(done.stderr.splitlines()) == 3


@pytest.mark.slow  # the source runs in a process of its own, and the result in a third
@pytest.mark.parametrize("target", ["onnx", "savedmodel"])
def test_a_lambda_layer_converts_with_trust_and_no_noise(
    target: str, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(models, "lambda.keras", "--to", target, "--trust", "-q", "-o", str(out))
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.strip() == str(out)
