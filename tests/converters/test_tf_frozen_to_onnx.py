from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from convkit.artifact import Opening
from convkit.converters.tf_frozen_to_onnx import tf_frozen_to_onnx
from convkit.errors import UnknownNameError
from convkit.formats.tf_frozen import tf_frozen
from tests import tf1_models
from tests.tf_conversion import convert

pytestmark = pytest.mark.filterwarnings("ignore")

_X = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)

# Two products and a tanh in float32.
_TOLERANCE = 1e-6


@pytest.mark.parametrize("make", [tf1_models.tf1_frozen, tf1_models.tf1_checkpoint])
def test_a_graph_of_tensorflow_1_agrees_with_what_it_computes_by_hand(
    make: object, tmp_path: Path
) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    opening = Opening(input_names=("x",), output_names=("prediction",))
    conversion = convert(tf_frozen, tf_frozen_to_onnx, path, tmp_path / "model.onnx", opening)
    assert conversion.shapes() == {"x": ["batch", 2], "prediction": ["batch", 1]}
    got = conversion.run({"x": _X})["prediction"]
    assert float(np.abs(got - tf1_models.tf1_reference(_X)).max()) < _TOLERANCE


def test_ends_that_nobody_names_are_found(tmp_path: Path) -> None:
    path = tf1_models.tf1_frozen(tmp_path)
    conversion = convert(tf_frozen, tf_frozen_to_onnx, path, tmp_path / "model.onnx")
    assert list(conversion.shapes()) == ["x", "prediction"]
    got = conversion.run({"x": _X})["prediction"]
    assert float(np.abs(got - tf1_models.tf1_reference(_X)).max()) < _TOLERANCE


def test_a_part_of_the_graph_can_be_named(tmp_path: Path) -> None:
    path = tf1_models.tf1_frozen(tmp_path)
    opening = Opening(input_names=("MatMul",), output_names=("add",))
    conversion = convert(tf_frozen, tf_frozen_to_onnx, path, tmp_path / "model.onnx", opening)
    assert list(conversion.shapes()) == ["MatMul", "add"]
    product = _X[:, :1].copy()
    expected = np.arctanh(tf1_models.tf1_reference(np.zeros((1, 2), np.float32))) + product
    # arctanh takes tanh back: a few units in the last place.
    assert float(np.abs(conversion.run({"MatMul": product})["add"] - expected).max()) < 1e-5


def test_an_output_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = tf1_models.tf1_frozen(tmp_path)
    opening = Opening(output_names=("predictoin",))
    with pytest.raises(UnknownNameError, match="predictoin") as caught:
        convert(tf_frozen, tf_frozen_to_onnx, path, tmp_path / "model.onnx", opening)
    assert "prediction" in str(caught.value)
