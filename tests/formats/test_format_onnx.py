"""The ONNX format: describing, opening, and refusing what is unsafe or damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.artifact import Opening, Precision
from convkit.errors import ModelError, UnsafeError, UnsupportedError
from convkit.formats.onnx import onnx as onnx_format
from tests.onnx_files import (
    FLOAT,
    INT64,
    TensorProto,
    helper,
    make_linear,
    make_model,
    make_value,
    numpy_helper,
    open_model,
    save,
    save_external,
)

# Describing


def test_description_says_what_the_file_holds(tmp_path: Path) -> None:
    described = onnx_format.describe(save(make_linear(), tmp_path / "m.onnx"), Opening())
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
        [node],
        "g",
        [make_value("x", FLOAT, [8])],
        [make_value("y", FLOAT, [8])],
        [big, small, shape],
    )
    described = onnx_format.describe(save(helper.make_model(graph), tmp_path / "m.onnx"), Opening())
    assert described.precision is precision
    assert described.parameter_count == 72
    assert described.details["custom_domains"] == ["my.domain"]


def test_weights_in_constant_nodes_are_counted(tmp_path: Path) -> None:
    constant = numpy_helper.from_array(np.ones((4, 3), np.float16))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=constant),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = make_model(
        nodes,
        [make_value("x", TensorProto.FLOAT16, [1, 4])],
        [make_value("y", TensorProto.FLOAT16, [1, 3])],
    )
    described = onnx_format.describe(save(model, tmp_path / "m.onnx"), Opening())
    assert (described.precision, described.parameter_count) == (Precision.FP16, 12)


def test_packed_four_bit_weights_are_counted_as_what_they_hold(tmp_path: Path) -> None:
    packed = np.zeros((8, 2, 16), np.uint8)  # 8 rows of 64 weights in blocks of 32
    scales = np.ones((8, 2), np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=64, N=8, bits=4,
        block_size=32,
    )  # fmt: skip
    model = make_model(
        [node],
        [make_value("x", FLOAT, ["batch", 64])],
        [make_value("y", FLOAT, ["batch", 8])],
        {"w": packed, "s": scales},
        opsets=(("", 20), ("com.microsoft", 1)),
    )
    described = onnx_format.describe(save(model, tmp_path / "m.onnx"), Opening())
    assert (described.precision, described.parameter_count) == (Precision.Q4, 8 * 64)
    assert described.details["quantization"]["schemes"] == ["block"]


@pytest.mark.parametrize(("rows", "precision"), [(128, Precision.Q4), (300, Precision.INT8)])
def test_tables_in_eight_bits_beside_matrices_in_four_are_four_bit_models(
    rows: int, precision: Precision, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["row"]),
        helper.make_node("Cast", ["row"], ["f"], to=FLOAT),
        helper.make_node(
            "MatMulNBits", ["f", "w", "s"], ["y"], domain="com.microsoft", K=64, N=64, bits=4,
            block_size=32,
        ),
    ]  # fmt: skip
    weights = {
        "table": np.zeros((rows, 64), np.int8),
        "w": np.zeros((64, 2, 16), np.uint8),
        "s": np.ones((64, 2), np.float32),
    }
    model = make_model(
        nodes,
        [make_value("x", TensorProto.INT64, ["batch"])],
        [make_value("y", FLOAT, ["batch", 64])],
        weights,
        opsets=(("", 20), ("com.microsoft", 1)),
    )
    described = onnx_format.describe(save(model, tmp_path / "m.onnx"), Opening())
    assert described.precision is precision


def test_inspecting_imports_neither_onnx_nor_numpy(tmp_path: Path) -> None:
    path = save(make_linear(), tmp_path / "m.onnx")
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
    path = save_external(tmp_path)
    described = onnx_format.describe(path, Opening())
    assert described.details["external_data"] == {"w.bin": 48}
    x = np.ones((2, 4), np.float32)
    with open_model(path) as runner:
        expected = x @ np.arange(12, dtype=np.float32).reshape(4, 3)
        np.testing.assert_array_equal(runner({"x": x})["y"], expected)  # small integers are exact


def test_missing_data_file_is_named_with_the_place_it_is_looked_for(tmp_path: Path) -> None:
    path = save_external(tmp_path)
    (tmp_path / "w.bin").unlink()
    for action in (lambda: onnx_format.describe(path, Opening()), lambda: open_model(path)):
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
    path = save_external(folder, location)
    for action in (lambda: onnx_format.describe(path, Opening()), lambda: open_model(path)):
        with pytest.raises(UnsafeError, match="outside its folder"):
            action()


def test_link_out_of_the_folder_is_refused_as_unsafe(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(48))
    path = save_external(folder)
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to(secret)
    with pytest.raises(UnsafeError, match="link"):
        onnx_format.describe(path, Opening())


def test_model_that_is_itself_a_link_finds_its_data_beside_the_real_file(tmp_path: Path) -> None:
    """As in a hub's cache, where a snapshot folder links both into a folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    path = save_external(blobs)
    (snapshot / "m.onnx").symlink_to(path)
    (snapshot / "w.bin").symlink_to(blobs / "w.bin")
    described = onnx_format.describe(snapshot / "m.onnx", Opening())
    assert described.details["external_data"] == {"w.bin": 48}


def test_short_data_file_is_refused_as_truncated(tmp_path: Path) -> None:
    path = save_external(tmp_path, offset="8")
    with pytest.raises(ModelError, match=r"w\.bin.*truncated") as refused:
        onnx_format.describe(path, Opening())
    assert "byte 56; the file has 48" in str(refused.value)


def test_names_of_data_files_that_cannot_exist_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for location in ("x" * 5000, "loop", "", "."):
        with pytest.raises((ModelError, UnsafeError)):
            onnx_format.describe(save_external(tmp_path, location), Opening())


@pytest.mark.parametrize(
    "entries", [{"offset": "-8"}, {"length": "9" * 400}, {"length": "12"}, {"offset": "0x0"}]
)
def test_data_ranges_that_cannot_be_are_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(ModelError):
        onnx_format.describe(save_external(tmp_path, **entries), Opening())


@pytest.mark.slow
def test_model_above_two_gigabytes_is_described_and_runs(tmp_path: Path) -> None:
    """The data file is sparse: 2.2 GB of zeros that take no disk; a few rows of it are read."""
    rows, columns = 1_100_000, 512
    model = make_model(
        [helper.make_node("Gather", ["w", "ids"], ["y"])],
        [make_value("ids", INT64, ["count"])],
        [make_value("y", FLOAT, ["count", columns])],
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
    path = save(model, tmp_path / "big.onnx")
    described = onnx_format.describe(path, Opening())
    assert size > 1 << 31
    assert described.parameter_count == rows * columns
    with open_model(path) as runner:
        assert runner({"ids": np.array([0, rows - 1])})["y"][1, -1] == 7


# Refused by the runtime


def test_unknown_operator_is_named_with_node_and_domain(tmp_path: Path) -> None:
    node = helper.make_node("Erfc", ["x"], ["y"], name="gelu/erfc")
    model = make_model([node], [make_value("x", FLOAT, [2])], [make_value("y", FLOAT, [2])])
    with pytest.raises(UnsupportedError, match=r"operator Erfc of domain ai\.onnx") as refused:
        open_model(save(model, tmp_path / "m.onnx"))
    assert "gelu/erfc" in str(refused.value)


def test_operator_of_an_unknown_domain_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Foo", ["x"], ["y"], domain="my.domain")
    model = make_model(
        [node],
        [make_value("x", FLOAT, [2])],
        [make_value("y", FLOAT, [2])],
        opsets=(("", 20), ("my.domain", 1)),
    )
    with pytest.raises(UnsupportedError, match=r"operator Foo of domain my\.domain"):
        open_model(save(model, tmp_path / "m.onnx"))


def test_operator_without_a_kernel_is_named_with_its_types(tmp_path: Path) -> None:
    shape = [2, 2]
    model = make_model(
        [helper.make_node("MatMul", ["x", "x"], ["y"], name="mm")],
        [make_value("x", TensorProto.BFLOAT16, shape)],
        [make_value("y", TensorProto.BFLOAT16, shape)],
    )
    with pytest.raises(UnsupportedError, match="no CPU kernel for MatMul") as refused:
        open_model(save(model, tmp_path / "m.onnx"))
    assert "x bfloat16" in str(refused.value)


@pytest.mark.parametrize(
    ("versions", "said"),
    [({"ir_version": 14}, "IR version 14"), ({"opsets": (("", 28),)}, r"opset of ai\.onnx 28")],
)
def test_version_too_new_is_named_with_what_the_runtime_loads(
    tmp_path: Path, versions: dict[str, Any], said: str
) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = make_model(
        nodes, [make_value("x", FLOAT, [2])], [make_value("y", FLOAT, [2])], **versions
    )
    with pytest.raises(UnsupportedError, match=said + r"; ONNX Runtime .* loads up to \d+"):
        open_model(save(model, tmp_path / "m.onnx"))


def test_graph_that_is_wired_wrongly_is_a_model_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "nowhere"], ["y"])]
    model = make_model(nodes, [make_value("x", FLOAT, [2])], [make_value("y", FLOAT, [2])])
    with pytest.raises(ModelError, match="not a valid ONNX model") as refused:
        open_model(save(model, tmp_path / "m.onnx"))
    assert "nowhere" in str(refused.value)


def test_truncated_model_is_refused_before_the_runtime_sees_it(tmp_path: Path) -> None:
    whole = make_linear().SerializeToString()
    for size in range(1, len(whole), 7):
        path = tmp_path / "cut.onnx"
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            open_model(path)
