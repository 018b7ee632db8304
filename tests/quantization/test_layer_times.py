from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convkit.quantization.layer_times import latencies_ms, ratio_of, time_shares
from tests.onnx_files import FLOAT, helper, make_model, make_value, save


def products(path: Path, sizes: dict[str, int]) -> Path:
    """Products of one matrix with several, side by side."""
    nodes, weights = [], {}
    for layer, size in sizes.items():
        weights[layer] = np.zeros((1000, size), np.float32)
        nodes.append(helper.make_node("MatMul", ["x", layer], [f"{layer}_y"], layer))
    outputs = [make_value(f"{layer}_y", FLOAT, [64, sizes[layer]]) for layer in sizes]
    inputs = [make_value("x", FLOAT, [64, 1000])]
    return save(make_model(nodes, inputs, outputs, weights), path)


def test_most_of_the_time_is_said_to_be_where_most_of_the_work_is(tmp_path: Path) -> None:
    path = products(tmp_path / "m.onnx", {"large": 2000, "small": 20})
    shares = time_shares(path, {"x": np.zeros((64, 1000), np.float32)})
    assert shares.keys() == {"large", "small"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["large"] > 0.8


def test_models_that_do_twice_the_work_take_longer(tmp_path: Path) -> None:
    paths = {
        "one": products(tmp_path / "one.onnx", {"a": 800}),
        "two": products(tmp_path / "two.onnx", {"a": 800, "b": 800}),
    }
    runs = latencies_ms(paths, {"x": np.zeros((64, 1000), np.float32)})
    assert ratio_of(runs["two"], runs["one"]).low > 1.2


def test_the_interval_of_a_ratio_holds_its_median() -> None:
    dice = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        slow = dice.lognormal(0, 0.3, 25)  # what slows a round down is in both
        found = ratio_of(list(1.1 * slow * dice.lognormal(0, 0.05, 25)), list(slow))
        assert found.low <= found.value <= found.high
        held += found.low <= 1.1 <= found.high
    assert held >= 0.93 * 400
