from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from convkit import samples  # noqa: E402
from convkit.artifact import Opening  # noqa: E402
from convkit.converters.keras_to_onnx import keras_to_onnx  # noqa: E402
from convkit.errors import ModelError, UnsafeError, UnsupportedError  # noqa: E402
from convkit.formats.keras import keras as keras_format  # noqa: E402
from convkit.tensorflow_import import import_keras, import_tensorflow  # noqa: E402
from tests import material, tf_models  # noqa: E402
from tests.tf_conversion import Conversion, assert_close, convert  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

# Both sides sum in float32, in another order: these networks were measured below 2e-6.
_FP32 = 2e-5
# Half precision keeps 11 bits; ONNX Runtime on a CPU sums in float32 what TensorFlow rounds.
_FP16 = 1e-2

_QUICK = ("fnn", "embedding", "any_size")
_WITHOUT_FILE = ("subclassed",)  # its class lies in no file


def converted(name: str, folder: Path, suffix: str = ".keras", **options: Any) -> Conversion:
    path = tf_models.save_keras(name, folder, suffix)
    return convert(keras_format, keras_to_onnx, path, folder / "model.onnx", **options)


def eager(model: Any, conversion: Conversion, feeds: Any) -> dict[str, Any]:
    """What Keras computes without any graph, under the names of the outputs."""
    arrays = list(feeds.values())
    result = model(arrays if len(arrays) > 1 else arrays[0], training=False)
    leaves = import_tensorflow().nest.flatten(result)
    names = [value.name for value in conversion.model().graph.output]
    return {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)}


def assert_agrees(name: str, conversion: Conversion, tolerance: float = _FP32) -> None:
    model = tf_models.keras_model(name)
    specs = conversion.source.inputs
    for seed, sizes in enumerate(({"batch": 1}, {"batch": 3, "time": 7}, {"batch": 2, "time": 11})):
        feeds = samples.draw(specs, {"height": 20, "width": 28} | sizes, seed)
        assert_close(eager(model, conversion, feeds), conversion.run(feeds), tolerance)


@pytest.mark.parametrize("name", _QUICK)
def test_keras_models_agree_with_keras_eager_at_other_batches(name: str, tmp_path: Path) -> None:
    assert_agrees(name, converted(name, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in tf_models.KERAS_MODELS if n not in (*_QUICK, *_WITHOUT_FILE, "two_heads")]
)
def test_all_other_keras_models_agree_too(name: str, tmp_path: Path) -> None:
    assert_agrees(name, converted(name, tmp_path))


@pytest.mark.slow
def test_a_full_h5_file_agrees_too(tmp_path: Path) -> None:
    assert_agrees("conv_autoencoder", converted("conv_autoencoder", tmp_path, ".h5"))


def test_names_and_order_are_those_of_the_layers_and_the_batch_is_dynamic(tmp_path: Path) -> None:
    conversion = converted("lstm", tmp_path)
    assert conversion.shapes() == {
        "steps": ["batch", "time", 5],
        "memory_0": ["batch", "time", 6],
        "memory_1": ["batch", 6],
        "memory_2": ["batch", 6],
    }


def test_inputs_and_outputs_keep_their_order_where_the_alphabet_has_another(
    tmp_path: Path,
) -> None:
    """Keras lists a dictionary's outputs sorted by key; each name must still carry its tensor."""
    conversion = converted("two_heads", tmp_path)
    assert list(conversion.shapes()) == ["zeta", "alpha", "score", "label", "raw"]
    assert [spec.name for spec in conversion.source.outputs] == ["score", "label", "raw"]
    feeds = samples.draw(conversion.source.inputs, {"batch": 3}, 0)
    expected = tf_models.keras_model("two_heads")(list(feeds.values()))
    named = {name: tensor.numpy() for name, tensor in expected.items()}
    assert_close(named, conversion.run(feeds), _FP32)


_slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    ["gru_reset_before", pytest.param("gru", marks=_slow), pytest.param("gru_stack", marks=_slow)],
)
def test_grus_become_the_operator(name: str, tmp_path: Path) -> None:
    conversion = converted(name, tmp_path)
    count = 3 if name == "gru_stack" else 1
    assert conversion.operators().count("GRU") == count
    assert "Loop" not in conversion.operators()
    assert any("ONNX GRU" in note for note in conversion.notes)
    assert_agrees(name, conversion)


@pytest.mark.slow
def test_simple_rnns_become_the_operator(tmp_path: Path) -> None:
    conversion = converted("simple_rnn", tmp_path)
    assert conversion.operators().count("RNN") == 3
    assert "Loop" not in conversion.operators()
    assert_agrees("simple_rnn", conversion)


@pytest.mark.slow
def test_an_lstm_with_another_activation_is_an_lstm_that_says_so(tmp_path: Path) -> None:
    conversion = converted("rnn", tmp_path)
    nodes = [node for node in conversion.model().graph.node if node.op_type == "LSTM"]
    listed = [list(a.strings) for n in nodes for a in n.attribute if a.name == "activations"]
    assert listed == [[b"Sigmoid", b"Relu", b"Relu"]] * 2
    assert_agrees("rnn", conversion)


@pytest.mark.parametrize("name", ["gru_hard_gates", pytest.param("masked_gru", marks=_slow)])
def test_what_is_not_exactly_the_operator_stays_a_loop(name: str, tmp_path: Path) -> None:
    conversion = converted(name, tmp_path)
    assert "Loop" in conversion.operators()
    assert "GRU" not in conversion.operators()
    assert_agrees(name, conversion)


def test_a_gru_that_starts_from_a_given_state_keeps_it(tmp_path: Path) -> None:
    keras = import_keras()
    keras.utils.set_random_seed(3)
    steps, state = keras.Input((None, 5), name="steps"), keras.Input((7,), name="state")
    model = keras.Model([steps, state], keras.layers.GRU(7, name="end")(steps, initial_state=state))
    model.save(tmp_path / "model.keras")
    conversion = convert(
        keras_format, keras_to_onnx, tmp_path / "model.keras", tmp_path / "model.onnx"
    )
    assert "GRU" in conversion.operators()
    feeds = samples.draw(conversion.source.inputs, {"batch": 3, "time": 4}, 0)
    assert_close(eager(model, conversion, feeds), conversion.run(feeds), _FP32)


@pytest.mark.slow
def test_a_masked_gru_really_skips_masked_steps(tmp_path: Path) -> None:
    conversion = converted("masked_gru", tmp_path)
    steps = samples.draw(conversion.source.inputs, {"batch": 2}, 0)["x"].copy()
    steps[:, 3:6] = 0
    kept = conversion.run({"x": steps})
    expected = eager(tf_models.keras_model("masked_gru"), conversion, {"x": steps})
    assert_close(expected, kept, _FP32)
    steps[:, 3:6] = 1e-3
    assert float(np.abs(conversion.run({"x": steps})["dense"] - kept["dense"]).max()) > 1e-3


def test_half_precision_is_kept(tmp_path: Path) -> None:
    keras = import_keras()
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, activation="relu", dtype="float16") for _ in range(2)]
    model = keras.Sequential([keras.Input((8,), dtype="float16", name="x"), *layers])
    model.save(tmp_path / "half.keras")
    conversion = convert(
        keras_format, keras_to_onnx, tmp_path / "half.keras", tmp_path / "model.onnx"
    )
    kinds = {tensor.data_type for tensor in conversion.model().graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    feeds = samples.draw(conversion.source.inputs, {"batch": 3}, 0)
    assert_close(eager(model, conversion, feeds), conversion.run(feeds), _FP16)


def test_an_older_opset_can_be_asked_for_and_a_newer_one_is_noted(tmp_path: Path) -> None:
    old = converted("fnn", tmp_path, opset=15)
    assert [e.version for e in old.model().opset_import if not e.domain] == [15]
    new = converted("fnn", tmp_path, opset=21)
    assert [e.version for e in new.model().opset_import if not e.domain] == [18]
    assert any("18 at most" in note for note in new.notes)
    with pytest.raises(UnsupportedError, match="opset 13 to 18, not 9"):
        converted("fnn", tmp_path, opset=9)


def test_the_file_loads_widely_and_names_no_machine(tmp_path: Path) -> None:
    model = converted("gru", tmp_path).model()
    assert model.ir_version <= 8
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not model.doc_string
    assert not model.graph.value_info


def test_a_lambda_layer_is_refused_without_trust(tmp_path: Path) -> None:
    keras = import_keras()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "lambda.keras")
    with pytest.raises(UnsafeError):
        convert(keras_format, keras_to_onnx, tmp_path / "lambda.keras", tmp_path / "model.onnx")


def test_text_vectorization_is_refused_by_name(tmp_path: Path) -> None:
    keras = import_keras()
    layer = keras.layers.TextVectorization(max_tokens=10, output_sequence_length=4)
    layer.adapt(["one two three"])
    text = keras.Input((), dtype="string", name="text")
    keras.Model(text, layer(text)).save(tmp_path / "text.keras")
    with pytest.raises((UnsupportedError, ModelError), match=r"string|text"):
        convert(keras_format, keras_to_onnx, tmp_path / "text.keras", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.slow
def test_fer_of_keras_2_agrees(tmp_path: Path) -> None:
    path = material.fer_file()
    conversion = convert(keras_format, keras_to_onnx, path, tmp_path / "fer.onnx")
    model = keras_format.load(conversion.source)  # type: ignore[misc]
    for seed, batch in enumerate((1, 3)):
        feeds = samples.draw(conversion.source.inputs, {"batch": batch}, seed)
        assert_close(eager(model, conversion, feeds), conversion.run(feeds), _FP32)


@pytest.mark.slow
def test_chars2vec_agrees_with_its_published_onnx_twin(tmp_path: Path) -> None:
    import onnxruntime

    opening = Opening(factory="tests.tf_models:chars2vec_300")
    conversion = convert(
        keras_format,
        keras_to_onnx,
        material.chars2vec_weights_file(300),
        tmp_path / "chars2vec.onnx",
        opening,
    )
    twin = onnxruntime.InferenceSession(str(material.chars2vec_onnx_file()))
    word = np.eye(59, dtype=np.float32)[[[4, 17, 8, 30, 11], [50, 2, 2, 40, 58]]]
    (expected,) = twin.run(None, {twin.get_inputs()[0].name: word})
    (got,) = conversion.run({"letters": word}).values()
    # The twin was made from the same weights by another version of the converter.
    assert float(np.abs(expected - got).max()) < 1e-5
    assert conversion.operators().count("LSTM") == 2


@pytest.mark.slow
@pytest.mark.parametrize("part", ["pnet", "rnet", "onet"])
def test_mtcnn_of_keras_and_of_pytorch_agree_as_onnx(part: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests import material_keras

    network = material_keras.mtcnn(part)
    size = {"pnet": 40, "rnet": 24, "onet": 48}[part]
    image = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    network(image)
    archive = import_keras().export.ExportArchive()
    archive.track(network)
    spec = import_tensorflow().TensorSpec((None, size, size, 3), "float32", name="image")
    archive.add_endpoint("serve", lambda x: network(x, training=False), input_signature=[spec])
    archive.write_out(str(tmp_path / "saved"), verbose=False)
    from convkit.converters.savedmodel_to_onnx import savedmodel_to_onnx
    from convkit.formats.savedmodel import savedmodel

    conversion = convert(savedmodel, savedmodel_to_onnx, tmp_path / "saved", tmp_path / "m.onnx")
    twin = getattr(material, f"mtcnn_{part}")().eval()
    weights = material.MATERIAL[f"mtcnn_{part}"].path()
    twin.load_state_dict(torch.load(weights, weights_only=True))
    path = tmp_path / "twin.onnx"
    planes = torch.tensor(image).permute(0, 3, 1, 2).contiguous()
    torch.onnx.export(twin, (planes,), str(path), dynamo=False, input_names=["image"])
    there = Conversion(conversion.source, path, []).run({"image": planes.numpy()})
    here = conversion.run({"image": image})
    assert len(here) == len(there)

    def flat(array: Any) -> Any:
        moved = np.moveaxis(array, 1, -1) if array.ndim == 4 else array
        return moved.reshape(-1)

    expected = sorted((flat(array) for array in there.values()), key=lambda a: (a.size, a[0]))
    got = sorted((array.reshape(-1) for array in here.values()), key=lambda a: (a.size, a[0]))
    for one, other in zip(expected, got, strict=True):
        # The PyTorch weights are a copy of the same training: outputs are below 2, measured 1e-6.
        assert float(np.abs(one - other).max()) < 1e-5
