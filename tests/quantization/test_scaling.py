"""Graphs made ready for int8 compute what they computed before, as ONNX Runtime sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")

from convkit.onnx_typing import load_typed
from convkit.passes.onnx_half_writing import write_model
from convkit.quantization.channel_classes import channel_classes
from convkit.quantization.equalization import equalize, scale_channels
from convkit.quantization.preparation import prepare
from convkit.quantization.smoothing import smooth, smoothing_scales
from tests import int8_graphs as graphs

SEEN = graphs.samples(16)


def silent(*_: Any, **__: Any) -> None:
    """Hears notes and progress."""


def changed(source: Path, change: Callable[[Any], Any]) -> Path:
    model = load_typed(source)
    prepare(model, source.parent)
    change(model)
    out = source.with_name("changed.onnx")
    write_model(model, out, source.parent, "data")
    return out


def assert_equal_function(source: Path, out: Path, x: Any) -> None:
    before, after = graphs.outputs(source, x), graphs.outputs(out, x)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


def test_equalized_channels_leave_the_function_as_it_was(tmp_path: Path) -> None:
    source = graphs.mobile(tmp_path)
    data = graphs.calibration(tmp_path, SEEN)
    found: list[int] = []

    def change(model: Any) -> None:
        found.append(equalize(model, tmp_path, data, progress=silent, note=silent))

    out = changed(source, change)
    assert found[0] >= 3
    assert_equal_function(source, out, SEEN)
    assert not np.array_equal(graphs.constants(source)["w3"], graphs.constants(out)["w3"])


def test_any_scales_go_through_relu_residuals_and_pools(tmp_path: Path) -> None:
    source = graphs.mobile(tmp_path)
    generator = np.random.default_rng(0)

    def change(model: Any) -> None:
        classes = [each for each in channel_classes(model, tmp_path) if np.isinf(each.ceiling)]
        residual = next(each for each in classes if len(each.makers) == 2)
        assert {value.name for value in residual.values} == {"e", "j", "k"}
        pooled = next(each for each in classes if len(each.values) == 5)
        assert {value.name for value in pooled.values} == {"l", "m", "n", "o", "p"}
        for each in classes:
            channels = int(each.values[0].shape[1])
            scale_channels(model.graph, each, 10 ** generator.uniform(-1, 1, channels), tmp_path)

    assert_equal_function(source, changed(source, change), SEEN)


def test_what_others_read_is_not_scaled(tmp_path: Path) -> None:
    body = """g (float[n,3,24,24] x) => (float[n,4,24,24] y, float[n,4,24,24] a) {
        a = Conv (x, w0)
        b = Conv (a, w1)
        c = Sigmoid (b)
        y = Conv (c, w1)
    }"""
    weights = {"w0": np.ones((4, 3, 1, 1)), "w1": np.ones((4, 4, 1, 1))}
    model = load_typed(graphs.saved(body, tmp_path / "read.onnx", weights))
    assert channel_classes(model, tmp_path) == []


_NORMALIZED = """g (float[n,6,8] x) => (float[n,6,5] y) {{
    a = LayerNormalization (x, scale, shift)
    b = MatMul (a, w0)
    c = MatMul (a, w1)
    d = Add (b, c)
    {rest}
}}"""


@pytest.mark.parametrize(
    ("rest", "has_product"),
    [("y = MatMul (d, w2)", False), ("e = MatMul (d, w2)\n f = MatMul (a, w3)\n g1 = Softmax (a)\n"
      "h = MatMul (g1, w3)\n i = Add (e, f)\n y = Add (i, h)", True)],
    ids=["folded", "multiplied"],
)  # fmt: skip
def test_smoothed_activations_leave_the_function_as_it_was(
    rest: str, has_product: bool, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    scale = np.ones(8)
    scale[2] = 60  # a channel that takes the steps of all others
    weights = {"scale": scale, "shift": generator.standard_normal(8)}
    shapes = {"w0": (8, 8), "w1": (8, 8), "w2": (8, 5), "w3": (8, 5)}
    used = {name: shape for name, shape in shapes.items() if name in _NORMALIZED + rest}
    weights |= {name: generator.standard_normal(shape) for name, shape in used.items()}
    source = graphs.saved(_NORMALIZED.format(rest=rest), tmp_path / "norm.onnx", weights)
    x = graphs.samples(16, (6, 8))
    data = graphs.calibration(tmp_path, x)
    found: list[int] = []

    def change(model: Any) -> None:
        found.append(smooth(model, tmp_path, data, 0.5, progress=silent, note=silent))

    out = changed(source, change)
    assert found[0] >= 1
    assert_equal_function(source, out, x)
    assert ("a_smoothing" in graphs.constants(out)) == has_product
    scales = np.abs(graphs.constants(out)["scale"])
    assert (scales.max() > 50) == has_product


def test_smoothing_scales_are_those_of_the_paper_up_to_a_common_factor() -> None:
    scales = smoothing_scales(np.array([4.0, 1.0, 0.0]), np.array([1.0, 4.0, 1.0]), 0.5)
    assert scales[0] / scales[1] == pytest.approx(4.0)  # sqrt(4 / 1) over sqrt(1 / 4)


_FOLDED = {
    "batch_norm": ("a = Conv (x, w)\n y = BatchNormalization (a, s, b, m, v)", {"Conv": 1}),
    "terms": ("a = Conv (x, w)\n b1 = Add (a, t)\n y = Mul (f, b1)", {"Conv": 1}),
    "mean": (
        "a = Conv (x, w)\n b1 = ReduceMean <axes = [-1,2], keepdims = 0> (a)\n y = Gemm (b1, k)",
        {"Conv": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1},
    ),
    "padding": (
        "p = Concat <axis = 0> (q, q)\n a = Pad (x, p)\n y = Conv <pads = [1,0,0,1]> (a, w)",
        {"Conv": 1},
    ),
}


@pytest.mark.parametrize("name", _FOLDED)
def test_what_is_folded_into_layers_leaves_the_function_as_it_was(
    name: str, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    body, left = _FOLDED[name]
    outputs = "float[n,c] y" if name == "mean" else "float[n,c,h,w] y"
    weights = {"w": (4, 3, 3, 3), "t": (4, 1, 1), "f": (1, 4, 1, 1), "k": (4, 5)}
    weights |= dict.fromkeys("sbmv", (4,))
    arrays = {n: np.abs(generator.standard_normal(shape)) for n, shape in weights.items()}
    pads = "int64[4] q = {0,0,2,1}"
    text = f"g (float[n,3,9,9] x) => ({outputs}) <{pads}> {{ {body} }}"
    source = graphs.saved(text, tmp_path / "folded.onnx", arrays)
    out = changed(source, lambda _: None)
    assert_equal_function(source, out, graphs.samples(4, (3, 9, 9)))
    assert graphs.operators(out) == left
