"""The ONNX format: describing, opening, running, and refusing what is unsafe or damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.artifact import Artifact, Opening, Precision
from convkit.errors import ConvkitError, ModelError, SamplesError, UnsafeError, UnsupportedError
from convkit.formats.onnx import onnx as onnx_format
from convkit.formats.onnx_session import SessionRunner, usable_cpu_count

onnx = pytest.importorskip("onnx", reason="models are built with the onnx package")
runtime = pytest.importorskip("onnxruntime", reason="models are run with ONNX Runtime")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def _value(name: str, dtype: int, shape: list[Any] | None) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def _model(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    *,
    opsets: tuple[tuple[str, int], ...] = (("", 20),),
    ir_version: int = 10,
) -> Any:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid(*entry) for entry in opsets]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def _linear(weights: np.ndarray[Any, Any] | None = None) -> Any:
    if weights is None:
        weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    return _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")],
        [_value("x", FLOAT, ["batch", 4])],
        [_value("y", FLOAT, ["batch", 3])],
        {"w": weights},
    )


def _save(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def _save_external(folder: Path, location: str = "w.bin", **entries: str) -> Path:
    """The linear model with its weight in `location`; nothing is written to `location` itself."""
    model = _linear()
    tensor = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": location, "length": "48", **entries}.items():
        tensor.external_data.add(key=key, value=entry)
    return _save(model, folder / "m.onnx")


def _artifact(path: Path, precision: Precision = Precision.FP32) -> Artifact:
    described = onnx_format.describe(path, Opening())
    return Artifact(path, "onnx", precision, described.inputs, described.outputs)


def _open(path: Path) -> SessionRunner:
    return SessionRunner(Artifact(path, "onnx", Precision.FP32))


# Describing


def test_description_says_what_the_file_holds(tmp_path: Path) -> None:
    described = onnx_format.describe(_save(_linear(), tmp_path / "m.onnx"), Opening())
    assert described.precision is Precision.FP32
    assert [str(spec) for spec in described.inputs] == ["x: float32[batch, 4]"]
    assert [str(spec) for spec in described.outputs] == ["y: float32[batch, 3]"]
    assert described.parameter_count == 12
    assert described.operators == {"MatMul": 1}
    assert described.details["opsets"] == {"ai.onnx": 20}
    assert described.details["ir_version"] == 10


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (TensorProto.FLOAT16, Precision.FP16),
        (TensorProto.BFLOAT16, Precision.BF16),
        (TensorProto.INT8, Precision.INT8),
        (TensorProto.UINT4, Precision.Q4),
    ],
    ids=["fp16", "bf16", "int8", "q4"],
)
def test_precision_is_that_of_most_weight_elements(
    tmp_path: Path, dtype: int, precision: Precision
) -> None:
    big = helper.make_tensor("w", dtype, [8, 8], [1] * 64)
    small = helper.make_tensor("b", FLOAT, [8], [1.0] * 8)
    shape = helper.make_tensor("shape", INT64, [100], list(range(100)))
    node = helper.make_node("Foo", ["x", "w", "b", "shape"], ["y"], domain="my.domain")
    graph = helper.make_graph(
        [node], "g", [_value("x", FLOAT, [8])], [_value("y", FLOAT, [8])], [big, small, shape]
    )
    described = onnx_format.describe(
        _save(helper.make_model(graph), tmp_path / "m.onnx"), Opening()
    )
    assert described.precision is precision
    assert described.parameter_count == 72
    assert described.details["custom_domains"] == ["my.domain"]


def test_weights_in_constant_nodes_are_counted(tmp_path: Path) -> None:
    constant = numpy_helper.from_array(np.ones((4, 3), np.float16))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=constant),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = _model(
        nodes,
        [_value("x", TensorProto.FLOAT16, [1, 4])],
        [_value("y", TensorProto.FLOAT16, [1, 3])],
    )
    described = onnx_format.describe(_save(model, tmp_path / "m.onnx"), Opening())
    assert (described.precision, described.parameter_count) == (Precision.FP16, 12)


def test_packed_four_bit_weights_are_counted_as_what_they_hold(tmp_path: Path) -> None:
    packed = np.zeros((8, 2, 16), np.uint8)  # 8 rows of 64 weights in blocks of 32
    scales = np.ones((8, 2), np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=64, N=8, bits=4,
        block_size=32,
    )  # fmt: skip
    model = _model(
        [node],
        [_value("x", FLOAT, ["batch", 64])],
        [_value("y", FLOAT, ["batch", 8])],
        {"w": packed, "s": scales},
        opsets=(("", 20), ("com.microsoft", 1)),
    )
    described = onnx_format.describe(_save(model, tmp_path / "m.onnx"), Opening())
    assert (described.precision, described.parameter_count) == (Precision.Q4, 8 * 64)
    assert described.details["quantization"]["schemes"] == ["block"]


def test_inspecting_imports_neither_onnx_nor_numpy(tmp_path: Path) -> None:
    path = _save(_linear(), tmp_path / "m.onnx")
    code = (
        "import sys; from pathlib import Path; from convkit.artifact import Opening\n"
        "from convkit.formats.onnx import onnx\n"
        f"onnx.describe(Path({str(path)!r}), Opening())\n"
        "print(sorted({'onnx', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


# External data


def test_external_data_beside_the_model_is_counted_and_runs(tmp_path: Path) -> None:
    path = _save_external(tmp_path)
    described = onnx_format.describe(path, Opening())
    assert described.details["external_data"] == {"w.bin": 48}
    x = np.ones((2, 4), np.float32)
    with _open(path) as runner:
        expected = x @ np.arange(12, dtype=np.float32).reshape(4, 3)
        np.testing.assert_array_equal(runner({"x": x})["y"], expected)  # small integers are exact


def test_missing_data_file_is_named_with_the_place_it_is_looked_for(tmp_path: Path) -> None:
    path = _save_external(tmp_path)
    (tmp_path / "w.bin").unlink()
    for action in (lambda: onnx_format.describe(path, Opening()), lambda: _open(path)):
        with pytest.raises(ModelError, match=r"w\.bin, which is missing") as refused:
            action()
        assert str(tmp_path / "w.bin") in str(refused.value)
        assert not isinstance(refused.value, UnsafeError)


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../w.bin", "sub/../../w.bin", "..\\w.bin", "C:\\w.bin", "C:w.bin", "\\w.bin"],
)
def test_data_outside_the_folder_is_refused_as_unsafe(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(48))
    path = _save_external(folder, location)
    for action in (lambda: onnx_format.describe(path, Opening()), lambda: _open(path)):
        with pytest.raises(UnsafeError, match="outside its folder"):
            action()


def test_link_out_of_the_folder_is_refused_as_unsafe(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(48))
    path = _save_external(folder)
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to(secret)
    with pytest.raises(UnsafeError, match="link"):
        onnx_format.describe(path, Opening())


def test_model_that_is_itself_a_link_finds_its_data_beside_the_real_file(tmp_path: Path) -> None:
    """As in a hub's cache, where a snapshot folder links both into a folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    path = _save_external(blobs)
    (snapshot / "m.onnx").symlink_to(path)
    (snapshot / "w.bin").symlink_to(blobs / "w.bin")
    described = onnx_format.describe(snapshot / "m.onnx", Opening())
    assert described.details["external_data"] == {"w.bin": 48}


def test_short_data_file_is_refused_as_truncated(tmp_path: Path) -> None:
    path = _save_external(tmp_path, offset="8")
    with pytest.raises(ModelError, match=r"w\.bin.*truncated") as refused:
        onnx_format.describe(path, Opening())
    assert "byte 56; the file has 48" in str(refused.value)


def test_names_of_data_files_that_cannot_exist_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for location in ("x" * 5000, "loop", "", "."):
        with pytest.raises((ModelError, UnsafeError)):
            onnx_format.describe(_save_external(tmp_path, location), Opening())


@pytest.mark.parametrize(
    "entries", [{"offset": "-8"}, {"length": "9" * 400}, {"length": "12"}, {"offset": "0x0"}]
)
def test_data_ranges_that_cannot_be_are_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(ModelError):
        onnx_format.describe(_save_external(tmp_path, **entries), Opening())


@pytest.mark.slow
def test_model_above_two_gigabytes_is_described_and_runs(tmp_path: Path) -> None:
    """The data file is sparse: 2.2 GB of zeros that take no disk; a few rows of it are read."""
    rows, columns = 1_100_000, 512
    model = _model(
        [helper.make_node("Gather", ["w", "ids"], ["y"])],
        [_value("ids", INT64, ["count"])],
        [_value("y", FLOAT, ["count", columns])],
    )
    tensor = model.graph.initializer.add(name="w", data_type=FLOAT, dims=[rows, columns])
    tensor.data_location = TensorProto.EXTERNAL
    size = rows * columns * 4
    for key, entry in (("location", "w.bin"), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=entry)
    with (tmp_path / "w.bin").open("wb") as stream:
        stream.truncate(size)
        stream.seek(size - 4)
        stream.write(np.float32(7).tobytes())
    path = _save(model, tmp_path / "big.onnx")
    described = onnx_format.describe(path, Opening())
    assert size > 1 << 31
    assert described.parameter_count == rows * columns
    with _open(path) as runner:
        assert runner({"ids": np.array([0, rows - 1])})["y"][1, -1] == 7


# Refused by the runtime


def test_unknown_operator_is_named_with_node_and_domain(tmp_path: Path) -> None:
    node = helper.make_node("Erfc", ["x"], ["y"], name="gelu/erfc")
    model = _model([node], [_value("x", FLOAT, [2])], [_value("y", FLOAT, [2])])
    with pytest.raises(UnsupportedError, match=r"operator Erfc of domain ai\.onnx") as refused:
        _open(_save(model, tmp_path / "m.onnx"))
    assert "gelu/erfc" in str(refused.value)


def test_operator_of_an_unknown_domain_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Foo", ["x"], ["y"], domain="my.domain")
    model = _model(
        [node],
        [_value("x", FLOAT, [2])],
        [_value("y", FLOAT, [2])],
        opsets=(("", 20), ("my.domain", 1)),
    )
    with pytest.raises(UnsupportedError, match=r"operator Foo of domain my\.domain"):
        _open(_save(model, tmp_path / "m.onnx"))


def test_operator_without_a_kernel_is_named_with_its_types(tmp_path: Path) -> None:
    shape = [2, 2]
    model = _model(
        [helper.make_node("MatMul", ["x", "x"], ["y"], name="mm")],
        [_value("x", TensorProto.BFLOAT16, shape)],
        [_value("y", TensorProto.BFLOAT16, shape)],
    )
    with pytest.raises(UnsupportedError, match="no CPU kernel for MatMul") as refused:
        _open(_save(model, tmp_path / "m.onnx"))
    assert "x bfloat16" in str(refused.value)


@pytest.mark.parametrize(
    ("versions", "said"),
    [({"ir_version": 14}, "IR version 14"), ({"opsets": (("", 28),)}, r"opset of ai\.onnx 28")],
)
def test_version_too_new_is_named_with_what_the_runtime_loads(
    tmp_path: Path, versions: dict[str, Any], said: str
) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = _model(nodes, [_value("x", FLOAT, [2])], [_value("y", FLOAT, [2])], **versions)
    with pytest.raises(UnsupportedError, match=said + r"; ONNX Runtime .* loads up to \d+"):
        _open(_save(model, tmp_path / "m.onnx"))


def test_graph_that_is_wired_wrongly_is_a_model_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "nowhere"], ["y"])]
    model = _model(nodes, [_value("x", FLOAT, [2])], [_value("y", FLOAT, [2])])
    with pytest.raises(ModelError, match="not a valid ONNX model") as refused:
        _open(_save(model, tmp_path / "m.onnx"))
    assert "nowhere" in str(refused.value)


def test_truncated_model_is_refused_before_the_runtime_sees_it(tmp_path: Path) -> None:
    whole = _linear().SerializeToString()
    for size in range(1, len(whole), 7):
        path = tmp_path / "cut.onnx"
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            _open(path)


# Running


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "missing  x"),
        ({"z": np.ones((1, 4), np.float32)}, "unknown  z"),
        ({"x": np.ones((1, 4))}, "x is float64, the model takes float32"),
        ({"x": np.ones(4, np.float32)}, r"x has shape \(4,\)"),
        ({"x": np.ones((1, 5), np.float32)}, r"x has shape \(1, 5\)"),
    ],
    ids=["missing", "unknown", "dtype", "rank", "size"],
)
def test_feeds_that_do_not_fit_are_refused_naming_both_sides(
    tmp_path: Path, feeds: dict[str, Any], said: str
) -> None:
    runner = _open(_save(_linear(), tmp_path / "m.onnx"))
    with runner, pytest.raises(SamplesError, match=said) as refused:
        runner(feeds)
    assert "x: float32[batch, 4]" in str(refused.value)


def test_outputs_come_by_name_in_the_models_order(tmp_path: Path) -> None:
    model = _model(
        [helper.make_node("Split", ["x"], ["b", "a"], num_outputs=2)],
        [_value("x", FLOAT, [4])],
        [_value("b", FLOAT, None), _value("a", FLOAT, None)],
    )
    with _open(_save(model, tmp_path / "m.onnx")) as runner:
        outputs = runner({"x": np.arange(4, dtype=np.float32)})
    assert list(outputs) == ["b", "a"]
    assert outputs["a"].tolist() == [2.0, 3.0]


def test_bfloat16_goes_in_and_comes_out(tmp_path: Path) -> None:
    import ml_dtypes

    shape = [2, 3]
    model = _model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [_value("x", TensorProto.BFLOAT16, shape)],
        [_value("y", TensorProto.BFLOAT16, shape)],
    )
    x = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    with _open(_save(model, tmp_path / "m.onnx")) as runner:
        y = runner({"x": x})["y"]
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y, x)


def test_exposed_values_follow_the_models_own_outputs(tmp_path: Path) -> None:
    model = _model(
        [
            helper.make_node("MatMul", ["x", "w"], ["inner"]),
            helper.make_node("Relu", ["inner"], ["y"]),
        ],
        [_value("x", FLOAT, ["batch", 4])],
        [_value("y", FLOAT, ["batch", 3])],
        {"w": -np.ones((4, 3), np.float32)},
    )
    path = _save(model, tmp_path / "m.onnx")
    with SessionRunner(Artifact(path, "onnx", Precision.FP32), ["inner"]) as runner:
        outputs = runner({"x": np.ones((1, 4), np.float32)})
    assert list(outputs) == ["y", "inner"]
    assert outputs["inner"].tolist() == [[-4.0, -4.0, -4.0]]
    assert outputs["y"].tolist() == [[0.0, 0.0, 0.0]]


def test_importing_the_runtime_prints_nothing() -> None:
    code = "from convkit.formats.onnx_session import import_runtime; import_runtime()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert usable_cpu_count() == 1


# Examples


def _embedding(rows: int, between: list[str]) -> Any:
    names = ["ids", *(f"v{i}" for i in range(len(between)))]
    nodes = [
        helper.make_node(op, [names[i], *(["axes"] if op == "Unsqueeze" else [])], [names[i + 1]],
                         **({"to": TensorProto.INT32} if op == "Cast" else {}))
        for i, op in enumerate(between)
    ]  # fmt: skip
    nodes.append(helper.make_node("Gather", ["table", names[-1]], ["y"]))
    return _model(
        nodes,
        [
            _value("ids", INT64, ["batch", "sequence"]),
            _value("attention_mask", INT64, ["batch", 4]),
        ],
        [_value("y", FLOAT, None), _value("attention_mask", INT64, ["batch", 4])],
        {"table": np.ones((rows, 2), np.float32), "axes": np.array([0])},
    )


@pytest.mark.parametrize(
    "between", [[], ["Cast"], ["Unsqueeze", "Cast"], ["Identity", "Unsqueeze"]]
)
def test_indices_stay_inside_the_table_they_look_up(tmp_path: Path, between: list[str]) -> None:
    path = _save(_embedding(5, between), tmp_path / "m.onnx")
    with _open(path) as runner:
        feeds = runner.example({"batch": 8, "sequence": 50}, seed=3)
        runner(feeds)
    assert (feeds["ids"].min(), feeds["ids"].max()) == (0, 4)


def test_masks_are_ones_and_examples_are_seeded(tmp_path: Path) -> None:
    with _open(_save(_embedding(5, []), tmp_path / "m.onnx")) as runner:
        first, again = runner.example({"batch": 2}, 1), runner.example({"batch": 2}, 1)
        other = runner.example({"batch": 2}, 2)
    assert first["attention_mask"].tolist() == np.ones((2, 4)).tolist()
    np.testing.assert_array_equal(first["ids"], again["ids"])
    assert (first["ids"] != other["ids"]).any()


def test_integer_that_is_compared_with_a_constant_takes_its_value(tmp_path: Path) -> None:
    model = _model(
        [helper.make_node("Equal", ["rate", "known"], ["y"])],
        [_value("rate", INT64, [])],
        [_value("y", TensorProto.BOOL, [])],
        {"known": np.array(16000)},
    )
    with _open(_save(model, tmp_path / "m.onnx")) as runner:
        assert runner.example({}, 0)["rate"] == 16000


def test_string_inputs_need_samples(tmp_path: Path) -> None:
    model = _model(
        [helper.make_node("Identity", ["text"], ["y"])],
        [_value("text", TensorProto.STRING, ["batch"])],
        [_value("y", TensorProto.STRING, ["batch"])],
    )
    with _open(_save(model, tmp_path / "m.onnx")) as runner:
        with pytest.raises(ModelError, match=r"'text'.*string") as refused:
            runner.example({}, 0)
        assert "--samples" in str(refused.value)
        assert runner({"text": np.array(["a", "b"])})["y"].tolist() == ["a", "b"]


def test_every_refusal_ends_with_the_exit_code_of_its_kind() -> None:
    assert (ModelError.exit_code, UnsafeError.exit_code, SamplesError.exit_code) == (5, 9, 2)
    assert issubclass(UnsupportedError, ConvkitError)
