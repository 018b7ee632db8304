"""The table of systems is sound, and twins in two frameworks stay twins after conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the table names PyTorch networks")

import convkit
from tests.systems import TARGETS, systems


def test_systems_have_names_of_their_own_and_columns_that_exist() -> None:
    table = list(systems())
    assert len({system.name for system in table}) == len(table)
    assert all(set(system.targets) <= set(TARGETS) for system in table)


def test_no_system_is_converted_to_the_format_it_comes_in() -> None:
    assert not [system.name for system in systems() if system.kind in system.targets]


@pytest.mark.slow  # two frameworks, two exporters
@pytest.mark.parametrize("part", ["pnet", "rnet", "onet"])
def test_the_face_detector_of_both_frameworks_is_one_network_in_onnx(
    part: str, tmp_path: Path
) -> None:
    """MTCNN was published in PyTorch and in Keras with the same weights, channels apart."""
    pytest.importorskip("tf2onnx", reason="converts the Keras twin")
    from tests import material
    from tests.systems import mtcnn_savedmodel

    size = {"pnet": 40, "rnet": 24, "onet": 48}[part]
    sizes = "height,width" if part == "pnet" else f"{size},{size}"
    network = material.MATERIAL[f"mtcnn_{part}"]
    made = {}
    for name, arguments in (
        ("torch", {"model": network.opening.factory, "weights": network.path(),
                   "inputs": (f"x=float32[batch,3,{sizes}]",)}),
        ("keras", {"model": mtcnn_savedmodel(part, tmp_path)}),
    ):  # fmt: skip
        made[name] = tmp_path / f"{name}.onnx"
        assert convkit.convert(to="onnx", out=made[name], **arguments).passed
    image = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    with convkit.load(made["keras"]) as twin:
        expected = sorted(twin({"x": image}).values(), key=lambda array: array.shape)
    with convkit.load(made["torch"]) as network_runner:
        got = network_runner({"x": np.ascontiguousarray(image.transpose(0, 3, 1, 2))}).values()
    last = [array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for array in got]
    for one, other in zip(sorted(last, key=lambda array: array.shape), expected, strict=True):
        # Convolutions of two frameworks and two exporters, in float32.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
