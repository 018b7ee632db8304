"""Static int8 against ONNX Runtime: what it computes, and with which kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")
onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")

from convkit.errors import UnsupportedError  # noqa: E402
from convkit.metrics import sqnr_db  # noqa: E402
from convkit.onnx_typing import load_typed  # noqa: E402
from convkit.passes.onnx_half_writing import write_model  # noqa: E402
from convkit.quantization.layers import layers_of  # noqa: E402
from convkit.quantization.static import StaticSettings, quantize_static  # noqa: E402
from convkit.quantization.static_basis import static_basis  # noqa: E402
from convkit.quantization.targets import TARGETS  # noqa: E402
from tests import int8_graphs as graphs  # noqa: E402

SEEN, UNSEEN = graphs.samples(32), graphs.samples(64, seed=1)


def silent(*_: Any, **__: Any) -> None:
    """Hears notes and progress."""


def quantized(
    source: Path,
    target: str = "cpu",
    keep: frozenset[str] = frozenset(),
    seen: Any = SEEN,
    *,
    per_channel: bool | None = None,
    **choices: Any,
) -> Path:
    model = load_typed(source)
    settings = {k: choices.pop(k) for k in ("compensates", "corrects_biases") if k in choices}
    basis = static_basis(
        model,
        source.parent,
        graphs.calibration(source.parent, seen),
        TARGETS[target],
        progress=silent,
        note=silent,
        **{"method": "minmax", **choices},
    )
    chosen = StaticSettings(per_channel, basis.moments, **settings)
    made = (model, source.parent, basis.ranges, TARGETS[target], chosen)
    quantize_static(*made, keep=keep, note=silent)
    out = source.with_name(f"{source.stem}.int8.onnx")
    write_model(model, out, source.parent, "data")
    onnx.checker.check_model(out, full_check=True)
    return out


def noise_db(source: Path, result: Path, x: Any = UNSEEN) -> float:
    return sqnr_db(graphs.outputs(source, x), graphs.outputs(result, x))


def test_every_layer_and_what_lies_between_runs_in_int8_kernels(tmp_path: Path) -> None:
    out = quantized(graphs.mobile(tmp_path))
    found = graphs.kernels(out)
    assert found["QLinearConv"] == 7
    assert found["QGemm"] == found["QLinearAdd"] == found["QLinearGlobalAveragePool"] == 1
    assert not found.keys() & {"Conv", "FusedConv", "Gemm", "Relu", "Clip", "Add", "MatMul"}
    assert found["QuantizeLinear"] == 1  # the image; the scores leave QGemm as floats
    assert found["DequantizeLinear"] == 0


def test_int8_is_near_the_float_model(tmp_path: Path) -> None:
    source = graphs.mobile(tmp_path)
    # onnxruntime's quantize_static (QDQ, per channel, minmax) has 31.8 dB on the same samples.
    assert noise_db(source, quantized(source)) > 36


def test_a_scale_for_each_channel_is_better_than_one_for_all(tmp_path: Path) -> None:
    source = graphs.mobile(tmp_path)
    one = noise_db(source, quantized(source, per_channel=False, equalizes=False))
    each = noise_db(source, quantized(source, per_channel=True, equalizes=False))
    assert each > one + 1


@pytest.mark.parametrize("option", ["compensates", "corrects_biases"])
def test_what_data_say_of_weights_lowers_the_noise(option: str, tmp_path: Path) -> None:
    source = graphs.mobile(tmp_path)
    without = quantized(source, compensates=False, corrects_biases=False, equalizes=False)
    plain = noise_db(source, without)
    chosen = {"compensates": False, "corrects_biases": False, "equalizes": False, option: True}
    assert noise_db(source, quantized(source, **chosen)) > plain


def test_names_of_inputs_and_outputs_stay(tmp_path: Path) -> None:
    model = onnx.load(quantized(graphs.mobile(tmp_path)))
    assert [value.name for value in model.graph.input] == ["x"]
    assert [value.name for value in model.graph.output] == ["y"]


def test_a_convolution_may_be_the_output(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3, 3, 3))}
    body = "g (float[n,3,8,8] x) => (float[n,4,6,6] y) { a = Conv (x, w)\n y = Relu (a) }"
    source = graphs.saved(body, tmp_path / "one.onnx", weights)
    x = graphs.samples(8, (3, 8, 8))
    out = quantized(source, seen=x)
    assert noise_db(source, out, x) > 35
    assert graphs.kernels(out)["QLinearConv"] == 1
    assert [value.name for value in onnx.load(out).graph.output] == ["y"]


def test_kept_nodes_stay_float(tmp_path: Path) -> None:
    out = quantized(graphs.mobile(tmp_path), keep=frozenset(("conv_2", "conv_4")))
    found = graphs.kernels(out)
    assert found["QLinearConv"] == 5
    assert found["Conv"] + found["FusedConv"] == 2


def test_arm_gets_signed_activations(tmp_path: Path) -> None:
    source = graphs.mobile(tmp_path)
    out = quantized(source, "arm")
    zeros = [a for name, a in graphs.constants(out).items() if "zero_point" in name and a.ndim == 0]
    assert {array.dtype for array in zeros} == {np.dtype(np.int8)}
    assert noise_db(source, out) > 36


def test_without_vnni_weights_take_seven_bits(tmp_path: Path) -> None:
    out = quantized(graphs.mobile(tmp_path), "cpu-avx2")
    weights = [a for name, a in graphs.constants(out).items() if a.dtype == np.int8 and a.ndim > 1]
    assert len(weights) == 8
    assert max(np.abs(array.astype(int)).max() for array in weights) == 64


def test_tensorrt_gets_float_weights_symmetric_activations_and_its_activations(
    tmp_path: Path,
) -> None:
    source = graphs.mobile(tmp_path)
    out = quantized(source, "tensorrt")
    found = graphs.constants(out)
    assert all(not array.any() for name, array in found.items() if "zero_point" in name)
    assert {a.dtype for a in found.values() if a.ndim == 4} == {np.dtype(np.float32)}
    assert graphs.operators(out)["Clip"] == 2  # zero is not the smallest number: it cannot clip
    assert noise_db(source, out) > 30  # a bit less than unsigned: behind a ReLU half is unused


def test_biases_far_larger_than_the_weights_beside_them_survive(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((4, 3, 1, 1)) * np.array([1, 1e-9, 0, 1]).reshape(
        -1, 1, 1, 1
    )
    weights = {"w": weight, "b": np.array([0.5, 3.0, -2.0, 0.0])}
    body = "g (float[n,3,8,8] x) => (float[n,4,8,8] y) { y = Conv (x, w, b) }"
    source = graphs.saved(body, tmp_path / "biases.onnx", weights)
    x = graphs.samples(8, (3, 8, 8))
    assert noise_db(source, quantized(source, seen=x), x) > 35


def test_joined_branches_share_a_scale_where_nobody_else_reads_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    body = """g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
        a = Conv (x, w0)
        b = Conv (x, w1)
        c = Concat <axis = 1> (a, b)
        y = Conv (c, w2)
    }"""
    shapes = {"w0": (4, 3, 1, 1), "w1": (4, 3, 1, 1), "w2": (4, 8, 1, 1)}
    weights = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    source = graphs.saved(body, tmp_path / "joined.onnx", weights)
    x = graphs.samples(8, (3, 8, 8))
    out = quantized(source, seen=x)
    found = graphs.constants(out)
    assert found["a_scale"] == found["b_scale"] == found["c_scale"]
    assert noise_db(source, out, x) > 33


def test_a_computed_weight_stays_float_and_is_told(tmp_path: Path) -> None:
    body = """g (float[n,3,8,8] x, float[4,3,1,1] v) => (float[n,4,8,8] y, float[n,4,8,8] z) {
        y = Conv (x, v)
        z = Conv (x, w)
    }"""
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3, 1, 1))}
    model = load_typed(graphs.saved(body, tmp_path / "computed.onnx", weights))
    assert [layer.name for layer in layers_of(model, TARGETS["cpu"])] == ["conv_1"]
    from convkit.quantization.value_range import Range

    told: list[str] = []
    ranges = {name: Range(-1, 1) for name in ("x", "y", "z")}
    quantize_static(model, tmp_path, ranges, TARGETS["cpu"], note=told.append)
    assert told == ["fp32: its weight is computed: conv_0 (Conv)."]


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    source = graphs.saved(
        "g (float[n,4] x) => (float[n,4] y) { y = Relu (x) }", tmp_path / "relu.onnx", {}
    )
    with pytest.raises(UnsupportedError, match="no layer that can be quantized"):
        quantize_static(load_typed(source), tmp_path, {}, TARGETS["cpu"], note=silent)
