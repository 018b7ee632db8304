"""Running ONNX models: feeds, outputs, threads, and inputs that make sense."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.artifact import Artifact, Precision
from convkit.errors import ConvkitError, ModelError, SamplesError, UnsafeError, UnsupportedError
from convkit.formats.onnx_session import SessionRunner
from convkit.processors import thread_count
from tests.onnx_files import (
    FLOAT,
    INT64,
    TensorProto,
    helper,
    make_linear,
    make_model,
    make_value,
    open_model,
    save,
)

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
    runner = open_model(save(make_linear(), tmp_path / "m.onnx"))
    with runner, pytest.raises(SamplesError, match=said) as refused:
        runner(feeds)
    assert "x: float32[batch, 4]" in str(refused.value)


def test_outputs_come_by_name_in_the_models_order(tmp_path: Path) -> None:
    model = make_model(
        [helper.make_node("Split", ["x"], ["b", "a"], num_outputs=2)],
        [make_value("x", FLOAT, [4])],
        [make_value("b", FLOAT, None), make_value("a", FLOAT, None)],
    )
    with open_model(save(model, tmp_path / "m.onnx")) as runner:
        outputs = runner({"x": np.arange(4, dtype=np.float32)})
    assert list(outputs) == ["b", "a"]
    assert outputs["a"].tolist() == [2.0, 3.0]


def test_bfloat16_goes_in_and_comes_out(tmp_path: Path) -> None:
    import ml_dtypes

    shape = [2, 3]
    model = make_model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [make_value("x", TensorProto.BFLOAT16, shape)],
        [make_value("y", TensorProto.BFLOAT16, shape)],
    )
    x = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    with open_model(save(model, tmp_path / "m.onnx")) as runner:
        y = runner({"x": x})["y"]
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y, x)


def test_exposed_values_follow_the_models_own_outputs(tmp_path: Path) -> None:
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["inner"]),
            helper.make_node("Relu", ["inner"], ["y"]),
        ],
        [make_value("x", FLOAT, ["batch", 4])],
        [make_value("y", FLOAT, ["batch", 3])],
        {"w": -np.ones((4, 3), np.float32)},
    )
    path = save(model, tmp_path / "m.onnx")
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
    assert thread_count() == 1


# Examples


def _embedding(rows: int, between: list[str]) -> Any:
    names = ["ids", *(f"v{i}" for i in range(len(between)))]
    nodes = [
        helper.make_node(op, [names[i], *(["axes"] if op == "Unsqueeze" else [])], [names[i + 1]],
                         **({"to": TensorProto.INT32} if op == "Cast" else {}))
        for i, op in enumerate(between)
    ]  # fmt: skip
    nodes.append(helper.make_node("Gather", ["table", names[-1]], ["y"]))
    return make_model(
        nodes,
        [
            make_value("ids", INT64, ["batch", "sequence"]),
            make_value("attention_mask", INT64, ["batch", 4]),
        ],
        [make_value("y", FLOAT, None), make_value("attention_mask", INT64, ["batch", 4])],
        {"table": np.ones((rows, 2), np.float32), "axes": np.array([0])},
    )


@pytest.mark.parametrize(
    "between", [[], ["Cast"], ["Unsqueeze", "Cast"], ["Identity", "Unsqueeze"]]
)
def test_indices_stay_inside_the_table_they_look_up(tmp_path: Path, between: list[str]) -> None:
    path = save(_embedding(5, between), tmp_path / "m.onnx")
    with open_model(path) as runner:
        feeds = runner.example({"batch": 8, "sequence": 50}, seed=3)
        runner(feeds)
    assert (feeds["ids"].min(), feeds["ids"].max()) == (0, 4)


def test_masks_are_ones_and_examples_are_seeded(tmp_path: Path) -> None:
    with open_model(save(_embedding(5, []), tmp_path / "m.onnx")) as runner:
        first, again = runner.example({"batch": 2}, 1), runner.example({"batch": 2}, 1)
        other = runner.example({"batch": 2}, 2)
    assert first["attention_mask"].tolist() == np.ones((2, 4)).tolist()
    np.testing.assert_array_equal(first["ids"], again["ids"])
    assert (first["ids"] != other["ids"]).any()


def test_integer_that_is_compared_with_a_constant_takes_its_value(tmp_path: Path) -> None:
    model = make_model(
        [helper.make_node("Equal", ["rate", "known"], ["y"])],
        [make_value("rate", INT64, [])],
        [make_value("y", TensorProto.BOOL, [])],
        {"known": np.array(16000)},
    )
    with open_model(save(model, tmp_path / "m.onnx")) as runner:
        assert runner.example({}, 0)["rate"] == 16000


def test_string_inputs_need_samples(tmp_path: Path) -> None:
    model = make_model(
        [helper.make_node("Identity", ["text"], ["y"])],
        [make_value("text", TensorProto.STRING, ["batch"])],
        [make_value("y", TensorProto.STRING, ["batch"])],
    )
    with open_model(save(model, tmp_path / "m.onnx")) as runner:
        with pytest.raises(ModelError, match=r"'text'.*string") as refused:
            runner.example({}, 0)
        assert "--samples" in str(refused.value)
        assert runner({"text": np.array(["a", "b"])})["y"].tolist() == ["a", "b"]


def test_every_refusal_ends_with_the_exit_code_of_its_kind() -> None:
    assert (ModelError.exit_code, UnsafeError.exit_code, SamplesError.exit_code) == (5, 9, 2)
    assert issubclass(UnsupportedError, ConvkitError)


def test_a_sigmoid_is_known_to_be_no_more_exact_than_the_runtime_computes_it(
    tmp_path: Path,
) -> None:
    text = """<ir_version: 8, opset_import: ["": 18]>
    g (float[N] x) => (float[N] y, float[N] z) { s = Sigmoid(x)  y = Identity(s)  z = Tanh(x) }"""
    import onnx

    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    x = np.linspace(-20, 20, 100_001).astype(np.float32)
    with open_model(tmp_path / "m.onnx") as runner:
        exact = 1 / (1 + np.exp(-x.astype(np.float64)))
        error = np.abs(runner({"x": x})["y"] - exact).max()
        assert set(runner.resolution) == {"y"}
        # The bound holds, and is no looser than twice the truth.
        assert error <= runner.resolution["y"] <= 2 * error
