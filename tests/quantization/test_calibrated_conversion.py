"""From `--calibration` to the report: what results are judged on, and labels on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import convkit
from convkit import recipe, samples
from convkit.errors import SamplesError
from convkit.openings import opening_of
from convkit.report import Report
from tests import calibration_models
from tests.calibration_models import pictures


def _notes(report: Report) -> str:
    return "\n".join((*report.notes, *(note for step in report.steps for note in step.notes)))


def _data(folder: Path) -> Path:
    np.savez(folder / "data.npz", x=pictures(200), labels=np.arange(200) % 5)
    return folder / "data.npz"


def test_results_are_judged_on_samples_that_are_held_out(tmp_path: Path) -> None:
    path, data = calibration_models.saved(tmp_path), _data(tmp_path)
    report = convkit.convert(
        path,
        to="onnx",
        precision="int8",
        scheme="static",
        calibration=data,
        out=tmp_path / "q.onnx",
    )
    rows = [int(shape.split("(")[1].split(",")[0]) for shape in report.samples]
    assert rows == [1, 3, 8, 8, 8, 4]
    assert f"samples of {data} that are held out" in _notes(report)
    assert report.verified


def test_the_users_own_samples_come_first_and_labels_in_them_are_no_input(tmp_path: Path) -> None:
    path, data = calibration_models.saved(tmp_path), _data(tmp_path)
    own = tmp_path / "own.npz"
    np.savez(own, x=pictures(6, seed=3), label=np.arange(6))
    report = convkit.convert(
        path, to="onnx", precision="int8", calibration=data, samples=own, out=tmp_path / "q.onnx"
    )
    assert report.samples[0] == "x (6, 3, 24, 24)"
    assert "held out" not in _notes(report)
    assert convkit.convert(path, to="onnx", precision="fp16", samples=own, out=tmp_path / "h.onnx")


def test_inputs_read_off_samples_are_those_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=pictures(6), labels=np.arange(6))
    assert [spec.name for spec in opening_of(examples=tmp_path / "own.npz").inputs] == ["x"]


def test_random_calibration_is_said_to_be_random(tmp_path: Path) -> None:
    path = calibration_models.saved(tmp_path)
    report = convkit.convert(
        path,
        to="onnx",
        precision="int8",
        scheme="static",
        calibration=samples.RANDOM,
        out=tmp_path / "q.onnx",
    )
    assert "Calibrated on 64 random samples" in _notes(report)
    assert "held out" not in _notes(report)


def test_random_is_no_file_beside_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: m.onnx\nto: onnx\ncalibration: random\n")
    assert recipe.read(tmp_path / "r.yaml").calibration == samples.RANDOM


@pytest.mark.parametrize("verify", [True, False])
def test_data_that_do_not_fit_end_the_run_before_a_result_is_there(
    verify: bool, tmp_path: Path
) -> None:
    path = calibration_models.saved(tmp_path)
    np.savez(tmp_path / "bad.npz", pictures=pictures(4))
    with pytest.raises(SamplesError, match="do not fit the model's inputs"):
        convkit.convert(
            path,
            to="onnx",
            precision="int8",
            calibration=tmp_path / "bad.npz",
            out=tmp_path / "q.onnx",
            verify=verify,
        )
    assert not (tmp_path / "q.onnx").exists()
