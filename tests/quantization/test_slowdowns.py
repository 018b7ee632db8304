"""What is known to be slow on a target is said before it is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from convkit import foresight, graph, pipeline, recipe
from convkit.errors import UnknownNameError
from convkit.quantization.slowdowns import SLOWDOWNS, foreseen, warnings_for
from convkit.quantization.targets import TARGETS
from tests.onnx_files import save
from tests.quantization.quantized_graphs import float_graph, node, normal

_SCRIPT = Path(__file__).parents[2] / "scripts" / "bench-quantized-operators"


@pytest.mark.parametrize(
    ("target", "scheme", "operators", "words"),
    [
        ("cpu", "nf4", ["MatMul"], "0.09x"),
        ("arm", "fp4", ["MatMul"], "rtn"),
        ("cpu", "dynamic", ["Conv"], "--calibration"),
        ("cpu", "static", ["GRU"], "no int8 kernel"),
        ("cuda", "static", ["Conv"], "slower than fp32"),
        ("tensorrt", "dynamic", ["MatMul"], "--scheme static"),
    ],
)
def test_what_is_slow_is_said_with_what_is_better(
    target: str, scheme: str, operators: list[str], words: str
) -> None:
    (text,) = warnings_for(TARGETS[target], scheme, operators)
    assert words in text
    assert text.startswith(f"On {target} {scheme}")


@pytest.mark.parametrize(
    ("target", "scheme", "operators"),
    [("cpu", "dynamic", ["MatMul"]), ("cpu", "static", ["Conv"]), ("cuda", "rtn", ["MatMul"])],
)
def test_what_is_fast_is_not_warned_of(target: str, scheme: str, operators: list[str]) -> None:
    assert warnings_for(TARGETS[target], scheme, operators) == ()


def test_a_level_that_computes_in_float_is_warned_of_only_where_it_is_said() -> None:
    operators = {"MatMul": 2}
    assert not foreseen(operators, {"target": "cpu"}, default="rtn")
    said = foreseen(operators, {"target": "cpu", "accuracy_level": 0}, default="rtn")
    assert "accuracy_level=4" in said[0]


def test_the_scheme_follows_from_calibration_where_none_is_said(tmp_path: Path) -> None:
    choices = {"default": "dynamic", "with_data": "static"}
    operators = {"Conv": 3}
    assert foreseen(operators, {"target": "cpu"}, **choices)
    assert not foreseen(operators, {"target": "cpu", "calibration": tmp_path}, **choices)


def test_targets_that_nobody_knows_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="cpu"):
        foreseen({}, {"target": "cpy"}, default="dynamic")


def test_warnings_name_only_targets_that_there_are() -> None:
    assert {name for each in SLOWDOWNS for name in each.targets} <= TARGETS.keys()


def test_plans_show_what_a_pass_warns_of(tmp_path: Path) -> None:
    model = float_graph([node("Conv", "x w")], {"w": normal(16, 8, 3, 3)}, [1, 8, 4, 4])
    path = save(model, tmp_path / "m.onnx")
    made = recipe.make(model=str(path), to="onnx", precision="int8", target="cpu")
    (warning,) = pipeline.warnings(pipeline.plan(made))
    assert warning["step"] == "onnx-int8"
    assert "convolutions" in warning["warning"]


def test_of_a_model_of_another_format_only_what_is_true_of_all_is_said(tmp_path: Path) -> None:
    converters = graph.discover()
    path = save(float_graph([node("Relu", "x")], {}, [4]), tmp_path / "m.onnx")
    source = graph.detect(path)
    step = converters.step("onnx-int8")
    said = {"onnx-int8": {"target": "cuda"}}
    assert len(foresight.warnings_of(step, source, said, None, converters)) == 1
    said = {"onnx-int8": {"target": "cpu"}}
    assert foresight.warnings_of(step, source, said, None, converters) == ()


def test_the_measurement_can_be_repeated() -> None:
    command = [sys.executable, str(_SCRIPT), "--seconds", "0.05", "--only", "conv,table 1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "dynamic int8" in done.stdout
    assert "4 bits in blocks" in done.stdout
