from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from convkit import samples  # noqa: E402
from convkit.artifact import Opening, TensorSpec  # noqa: E402
from convkit.converters.savedmodel_to_onnx import savedmodel_to_onnx  # noqa: E402
from convkit.errors import UnknownNameError, UnsupportedError  # noqa: E402
from convkit.formats.savedmodel import savedmodel  # noqa: E402
from convkit.tensorflow_import import import_tensorflow  # noqa: E402
from tests import material, tf_models  # noqa: E402
from tests.tf_conversion import Conversion, assert_close, convert  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

tf = import_tensorflow()

# Both sides compute in float32, in another order: these graphs were measured below 3e-6.
_FP32 = 2e-5

_ROWS = TensorSpec("x", "float32", ("batch", 5))
_IMAGES = TensorSpec("x", "float32", ("batch", 6, 7, 3))
_MATRICES = TensorSpec("x", "float32", ("batch", 4, 5))
_WHOLE = TensorSpec("x", "int32", ("batch", 5))


def saved(call: Callable[..., Any], specs: tuple[TensorSpec, ...], folder: Path) -> Path:
    """A function as a SavedModel."""
    module = tf.Module()
    signature = [
        tf.TensorSpec(
            [s if isinstance(s, int) else None for s in spec.shape], spec.dtype, spec.name
        )
        for spec in specs
    ]
    module.call = tf.function(call, input_signature=signature, autograph=False)
    tf.saved_model.save(module, str(folder), signatures=module.call)
    return folder


def converted(path: Path, folder: Path, **options: Any) -> Conversion:
    return convert(savedmodel, savedmodel_to_onnx, path, folder / "model.onnx", **options)


def assert_agrees(conversion: Conversion, call: Callable[..., Any], **sizes: int) -> None:
    """Compares with the function run eagerly, at several batches."""
    for seed, batch in enumerate((1, 3)):
        feeds = samples.draw(conversion.source.inputs, {"batch": batch} | sizes, seed)
        result = call(**{name: tf.constant(array) for name, array in feeds.items()})
        expected = {name: result[name] for name in sorted(result)}
        got = conversion.run(feeds)
        assert_close(expected, {name: got[name] for name in sorted(got)}, _FP32)


_QUICK = ("cond", "while_loop", "misc", "tensor_array", "erfc")


@pytest.mark.parametrize("name", _QUICK)
def test_functions_agree_with_tensorflow_eager(name: str, tmp_path: Path) -> None:
    path = tf_models.save_function(name, tmp_path)
    assert_agrees(converted(path, tmp_path), tf_models.FUNCTIONS[name].call)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in tf_models.FUNCTIONS if n not in _QUICK])
def test_all_other_functions_agree_too(name: str, tmp_path: Path) -> None:
    path = tf_models.save_function(name, tmp_path)
    assert_agrees(converted(path, tmp_path), tf_models.FUNCTIONS[name].call)


def test_there_are_21_graphs_born_in_tensorflow() -> None:
    assert len(tf_models.TF_BORN) == len(set(tf_models.TF_BORN)) == 21
    assert set(tf_models.TF_BORN) <= {*tf_models.KERAS_MODELS, *tf_models.FUNCTIONS}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in tf_models.TF_BORN if n in tf_models.KERAS_MODELS])
def test_exported_keras_models_agree_with_keras_eager(name: str, tmp_path: Path) -> None:
    conversion = converted(tf_models.save_keras_as_savedmodel(name, tmp_path), tmp_path)
    model = tf_models.keras_model(name)
    for seed, batch in enumerate((1, 3)):
        sizes = {"batch": batch, "time": 7, "height": 20, "width": 28}
        feeds = samples.draw(conversion.source.inputs, sizes, seed)
        arrays = list(feeds.values())
        result = model(arrays if len(arrays) > 1 else arrays[0], training=False)
        if isinstance(result, dict):
            expected = result
        else:
            leaves = tf.nest.flatten(result)
            expected = {f"output_{i}": leaf for i, leaf in enumerate(leaves)}
        got = conversion.run(feeds)
        assert_close({name: expected[name] for name in got}, got, _FP32)


# What tf2onnx leaves out or gets wrong, each against TensorFlow's own operator. Values are those
# of a normal distribution unless the function moves them.
_EXPANDED: dict[str, tuple[Callable[..., Any], TensorSpec]] = {
    "expm1": (lambda x: tf.math.expm1(x * 0.01), _ROWS),
    "log1p": (lambda x: tf.math.log1p(tf.abs(x) * 1e-3), _ROWS),
    "erfinv": (lambda x: tf.math.erfinv(tf.tanh(x)), _ROWS),
    "lgamma": (lambda x: tf.math.lgamma(x * 3), _ROWS),
    "digamma": (lambda x: tf.math.digamma(tf.abs(x) * 3 + 0.1), _ROWS),
    "bessel": (lambda x: tf.math.bessel_i0e(x * 4) + tf.math.bessel_i1e(x * 4), _ROWS),
    "xlogy": (lambda x: tf.math.xlogy(tf.nn.relu(x), tf.abs(x)), _ROWS),
    "floor_div": (lambda x: tf.stack([x // -3, x % 4, x % -4]), _WHOLE),
    "truncate": (lambda x: tf.truncatediv(x - 40, 7) + tf.truncatemod(x - 40, 7), _WHOLE),
    "norm": (lambda x: tf.math.reduce_euclidean_norm(x, axis=1, keepdims=True), _ROWS),
    "logsumexp": (lambda x: tf.math.cumulative_logsumexp(x, 1), _ROWS),
    "search": (lambda x: tf.searchsorted(tf.sort(x, 1), x, side="right"), _ROWS),
    "scatter": (lambda x: tf.scatter_nd([[1], [3], [1]], tf.transpose(x)[:3], [5, 2])
                if x.shape[0] == 2 else tf.scatter_nd([[1], [1]], [1.0, 2.0], [4]), _ROWS),
    "segment_max": (lambda x: tf.math.segment_max(tf.transpose(x), [0, 0, 1, 3, 3]), _ROWS),
    "unsorted": (lambda x: tf.math.unsorted_segment_min(tf.transpose(x), [2, 0, -1, 0, 2], 4),
                 _ROWS),
    "set_diagonal": (lambda x: tf.linalg.set_diag(x, x[:, :, 0], k=-1)
                     if x.shape[1] == 5 else tf.linalg.set_diag(x, x[:, :, 0]), _MATRICES),
    "new_axes": (lambda x: x[:, 1:4:2, tf.newaxis, ::-1, ...], _MATRICES),
    "patches": (lambda x: tf.image.extract_patches(
        x, [1, 3, 3, 1], [1, 2, 2, 1], [1, 1, 1, 1], "SAME"), _IMAGES),
    "bicubic": (lambda x: tf.raw_ops.ResizeBicubic(images=x, size=(13, 5)), _IMAGES),
    "shrunk": (lambda x: tf.image.resize(x, (4, 5), "lanczos5", antialias=True), _IMAGES),
    "area": (lambda x: tf.image.resize(x, (4, 9), "area"), _IMAGES),
    "hue": (lambda x: tf.image.rgb_to_hsv(tf.sigmoid(x)), _IMAGES),
    "fake_quantized": (lambda x: tf.quantization.fake_quant_with_min_max_args(x, -1.3, 2.0),
                       _ROWS),
}  # fmt: skip


def _all_of(calls: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    return lambda x: {name: call(x) for name, call in calls.items()}


def test_operators_that_tf2onnx_lacks_agree_with_tensorflow(tmp_path: Path) -> None:
    for spec in (_ROWS, _WHOLE, _MATRICES, _IMAGES):
        calls = {name: call for name, (call, wanted) in _EXPANDED.items() if wanted is spec}

        every = _all_of(calls)

        folder = tmp_path / f"{spec.dtype}_{len(spec.shape)}"
        path = saved(every, (spec,), folder)
        assert_agrees(converted(path, folder), every)


def test_names_order_and_types_are_those_of_the_signature(tmp_path: Path) -> None:
    path = tf_models.save_function("misc", tmp_path)
    shapes = converted(path, tmp_path).shapes()
    assert list(shapes)[:2] == ["x", "index"]
    assert list(shapes)[2:] == sorted(list(shapes)[2:])
    assert shapes["values"] == ["batch", 3]
    assert shapes["kept"] == [4, "batch"]  # the second axis of a transposed result is the batch


def test_the_order_that_a_savedmodel_keeps_beside_it_is_honoured(tmp_path: Path) -> None:
    path = tf_models.save_function("misc", tmp_path)
    order = ["values", "order", "kept", "products", "gathered", "scattered", "one_hot"]
    extra = path / "assets.extra"
    extra.mkdir()
    kept = {"serving_default": {"inputs": ["index", "x"], "outputs": order}}
    (extra / "convkit_signature.json").write_text(json.dumps({"signatures": kept}))
    assert list(converted(path, tmp_path).shapes()) == ["index", "x", *order]


def test_an_output_that_is_an_input_and_one_given_twice_keep_their_names(tmp_path: Path) -> None:
    def call(x: Any) -> dict[str, Any]:
        y = tf.tanh(x)
        return {"same": x, "first": y, "second": y}

    conversion = converted(saved(call, (_ROWS,), tmp_path / "m"), tmp_path)
    assert list(conversion.shapes()) == ["x", "first", "same", "second"]
    assert_agrees(conversion, call)


def test_an_input_that_nothing_reads_is_still_one(tmp_path: Path) -> None:
    def call(x: Any, unused: Any) -> dict[str, Any]:
        return {"y": x * 2}

    specs = (_ROWS, TensorSpec("unused", "int64", ("batch",)))
    conversion = converted(saved(call, specs, tmp_path / "m"), tmp_path)
    assert conversion.shapes() == {"x": ["batch", 5], "unused": ["batch"], "y": ["batch", 5]}
    assert_agrees(conversion, call)


def test_a_size_that_only_looks_like_the_inputs_gets_a_name_of_its_own(tmp_path: Path) -> None:
    def call(x: Any) -> dict[str, Any]:
        halved = tf.nn.max_pool2d(x, 2, 2, "SAME")
        return {"y": tf.repeat(tf.repeat(halved, 2, 1), 2, 2)}

    spec = TensorSpec("x", "float32", ("batch", "height", "width", 3))
    conversion = converted(saved(call, (spec,), tmp_path / "m"), tmp_path)
    assert conversion.shapes()["y"] == ["batch", "y_dim1", "y_dim2", 3]
    assert_agrees(conversion, call, height=9, width=7)


def test_the_signature_asked_for_is_converted_and_others_are_named(tmp_path: Path) -> None:
    module = tf.Module()
    spec = tf.TensorSpec((None, 5), tf.float32, "x")
    double = tf.function(lambda x: {"double": x * 2}, input_signature=[spec], autograph=False)
    half = tf.function(lambda x: {"half": x / 2}, input_signature=[spec], autograph=False)
    module.double, module.half = double, half
    path = tmp_path / "m"
    tf.saved_model.save(module, str(path), signatures={"double": double, "half": half})
    conversion = converted(path, tmp_path, opening=Opening(signature="half"))
    assert list(conversion.shapes()) == ["x", "half"]
    with pytest.raises(UnknownNameError, match=r"dubble"):
        converted(path, tmp_path, opening=Opening(signature="dubble"))


def test_a_variable_that_is_written_is_refused_by_name(tmp_path: Path) -> None:
    class Counter(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.total = tf.Variable(tf.zeros(5), name="running_total")

        @tf.function(input_signature=[tf.TensorSpec((None, 5), tf.float32, "x")])
        def call(self, x: Any) -> dict[str, Any]:
            return {"y": self.total.assign_add(tf.reduce_sum(x, 0))}

    module = Counter()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.call)
    with pytest.raises(UnsupportedError, match="changes variables") as caught:
        converted(tmp_path / "m", tmp_path)
    assert "running_total" in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_a_hash_table_is_refused_with_its_nodes(tmp_path: Path) -> None:
    class Lookup(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            keys = tf.constant([1, 2], tf.int64)
            values = tf.constant([0.5, 0.7])
            table = tf.lookup.KeyValueTensorInitializer(keys, values)
            self.table = tf.lookup.StaticHashTable(table, -1.0)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.int64, "ids")])
        def call(self, ids: Any) -> dict[str, Any]:
            return {"y": self.table.lookup(ids)}

    module = Lookup()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.call)
    with pytest.raises(UnsupportedError, match="hash tables") as caught:
        converted(tmp_path / "m", tmp_path)
    assert "LookupTableFindV2 in " in str(caught.value)


def test_strings_are_refused_by_the_names_of_their_inputs(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="works on strings") as caught:
        converted(material.guesslang_folder(), tmp_path)
    assert "holds strings" in str(caught.value)
    assert caught.value.exit_code == 5


def test_an_operator_without_translation_is_named_with_its_node(tmp_path: Path) -> None:
    path = saved(
        lambda x: {"y": tf.linalg.svd(x, compute_uv=False, name="spectrum")},
        (_MATRICES,),
        tmp_path / "m",
    )
    with pytest.raises(UnsupportedError, match="no translation to ONNX: Svd") as caught:
        converted(path, tmp_path)
    assert "spectrum" in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_a_difference_of_sets_is_refused_with_a_way_out(tmp_path: Path) -> None:
    """tf2onnx writes a file that loads, and fails as soon as nothing is left."""

    @tf.function(input_signature=[tf.TensorSpec((None, 3), tf.int64, n) for n in ("a", "b")])  # type: ignore[untyped-decorator]
    def call(a: Any, b: Any) -> dict[str, Any]:
        return {"y": tf.sets.difference(a, b).values}

    module = tf.Module()
    module.call = call
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=call)
    with pytest.raises(UnsupportedError, match="intersections of sets") as caught:
        converted(tmp_path / "m", tmp_path)
    assert "DenseToDenseSetOperation in " in str(caught.value)


def test_a_choice_by_number_is_refused_with_a_way_out(tmp_path: Path) -> None:
    def call(x: Any) -> dict[str, Any]:
        branches = [lambda: x * 2, lambda: x - 1, lambda: x * x]
        return {"y": tf.switch_case(tf.shape(x)[0] % 3, branches)}

    with pytest.raises(UnsupportedError, match=r"tf\.switch_case") as caught:
        converted(saved(call, (_ROWS,), tmp_path / "m"), tmp_path)
    assert "tf.cond" in caught.value.hint


def test_a_list_filled_backwards_is_no_wrong_file(tmp_path: Path) -> None:
    def call(x: Any) -> dict[str, Any]:
        written = tf.TensorArray(tf.float32, size=5)
        step = lambda i, t: (i + 1, t.write(4 - i, x[:, i]))  # noqa: E731
        return {"y": tf.while_loop(lambda i, _: i < 5, step, (0, written))[1].stack()}

    path = saved(call, (_ROWS,), tmp_path / "m")
    with pytest.raises(UnsupportedError, match="another order") as caught:
        converted(path, tmp_path)
    assert "TensorListSetItem in " in str(caught.value)


def test_basic_pitch_agrees_with_the_onnx_its_authors_ship(tmp_path: Path) -> None:
    import onnxruntime

    conversion = converted(material.basic_pitch_folder(), tmp_path)
    twin = onnxruntime.InferenceSession(str(material.basic_pitch_onnx_file()))
    sound = np.random.default_rng(0).uniform(-1, 1, (2, 43844, 1)).astype(np.float32)
    (name,) = (spec.name for spec in conversion.source.inputs)
    got = conversion.run({name: sound})
    expected = twin.run(None, {twin.get_inputs()[0].name: sound})
    assert len(got) == len(expected) == 3
    order = sorted(got.values(), key=lambda a: (a.shape, float(a.sum())))
    for one, other in zip(
        order, sorted(expected, key=lambda a: (a.shape, float(a.sum()))), strict=True
    ):
        # Probabilities in [0, 1] over nine convolutions: measured below 2e-6.
        assert float(np.abs(one - other).max()) < 2e-5


@pytest.mark.slow
def test_the_command_converts_basic_pitch_and_loads_tensorflow_once(tmp_path: Path) -> None:
    out = tmp_path / "pitch.onnx"
    source = str(material.basic_pitch_folder())
    command = [
        sys.executable,
        "-m",
        "convkit.cli",
        "convert",
        source,
        "--to",
        "onnx",
        "-o",
        str(out),
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["passed"]
    assert [s["name"] for s in report["artifact"]["outputs"]] == ["contour", "note", "onset"]
