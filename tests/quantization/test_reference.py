from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convkit.artifact import TensorSpec
from convkit.errors import StepError
from convkit.quantization import reference as module
from convkit.quantization.calibration_data import CalibrationData
from convkit.quantization.reference import Reference
from tests.onnx_files import FLOAT, helper, make_model, make_value, save

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((6, 5)).astype(np.float32)


def linear(path: Path, weight: np.ndarray, batch: int | str, axis: int = 0) -> Path:
    """Scores of five classes, and the rows themselves; `axis` counts rows of the outputs."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Transpose", ["scores"], ["y"], perm=[axis, 1 - axis]),
    ]
    shape = [batch, 5] if axis == 0 else [5, batch]
    outputs = [make_value("y", FLOAT, shape)]
    return save(
        make_model(nodes, [make_value("x", FLOAT, [batch, 6])], outputs, {"w": weight}), path
    )


@pytest.mark.parametrize("batch", ["batch", 4])
def test_rows_that_fill_up_a_fixed_batch_are_not_judged(tmp_path: Path, batch: int | str) -> None:
    inputs = RANDOM.standard_normal((10, 6)).astype(np.float32)
    right = (inputs @ WEIGHT).argmax(-1)
    labels = np.where(np.arange(10) < 8, right, (right + 1) % 5)  # the last two are named wrong
    np.savez(tmp_path / "c.npz", x=inputs, labels=labels)
    data = CalibrationData(tmp_path / "c.npz", [TensorSpec("x", "float32", (batch, 6))])
    path = linear(tmp_path / "m.onnx", WEIGHT, batch)
    reference = Reference(path, data, None, tmp_path, lambda *_: None)
    worse = linear(tmp_path / "w.onnx", -WEIGHT, batch)
    score = reference.trial(worse).score
    assert reference.metric.name == "accuracy"
    assert score.reference == 0.8
    assert score.value == ((inputs @ -WEIGHT).argmax(-1) == labels).mean()
    assert reference.trial(worse).noise_share == pytest.approx(4.0)  # twice the amplitude


def test_outputs_that_have_their_rows_elsewhere_are_turned(tmp_path: Path) -> None:
    inputs = RANDOM.standard_normal((11, 6)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=inputs, labels=(inputs @ WEIGHT).argmax(-1))
    data = CalibrationData(tmp_path / "c.npz", [TensorSpec("x", "float32", ("batch", 6))])
    path = linear(tmp_path / "m.onnx", WEIGHT, "batch", axis=1)
    reference = Reference(path, data, "accuracy", tmp_path, lambda *_: None)
    assert reference.trial(path).score.value == 1.0


def test_no_more_outputs_are_kept_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_KEPT_BYTES", 7 * 5 * 4)  # seven rows of five floats
    np.savez(tmp_path / "c.npz", x=RANDOM.standard_normal((20, 6)).astype(np.float32))
    data = CalibrationData(tmp_path / "c.npz", [TensorSpec("x", "float32", ("batch", 6))])
    path = linear(tmp_path / "m.onnx", WEIGHT, "batch")
    assert Reference(path, data, None, tmp_path, lambda *_: None).count == 7


def test_a_model_that_does_not_run_is_told_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=RANDOM.standard_normal((20, 6)).astype(np.float32))
    data = CalibrationData(tmp_path / "c.npz", [TensorSpec("x", "float32", ("batch", 6))])
    reference = Reference(
        linear(tmp_path / "m.onnx", WEIGHT, "batch"), data, None, tmp_path, lambda *_: None
    )
    with pytest.raises(StepError, match="does not run"):
        reference.trial(linear(tmp_path / "w.onnx", WEIGHT, 3))
    (tmp_path / "no.onnx").write_bytes(b"\x08")
    with pytest.raises(StepError, match="does not open"):
        reference.trial(tmp_path / "no.onnx")
