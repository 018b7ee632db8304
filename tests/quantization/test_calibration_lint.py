"""What is wrong with calibration data is said, and of data that are right nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.artifact import TensorSpec
from convkit.onnx_typing import load_typed
from convkit.quantization.calibration_data import CalibrationData
from convkit.quantization.calibration_lint import lint, moved
from convkit.quantization.value_range import Range
from tests import onnx_files
from tests.calibration_models import PICTURES, pictures, saved
from tests.onnx_files import FLOAT, helper, make_value

GENERATOR = np.random.default_rng(0)
GOOD = pictures(48)
OPEN = TensorSpec("x", "float32", ("batch", "c", "height", "width"))


def _smooth(count: int, channels: int, side: int) -> np.ndarray[Any, Any]:
    """Pictures whose channels differ: (count, channels, side, side)."""
    slope = np.linspace(-1, 1, side)
    weights = GENERATOR.standard_normal((count, channels, 3, 1, 1))
    made: np.ndarray[Any, Any] = (
        weights[:, :, 0] * slope[:, None] + weights[:, :, 1] * slope + 2 * weights[:, :, 2]
    )
    return made.astype(np.float32)


def _said(folder: Path, array: np.ndarray[Any, Any], spec: TensorSpec = PICTURES) -> list[str]:
    np.savez(folder / "a.npz", x=array)
    findings = lint(CalibrationData(folder / "a.npz", [spec]))
    return [f"{finding.severity}: {finding}" for finding in findings]


def test_of_ordinary_pictures_nothing_is_said(tmp_path: Path) -> None:
    assert _said(tmp_path, GOOD) == []
    assert _said(tmp_path, _smooth(40, 3, 40), OPEN) == []


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (GENERATOR.standard_normal(GOOD.shape), "looks drawn from a standard normal distribution"),
        (GENERATOR.random(GOOD.shape) * 4, "looks like noise"),
        (np.concatenate([GOOD, GOOD[3:5]]), "2 of 50 samples are copies of others (48 is 3, 49"),
        (np.concatenate([GOOD, 0 * GOOD[:1]]), "one and the same number throughout in 1 of 49"),
        (GOOD[:7], "7 samples are few"),
        (GENERATOR.integers(0, 256, (40, 3, 6, 6)).repeat(4, 2).repeat(4, 3), "as bytes of"),
    ],
    ids=["normal", "uniform", "copies", "constant", "few", "bytes"],
)
def test_what_is_suspicious_is_a_warning(
    array: np.ndarray[Any, Any], told: str, tmp_path: Path
) -> None:
    warnings = [text for text in _said(tmp_path, array) if text.startswith("warning")]
    assert len(warnings) == 1
    assert told in warnings[0]


def test_channels_in_the_wrong_place_are_seen(tmp_path: Path) -> None:
    picture = _smooth(40, 3, 40)
    last = np.moveaxis(picture, 1, -1)
    assert any("its channels seem to be last" in text for text in _said(tmp_path, last, OPEN))
    reshaped = last.reshape(picture.shape)
    assert any("seem to be interleaved" in text for text in _said(tmp_path, reshaped, OPEN))


def _scaled(folder: Path, nodes: list[Any], weights: dict[str, Any]) -> Path:
    """A model that normalizes its input by these nodes, x -> n."""
    last = helper.make_node("ReduceMean", ["n"], ["y"], name="mean", keepdims=0)
    model = onnx_files.make_model(
        [*nodes, last],
        [make_value("x", FLOAT, ["batch", 3, 24, 24])],
        [make_value("y", FLOAT, [])],
        {name: np.asarray(value, np.float32) for name, value in weights.items()},
    )
    return onnx_files.save(model, folder / "scaled.onnx")


NORM = [helper.make_node("BatchNormalization", ["x", "one", "zero", "mean", "variance"], ["n"])]
NORM_WEIGHTS = {"one": [1] * 3, "zero": [0] * 3, "mean": [120.0] * 3, "variance": [3600.0] * 3}
BYTES = [
    helper.make_node("Div", ["x", "most"], ["share"]),
    helper.make_node("Sub", ["share", "middle"], ["n"]),
]
BYTES_WEIGHTS = {"most": 255.0, "middle": 0.5}


@pytest.mark.parametrize(
    ("nodes", "weights", "array", "told"),
    [
        (BYTES, BYTES_WEIGHTS, GOOD * 20 + 128, ""),
        (BYTES, BYTES_WEIGHTS, GOOD / 20, "are the data scaled already?"),
        (NORM, NORM_WEIGHTS, GOOD * 20 + 128, ""),
        (NORM, NORM_WEIGHTS, GOOD / 20, "far from what it was trained on"),
        (BYTES, BYTES_WEIGHTS | {"most": 1.0}, GOOD * 20 + 128, "do the data miss a step?"),
    ],
)
def test_data_on_another_scale_than_the_model_normalizes_are_seen(
    nodes: list[Any], weights: dict[str, Any], array: Any, told: str, tmp_path: Path
) -> None:
    path = _scaled(tmp_path, nodes, weights)
    np.savez(tmp_path / "a.npz", x=array)
    found = lint(CalibrationData(tmp_path / "a.npz", [PICTURES]), load_typed(path), tmp_path)
    assert [finding.severity for finding in found] == (["warning"] if told else [])
    assert told in "".join(map(str, found))


def test_a_model_that_normalizes_nothing_says_nothing_of_scale(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=GOOD * 20)
    path = saved(tmp_path)
    assert lint(CalibrationData(tmp_path / "a.npz", [PICTURES]), load_typed(path), tmp_path) == []


def test_ranges_that_still_move_are_a_warning() -> None:
    half = {"a": Range(0, 1), "b": Range(-1, 1)}
    (settled,) = moved(half, {"a": Range(0, 1.01), "b": Range(-1, 1)})
    assert settled.severity == "note"
    (restless,) = moved(half, {"a": Range(0, 2), "b": Range(-1, 1.5)})
    assert restless.severity == "warning"
    assert "by 35.0% in the median, that of 'a' by 50%" in str(restless)
