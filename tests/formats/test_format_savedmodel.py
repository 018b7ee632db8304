from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

from convkit import library
from convkit.artifact import Opening, Precision
from convkit.errors import (
    ConvkitError,
    ModelError,
    UnknownNameError,
    UnsafeError,
    UsageError,
)
from convkit.formats.savedmodel import savedmodel
from convkit.graph import detect
from convkit.protobuf import encode_bytes
from convkit.tensorflow_graph import GraphRunner, freeze_saved_model
from convkit.tensorflow_import import import_keras, import_tensorflow
from tests import material

pytestmark = pytest.mark.filterwarnings("ignore")

tf = import_tensorflow()

_ROUNDING = 1e-6
"""Both sides run the same TensorFlow kernels; only their fusing may differ."""


class TwoWays(tf.Module):  # type: ignore[misc]
    """Inputs whose order is not that of their names; two functions; a counter."""

    def __init__(self) -> None:
        super().__init__()
        values = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
        self.weight = tf.Variable(values)
        self.calls = tf.Variable(0.0)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 3), name="second"),
            tf.TensorSpec((None, 2), name="first"),
        ]
    )
    def mixed(self, second: Any, first: Any) -> tuple[Any, Any]:
        return second @ self.weight + first, first * 2

    @tf.function(input_signature=[tf.TensorSpec((None, 3), name="x")])
    def counted(self, x: Any) -> dict[str, Any]:
        return {"z": x + self.calls.assign_add(1.0), "a": x @ self.weight}


@pytest.fixture(scope="module")
def two_ways(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "two"
    module = TwoWays()
    signatures = {"mixed": module.mixed, "counted": module.counted}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


@pytest.fixture
def copied(two_ways: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_ways, tmp_path / "copy"))


def described(path: Path, **opening: Any) -> Any:
    return savedmodel.describe(path, Opening(**opening))


def opened(path: Path, **opening: Any) -> Any:
    return savedmodel.open(detect(path, opening=Opening(**opening)))  # type: ignore[misc]


def save_function(folder: Path, function: Any, *specs: Any) -> Path:
    module = tf.Module()
    module.f = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(folder), signatures=module.f)
    return folder


def test_inspecting_loads_no_tensorflow(two_ways: Path) -> None:
    code = (
        "import sys; from convkit import library; from convkit.artifact import Opening\n"
        "from convkit.graph import detect\n"
        f"detect({str(two_ways)!r}, opening=Opening(signature='mixed'))\n"
        "print(sorted({'tensorflow', 'keras', 'numpy', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['numpy']")


def test_inputs_keep_the_order_of_the_function_behind_the_signature(two_ways: Path) -> None:
    found = described(two_ways, signature="mixed")
    assert [str(spec) for spec in found.inputs] == [
        "second: float32[batch, 3]",
        "first: float32[batch, 2]",
    ]
    assert [spec.name for spec in found.outputs] == ["output_0", "output_1"]
    frozen = freeze_saved_model(two_ways, "mixed")
    assert [port.name for port in frozen.inputs] == ["second", "first"]


def test_description_counts_what_the_signature_uses(two_ways: Path) -> None:
    found = described(two_ways, signature="mixed")
    assert (found.precision, found.parameter_count) == (Precision.FP32, 6)
    assert found.operators["MatMul"] == 1
    assert found.details["generation"] == 2
    assert found.details["tensorflow_version"] == tf.__version__


def test_half_precision_weights_are_described_as_such(tmp_path: Path) -> None:
    module = tf.Module()
    module.weight = tf.Variable(np.ones((8, 8), np.float16))
    module.f = tf.function(
        lambda x: x @ module.weight, input_signature=[tf.TensorSpec((None, 8), tf.float16)]
    )
    tf.saved_model.save(module, str(tmp_path / "half"), signatures=module.f)
    assert described(tmp_path / "half").precision is Precision.FP16


def test_ten_outputs_are_counted_and_not_sorted_as_text(tmp_path: Path) -> None:
    folder = save_function(
        tmp_path / "many", lambda x: tuple(x + i for i in range(12)), tf.TensorSpec((None,))
    )
    names = [spec.name for spec in described(folder).outputs]
    assert names == [f"output_{i}" for i in range(12)]
    with opened(folder) as runner:
        outputs = runner({described(folder).inputs[0].name: np.zeros(1, np.float32)})
    assert [array.item() for array in outputs.values()] == list(range(12))


def test_order_that_was_stored_beside_the_model_is_kept(copied: Path) -> None:
    (copied / "assets.extra").mkdir()
    order = {"inputs": ["first", "second"], "outputs": ["output_1", "output_0"]}
    (copied / "assets.extra" / "convkit_signature.json").write_text(json.dumps(order))
    found = described(copied, signature="mixed")
    assert [spec.name for spec in found.inputs] == order["inputs"]
    assert [spec.name for spec in found.outputs] == order["outputs"]


def test_outputs_keep_the_order_in_which_keras_2_gave_them(copied: Path) -> None:
    # keras_metadata.pb: field 1 repeats objects, of which 3 is the path and 5 the metadata.
    config = {"output_layers": [["output_1", 0, 0], ["output_0", 0, 0]]}
    metadata = json.dumps({"class_name": "Functional", "config": config}).encode()
    model = encode_bytes(3, b"root") + encode_bytes(5, metadata)
    (copied / "keras_metadata.pb").write_bytes(encode_bytes(1, model))
    names = [spec.name for spec in described(copied, signature="mixed").outputs]
    assert names == ["output_1", "output_0"]
    (copied / "keras_metadata.pb").write_bytes(encode_bytes(1, model)[:-9])
    names = [spec.name for spec in described(copied, signature="mixed").outputs]
    assert names == ["output_0", "output_1"]


@pytest.mark.parametrize("content", ["[]", "{", '{"inputs": 3}', '{"inputs": ["x"]}'])
def test_stored_order_that_is_none_is_ignored(copied: Path, content: str) -> None:
    (copied / "assets.extra").mkdir()
    (copied / "assets.extra" / "convkit_signature.json").write_text(content)
    names = [spec.name for spec in described(copied, signature="mixed").inputs]
    assert names == ["second", "first"]


def test_signature_that_is_not_there_is_answered_with_the_nearest(two_ways: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'mixed'") as caught:
        described(two_ways, signature="mixd")
    assert caught.value.exit_code == 2


def test_several_signatures_without_a_default_are_listed(two_ways: Path) -> None:
    with pytest.raises(UsageError, match="counted, mixed"):
        described(two_ways)


def test_model_without_signature_is_refused(tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    with pytest.raises(ModelError, match="has no signature"):
        described(tmp_path / "bare")


def test_running_agrees_with_tensorflow(two_ways: Path) -> None:
    generator = np.random.default_rng(1)
    feeds = {
        "first": generator.standard_normal((5, 2)).astype(np.float32),
        "second": generator.standard_normal((5, 3)).astype(np.float32),
    }
    wanted = tf.saved_model.load(str(two_ways)).signatures["mixed"](
        **{name: tf.constant(array) for name, array in feeds.items()}
    )
    with opened(two_ways, signature="mixed") as runner:
        outputs = runner(feeds)
    for name, array in outputs.items():
        np.testing.assert_allclose(array, wanted[name].numpy(), atol=_ROUNDING)


def test_variables_that_a_call_changes_are_as_saved_at_the_next_call(two_ways: Path) -> None:
    x = np.zeros((1, 3), np.float32)
    with opened(two_ways, signature="counted") as runner:
        assert [runner({"x": x})["z"].max() for _ in range(3)] == [1.0, 1.0, 1.0]


def test_models_of_tensorflow_1_are_described_and_run(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 2), name="x")
        weight = v1.get_variable(
            "w", (2, 1), use_resource=False, initializer=v1.initializers.constant(0.5)
        )
        y = tf.matmul(x, weight, name="y")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": y})
    found = described(folder)
    assert (found.details["generation"], found.parameter_count) == (1, 2)
    with opened(folder) as runner:
        assert runner({"x": np.array([[1, 3]], np.float32)})["y"].item() == 2.0


def test_ids_are_drawn_within_the_table_they_look_up(tmp_path: Path) -> None:
    keras = import_keras()
    network = keras.Sequential(
        [keras.Input((5,), dtype="int32", name="ids"), keras.layers.Embedding(7, 3)]
    )
    network.export(str(tmp_path / "table"), verbose=False)
    with opened(tmp_path / "table") as runner:
        feeds = runner.example({"batch": 50}, 0)
        ids = next(iter(feeds.values()))
        assert (ids.min(), ids.max()) == (0, 6)
        assert runner(feeds)


def test_models_of_text_are_described_and_run_but_no_text_is_made_up(tmp_path: Path) -> None:
    folder = save_function(
        tmp_path / "text", lambda x: tf.strings.upper(x), tf.TensorSpec((None,), tf.string)
    )
    found = described(folder)
    assert found.inputs[0].dtype == "string"
    with opened(folder) as runner:
        with pytest.raises(ModelError, match="none can be made up"):
            runner.example({}, 0)
        outputs = runner({found.inputs[0].name: np.array(["ab", "cd"])})
    assert list(next(iter(outputs.values()))) == [b"AB", b"CD"]


@pytest.mark.parametrize(
    "missing", ["variables", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_model_without_its_variables_is_refused_by_their_name(copied: Path, missing: str) -> None:
    path = copied / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ModelError) as caught:
        described(copied, signature="mixed")
    assert missing in caught.value.what
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
def test_truncated_variables_are_told_from_headers(copied: Path, name: str) -> None:
    path = copied / "variables" / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ModelError, match="truncated"):
        described(copied, signature="mixed")


def test_cut_or_changed_graphs_never_end_in_a_foreign_error(copied: Path) -> None:
    path = copied / "saved_model.pb"
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), len(whole) // 30)]
    for at in range(0, len(whole), len(whole) // 60):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        with suppress(ConvkitError), opened(copied, signature="mixed") as runner:
            runner(runner.example({"batch": 2}, 0))


def test_graph_file_alone_is_told_from_a_frozen_graph(two_ways: Path) -> None:
    with pytest.raises(ModelError, match="a part of a SavedModel") as caught:
        detect(two_ways / "saved_model.pb")
    assert str(two_ways) in caught.value.hint


@pytest.mark.parametrize("kind", ["EagerPyFunc", "WriteFile", "ReadFile"])
def test_graphs_that_do_more_than_compute_are_refused_without_trust(
    kind: str, tmp_path: Path
) -> None:
    def call_python(x: Any) -> Any:
        return tf.reshape(tf.py_function(lambda v: v * 2, [x], tf.float32), (-1,))

    def write(x: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(str(tmp_path / "written"), "text")]):
            return x + 1

    def read(x: Any) -> Any:
        return x + tf.cast(tf.strings.length(tf.io.read_file(str(tmp_path / "any"))), tf.float32)

    functions = {"EagerPyFunc": call_python, "WriteFile": write, "ReadFile": read}
    folder = save_function(tmp_path / "model", functions[kind], tf.TensorSpec((None,)))
    with pytest.raises(UnsafeError, match=kind) as caught:
        described(folder)
    assert caught.value.exit_code == 9
    assert described(folder, trust=True).inputs
    assert not (tmp_path / "written").exists()


def test_code_that_runs_when_a_model_is_loaded_is_found(copied: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    path = copied / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    graph = model.meta_graphs[0].graph_def
    for name, value in (("evil/name", b"/tmp/evil"), ("evil/text", b"x")):
        node = graph.node.add(name=name, op="Const")
        node.attr["dtype"].type = tf.string.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    graph.node.add(name="evil/write", op="WriteFile", input=["evil/name", "evil/text"])
    restore = model.meta_graphs[0].saver_def.restore_op_name.partition(":")[0]
    next(n for n in graph.node if n.name == restore).input.append("^evil/write")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeError, match="evil/write"):
        described(copied, signature="mixed")


def test_freezing_leaves_neither_variables_nor_calls(two_ways: Path) -> None:
    frozen = freeze_saved_model(two_ways, "mixed")
    operators = {node.op for node in frozen.graph_def.node}
    assert "MatMul" in operators
    assert not [
        name for name in operators if "Call" in name or "Variable" in name or name[:3] == "Var"
    ]
    feeds = {"second": np.ones((2, 3), np.float32), "first": np.ones((2, 2), np.float32)}
    with opened(two_ways, signature="mixed") as runner:
        wanted = runner(feeds)
    for name, array in GraphRunner(frozen)(feeds).items():
        np.testing.assert_array_equal(array, wanted[name])


@pytest.mark.slow
def test_recurrent_networks_keep_their_loops_as_functions(tmp_path: Path) -> None:
    keras = import_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((None, 5)),
            layers.LSTM(4, return_sequences=True),
            layers.Bidirectional(layers.GRU(3)),
        ]
    )
    network.export(str(tmp_path / "loops"), verbose=False)
    frozen = freeze_saved_model(tmp_path / "loops")
    assert frozen.inputs[0].spec.shape == ("batch", "time", 5)
    assert "While" in {node.op.removeprefix("Stateless") for node in frozen.graph_def.node}
    x = np.random.default_rng(0).standard_normal((3, 7, 5)).astype(np.float32)
    (result,) = GraphRunner(frozen)({frozen.inputs[0].name: x}).values()
    np.testing.assert_allclose(result, network(x).numpy(), atol=_ROUNDING)


@pytest.mark.slow
def test_basic_pitch_runs_although_tensorflow_2_cannot_load_it() -> None:
    folder = material.basic_pitch_folder()
    with pytest.raises(AttributeError, match="add_slot"):
        tf.saved_model.load(str(folder))
    found = described(folder)
    assert [spec.name for spec in found.outputs] == ["contour", "note", "onset"]
    assert found.parameter_count == 16864
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = onnxruntime.InferenceSession(str(material.basic_pitch_onnx_file()))
    with opened(folder) as runner:
        feeds = runner.example({"batch": 2}, 0)
        outputs = runner(feeds)
    (x,) = feeds.values()
    wanted = session.run(None, {session.get_inputs()[0].name: x})
    by_shape = {array.shape: array for array in wanted if array.shape[-1] == 264}
    # The authors' own ONNX file differs by 6e-7 on their test clip; noise moves further.
    np.testing.assert_allclose(outputs["contour"], by_shape[2, 172, 264], atol=1e-5)


@pytest.mark.slow
def test_guesslang_tells_languages_apart() -> None:
    folder = material.guesslang_folder()
    assert described(folder).details["string_tensors"] == ["inputs", "classes"]
    python = (
        "import os\n\ndef main(path):\n    for name in os.listdir(path):\n        print(name)\n"
    )
    with library.load(folder) as runner:
        outputs = runner({"inputs": np.array([python])})
    assert outputs["classes"][0][outputs["scores"][0].argmax()] == b"py"
