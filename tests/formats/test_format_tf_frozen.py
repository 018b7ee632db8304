from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

from convkit.artifact import Opening, Precision
from convkit.errors import ConvkitError, ModelError, UnknownNameError, UnsafeError
from convkit.formats.tf_frozen import tf_frozen
from convkit.graph import detect
from convkit.tensorflow_graph import GraphRunner, read_checkpoint, read_frozen
from convkit.tensorflow_import import import_tensorflow

pytestmark = pytest.mark.filterwarnings("ignore")

tf = import_tensorflow()
v1 = tf.compat.v1

_X = np.array([[1, 2], [3, 4]], np.float32)
_PREDICTED = _X @ np.full((2, 1), 0.5, np.float32) + 1
"""What the regression below computes, by hand."""


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained regression as frozen graph and as checkpoint with its meta graph."""
    folder = tmp_path_factory.mktemp("regression")
    graph = tf.Graph()
    with graph.as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 2), name="x")
        target = v1.placeholder(tf.float32, (None, 1), name="target")
        keep = v1.placeholder_with_default(1.0, (), name="keep")
        half, ones = v1.initializers.constant(0.5), v1.initializers.ones()
        weight = v1.get_variable("weight", (2, 1), use_resource=False, initializer=half)
        bias = v1.get_variable("bias", (1,), use_resource=True, initializer=ones)
        prediction = tf.add(tf.matmul(x, weight), bias * keep, name="prediction")
        first, _ = tf.split(prediction * 2, [1, 0], axis=1, name="parts")
        tf.add(first, 1.0, name="after")
        loss = tf.reduce_mean((prediction - target) ** 2, name="loss")
        v1.train.GradientDescentOptimizer(0.1).minimize(loss)
        saver = v1.train.Saver()
        session.run(v1.global_variables_initializer())
        saver.save(session, str(folder / "model.ckpt"))
        names = ["prediction", "after"]
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), names)
        (folder / "frozen.pb").write_bytes(frozen.SerializeToString())
    return folder


def described(path: Path, **opening: Any) -> Any:
    return tf_frozen.describe(path, Opening(**opening))


def opened(path: Path, **opening: Any) -> Any:
    return tf_frozen.open(detect(path, opening=Opening(**opening)))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["frozen.pb", "model.ckpt.meta"])
def test_inspecting_loads_no_tensorflow(regression: Path, name: str) -> None:
    code = (
        "import sys; from convkit.graph import detect\n"
        f"print(detect({str(regression / name)!r}).format)\n"
        "print(sorted({'tensorflow', 'keras', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["tf_frozen", "[]"]


def test_placeholders_and_sinks_are_guessed_and_the_guess_is_told(regression: Path) -> None:
    found = described(regression / "frozen.pb")
    assert [str(spec) for spec in found.inputs] == ["x: float32[batch, 2]"]
    assert [spec.name for spec in found.outputs] == ["after"]
    assert found.details["guessed"] == ["inputs", "outputs"]
    named = described(regression / "frozen.pb", input_names=("x",), output_names=("after",))
    assert "guessed" not in named.details


def test_placeholder_that_no_output_needs_is_no_input(regression: Path) -> None:
    found = described(regression / "model.ckpt.meta", output_names=("prediction",))
    assert [spec.name for spec in found.inputs] == ["x"]
    assert (found.precision, found.parameter_count) == (Precision.FP32, 3)
    assert {path.name for path in found.data_files} == {
        "model.ckpt.index",
        "model.ckpt.data-00000-of-00001",
    }


@pytest.mark.parametrize("name", ["frozen.pb", "model.ckpt.meta"])
def test_running_gives_what_the_graph_computes(regression: Path, name: str) -> None:
    names: dict[str, Any] = {"input_names": ("x",), "output_names": ("prediction:0", "after")}
    with opened(regression / name, **names) as runner:
        assert [str(spec) for spec in runner.outputs] == [
            "prediction: float32[batch, 1]",
            "after: float32[batch, 1]",
        ]
        outputs = runner({"x": _X})
    np.testing.assert_array_equal(outputs["prediction"], _PREDICTED)
    np.testing.assert_array_equal(outputs["after"], _PREDICTED * 2 + 1)


def test_named_input_stays_although_no_output_needs_it(regression: Path) -> None:
    frozen = read_checkpoint(regression / "model.ckpt.meta", ("x", "target"), ("prediction",))
    assert [port.name for port in frozen.inputs] == ["x", "target"]
    outputs = GraphRunner(frozen)({"x": _X, "target": np.zeros((2, 1), np.float32)})
    np.testing.assert_array_equal(outputs["prediction"], _PREDICTED)


@pytest.mark.parametrize("tensor", ["parts:0", "prediction"])
def test_graph_can_be_cut_in_its_middle(regression: Path, tensor: str) -> None:
    frozen = read_frozen(regression / "frozen.pb", (tensor,), ("after",))
    assert [node.op for node in frozen.graph_def.node].count("Placeholder") == 1
    assert "MatMul" not in {node.op for node in frozen.graph_def.node}
    (port,) = frozen.inputs
    assert port.spec.shape == ("batch", 1)
    ones = np.ones((3, 1), np.float32)
    (result,) = GraphRunner(frozen)({port.name: ones}).values()
    assert result[0, 0] == (2.0 if tensor == "parts:0" else 3.0)


@pytest.mark.parametrize(("side", "name"), [("output_names", "predicton"), ("input_names", "xx")])
def test_tensor_that_is_not_there_is_answered_with_the_nearest(
    regression: Path, side: str, name: str
) -> None:
    opening: dict[str, Any] = {side: (name,)}
    with pytest.raises(UnknownNameError, match=f"Unknown tensor of frozen.pb '{name}'") as caught:
        described(regression / "frozen.pb", **opening)
    assert caught.value.exit_code == 2
    assert "Did you mean" in caught.value.hint


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
def test_checkpoint_without_a_file_of_its_is_refused_by_name(
    regression: Path, tmp_path: Path, suffix: str
) -> None:
    for path in regression.glob("model.ckpt*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    missing = tmp_path / f"model.ckpt.{suffix}"
    missing.unlink()
    with pytest.raises(ModelError, match=missing.name) as caught:
        described(tmp_path / "model.ckpt.meta")
    assert caught.value.exit_code == 5


def test_index_of_a_checkpoint_leads_to_its_graph(regression: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        detect(regression / "model.ckpt.index")
    assert str(regression / "model.ckpt.meta") in caught.value.hint
    alone = tmp_path / "model.ckpt.index"
    alone.write_bytes((regression / "model.ckpt.index").read_bytes())
    with pytest.raises(ModelError, match="not there"):
        detect(alone)


def test_scalar_outputs_are_arrays(regression: Path) -> None:
    frozen = read_checkpoint(regression / "model.ckpt.meta", ("x", "target"), ("loss",))
    outputs = GraphRunner(frozen)({"x": _X, "target": np.zeros((2, 1), np.float32)})
    assert outputs["loss"].shape == ()


def test_cut_or_changed_files_never_end_in_a_foreign_error(
    regression: Path, tmp_path: Path
) -> None:
    whole = (regression / "frozen.pb").read_bytes()
    path = tmp_path / "damaged.pb"
    damaged = [whole[:size] for size in range(0, len(whole), len(whole) // 30)]
    for at in range(0, len(whole), len(whole) // 60):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        with suppress(ConvkitError), opened(path) as runner:
            runner(runner.example({"batch": 2}, 0))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\x07\x12\x04test", b"\x0a\x03abc", b"\x0a\x08\x0a\x01a\x12\x03???", b"\x0a\xff"],
)
def test_other_protobuf_files_are_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pb").write_bytes(content)
    assert not tf_frozen.matches(tmp_path / "other.pb", Opening())


def test_onnx_files_and_graph_files_of_savedmodels_are_left_alone(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) { y = Abs(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "graph.onnx")
    assert not tf_frozen.matches(tmp_path / "graph.onnx", Opening())
    module = tf.Module()
    module.f = tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec((None,))])
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.f)
    assert not tf_frozen.matches(tmp_path / "saved" / "saved_model.pb", Opening())


def test_graph_that_writes_files_is_refused_without_trust(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, (None,), name="x")
        with tf.control_dependencies([tf.io.write_file(str(tmp_path / "written"), "text")]):
            tf.identity(x, name="y")
    path = tmp_path / "writes.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(UnsafeError, match="WriteFile"):
        described(path)
    with pytest.raises(UnsafeError):
        opened(path)
    assert not (tmp_path / "written").exists()
    assert described(path, trust=True).inputs
