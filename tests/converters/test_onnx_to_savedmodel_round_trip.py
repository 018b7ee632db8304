"""Graphs born in TensorFlow there and back, and small PyTorch networks, over ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="SavedModels are written with TensorFlow")
pytest.importorskip("tf2onnx", reason="the way there is tf2onnx")
pytest.importorskip("onnxruntime", reason="the reference of the way back")

from convkit import samples
from convkit.artifact import Artifact, Opening
from convkit.converters.onnx_to_savedmodel.build import save as convert
from convkit.converters.savedmodel_to_onnx import savedmodel_to_onnx
from convkit.formats.onnx import onnx as onnx_format
from convkit.formats.savedmodel import savedmodel
from tests import tf_models
from tests.tf_conversion import assert_close
from tests.tf_conversion import convert as to_onnx

pytestmark = pytest.mark.filterwarnings("ignore")

# Two runtimes sum in float32 in another order, twice: these graphs were measured below 2e-6.
_FP32 = 2e-5

_QUICK = ("resize", "cond", "two_heads")
_SIZES = ({"batch": 2, "time": 7}, {"batch": 3, "time": 5})


def back(path: Path, out: Path) -> Artifact:
    """The SavedModel of an ONNX file, as its headers describe it."""
    convert(path, out)
    found = savedmodel.describe(out, Opening())
    return Artifact(out, "savedmodel", found.precision, found.inputs, found.outputs)


def run(artifact: Artifact, feeds: Mapping[str, Any]) -> dict[str, Any]:
    with savedmodel.open(artifact) as runner:  # type: ignore[misc]
        return dict(runner(feeds))


def computed_by_onnx(path: Path, feeds: Mapping[str, Any]) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


_slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in _QUICK else _slow) for n in tf_models.TF_BORN]
)
def test_graphs_born_in_tensorflow_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    path = tf_models.save_tf_born(name, tmp_path)
    conversion = to_onnx(savedmodel, savedmodel_to_onnx, path, tmp_path / "model.onnx")
    source, result = conversion.source, back(conversion.path, tmp_path / "back")
    assert [spec.name for spec in result.inputs] == [spec.name for spec in source.inputs]
    assert [spec.name for spec in result.outputs] == [spec.name for spec in source.outputs]
    with savedmodel.open(source) as runner:  # type: ignore[misc]
        for seed, sizes in enumerate(_SIZES):
            feeds = runner.example({"height": 20, "width": 28} | sizes, seed)
            assert_close(dict(runner(feeds)), run(result, feeds), _FP32)


def _tiny_models() -> list[Any]:
    pytest.importorskip("torch", reason="the small networks are PyTorch's")
    from tests.tiny_models import TINY_MODELS

    return list(TINY_MODELS)


@pytest.mark.slow
@pytest.mark.parametrize("model", _tiny_models(), ids=lambda model: model.name)
def test_small_pytorch_networks_compute_the_same_as_savedmodels(model: Any, tmp_path: Path) -> None:
    from tests.converters.test_onnx_to_torch_round_trip import to_onnx as export

    export(model, model.factory(), tmp_path / "model.onnx")
    described = onnx_format.describe(tmp_path / "model.onnx", Opening())
    result = back(tmp_path / "model.onnx", tmp_path / "saved")
    for seed, sizes in enumerate(_SIZES):
        sizes = {"sequence": 5 + 2 * seed, "height": 16 + seed, "width": 14} | sizes
        drawn = samples.draw(model.inputs, sizes, seed)
        feeds = {spec.name: drawn[spec.name] for spec in described.inputs}
        assert_close(computed_by_onnx(tmp_path / "model.onnx", feeds), run(result, feeds), _FP32)


def test_there_are_no_fewer_small_networks_than_promised() -> None:
    assert len(_tiny_models()) >= 19
    assert len(np.unique(tf_models.TF_BORN)) == 21
