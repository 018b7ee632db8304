"""Why is it slower? Findings on graphs that are slow for one known reason each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from convkit import graph
from convkit.explaining import Explanation, explain
from convkit.explaining_finding import Finding
from convkit.explaining_findings import find
from convkit.explaining_profile import CPU, Node, Profile, profile

pytest.importorskip("onnxruntime", reason="models are run with ONNX Runtime")
bench_models = pytest.importorskip("bench_models", reason="models are built with the onnx package")

VNNI = ("avx512_vnni",)


def profiled(path: Path, *shape: int, dtype: type = np.float32) -> Profile:
    """Of a model, here, for a moment."""
    return profile(graph.detect(path), {"x": np.ones(shape, dtype)}, 0.2)


def findings(found: Profile, instruction_sets: Sequence[str] = VNNI) -> list[Finding]:
    """On a processor with these instructions."""
    return find(found, instruction_sets, CPU, trial_s=0.05)


def test_pairs_that_only_round_are_found_with_what_they_take(tmp_path: Path) -> None:
    found = profiled(bench_models.elu_chain(tmp_path / "m.onnx", is_quantized=True), 256, 1024)
    [finding] = [one for one in findings(found) if one.kind == "unfused-qdq"]
    assert sorted(finding.nodes) == ["elu0_D", "elu0_Q", "elu1_D", "elu1_Q", "elu2_D", "elu2_Q"]
    conversions = [node.ms for node in found.nodes if node.name in finding.nodes]
    assert finding.gain_ms == pytest.approx(sum(conversions))
    assert finding.share == pytest.approx(sum(conversions) / found.total_ms)
    assert "Elu" in finding.what
    assert "Elu" in finding.remedy


def test_products_without_q_behind_them_stayed_float_and_what_they_lack_is_said(
    tmp_path: Path,
) -> None:
    model = bench_models.matrix_chain(tmp_path / "m.onnx", rounds_products=False)
    found = profiled(model, 1, 1024)
    first, *others = findings(found)
    assert first.kind == "stayed-float"
    assert {"matmul0", "matmul1"} <= set(first.nodes)
    assert first.remedy == "put Q and DQ on their results, before Relu"
    assert not any(set(one.nodes) & set(first.nodes) for one in others), "no time is told twice"


def test_types_that_no_kernel_mixes_are_named(tmp_path: Path) -> None:
    first = findings(profiled(bench_models.mixed_types(tmp_path / "m.onnx"), 1, 512))[0]
    assert first.kind == "stayed-float"
    assert first.remedy.startswith("no kernel mixes uint8 in, int8 out")


def test_padding_between_q_and_dq_is_told_with_the_pad_itself(tmp_path: Path) -> None:
    model = bench_models.padded_convolution(tmp_path / "m.onnx")
    found = findings(profiled(model, 1, 16, 64, 64))
    [padding] = [one for one in found if "Pad" in one.remedy]
    assert {"pad", "padded_Q"} <= set(padding.nodes)
    assert padding.remedy.startswith("fold Pad into the convolution")


def test_a_chain_that_fused_whole_has_no_layers_in_float(tmp_path: Path) -> None:
    model = bench_models.matrix_chain(tmp_path / "m.onnx", rounds_products=True)
    found = profiled(model, 1, 1024)
    assert {"QLinearMatMul"} == {n.op_type for n in found.nodes if "MatMul" in n.op_type}
    assert "stayed-float" not in {one.kind for one in findings(found)}
    activation = [one for one in findings(found) if one.kind == "unfused-qdq"]
    assert all("falls away" in one.remedy for one in activation), "Relu could be in the rounding"


def test_blocks_that_compute_in_float_are_found(tmp_path: Path) -> None:
    found = profiled(bench_models.block_chain(tmp_path / "m.onnx", None), 1, 1024)
    [finding] = [one for one in findings(found) if one.kind == "accuracy-level"]
    assert finding.nodes == ("blocks0", "blocks1")
    assert finding.gain_ms is not None
    assert 0 < finding.gain_ms < finding.ms
    fine = profiled(bench_models.block_chain(tmp_path / "fine.onnx", 4), 1, 1024)
    assert "accuracy-level" not in {one.kind for one in findings(fine)}


def test_casts_of_half_precision_are_found(tmp_path: Path) -> None:
    found = profiled(bench_models.half_precision(tmp_path / "m.onnx"), 8, 256, dtype=np.float16)
    [finding] = [one for one in findings(found) if one.kind == "half-casts"]
    assert finding.gain_ms == pytest.approx(finding.ms)
    assert len(finding.nodes) >= 2


def test_small_matrices_are_told_not_to_pay(tmp_path: Path) -> None:
    model = bench_models.matrix_chain(tmp_path / "m.onnx", rounds_products=True, size=32, count=6)
    kinds = {one.kind: one for one in findings(profiled(model, 1, 32))}
    assert "too small" in kinds["does-not-pay"].what
    assert "[1, 32] x [32, 32]" in kinds["does-not-pay"].what


def test_integers_without_dot_products_are_told(tmp_path: Path) -> None:
    model = bench_models.matrix_chain(tmp_path / "m.onnx", rounds_products=True)
    found = profiled(model, 1, 1024)
    missing = [one for one in findings(found, ["avx2"]) if one.kind == "missing-instructions"]
    assert [one.gain_ms for one in missing] == [None], "only other hardware tells"
    assert missing[0].share > 0.3
    assert "missing-instructions" not in {one.kind for one in findings(found)}


def test_nodes_of_another_provider_are_told_with_the_copies_for_them() -> None:
    gpu = "CUDAExecutionProvider"
    nodes = (
        Node("a", "Conv", "", gpu, 1.0, 1, ("x",), ("a",)),
        Node("to", "MemcpyToHost", "", gpu, 0.3, 1, ("a",), ("b",)),
        Node("odd", "Unique", "", CPU, 0.5, 1, ("b",), ("c",)),
        Node("back", "MemcpyFromHost", "", gpu, 0.2, 1, ("c",), ("d",)),
    )
    found = find(Profile(nodes, 10, {}, frozenset({"d"})), VNNI, gpu)
    assert [one.kind for one in found] == ["fallback-provider"]
    assert found[0].nodes == ("to", "odd", "back")
    assert found[0].gain_ms == pytest.approx(0.5)
    assert "Unique" in found[0].what


def test_findings_come_with_the_largest_gain_first(tmp_path: Path) -> None:
    model = bench_models.matrix_chain(tmp_path / "m.onnx", rounds_products=False)
    found = find(profiled(model, 1, 1024), ("avx2",), CPU)
    gains = [one.gain_ms or 0.0 for one in found]
    assert gains == sorted(gains, reverse=True)
    assert len(found) >= 2


def test_bodies_do_not_count_twice(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    text = """<ir_version: 9, opset_import: ["": 17]>
    g (float[256, 1024] x) => (float[256, 1024] y) <bool c = {1}> {
        d = If (c) <
            then_branch = t () => (float[256, 1024] e) { e = Elu (x) },
            else_branch = f () => (float[256, 1024] r) { r = Relu (x) }
        >
        y = Elu (d)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.ClearField("initializer")
    flag = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    model.graph.input.append(flag)
    onnx.save(model, tmp_path / "m.onnx")
    feeds = {"x": np.ones((256, 1024), np.float32), "c": np.array(True)}
    found = profile(graph.detect(tmp_path / "m.onnx"), feeds, 0.2)
    times = {node.op_type: node.ms for node in found.nodes}
    inner = [node.ms for node in found.nodes if node.op_type == "Elu"]
    assert len(inner) == 2, "the body's node is there, though the file gives it no name"
    assert times["If"] < min(inner) / 2, "the branch's time is the branch's"


def test_layers_are_matched_with_those_of_the_float_model(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization", reason="no quantizer here")
    plain = bench_models.convolutions(tmp_path / "plain.onnx")
    quantization.quantize_dynamic(
        plain, tmp_path / "dynamic.onnx", weight_type=quantization.QuantType.QUInt8
    )
    artifacts = [graph.detect(tmp_path / "dynamic.onnx"), graph.detect(plain)]
    dynamic, reference = explain(artifacts, {"x": np.ones((1, 3, 32, 32), np.float32)}, time_s=0.2)
    assert dynamic.reference == plain
    assert reference.reference is None
    names = {layer.name: layer for layer in dynamic.layers}
    assert names.keys() == {"first", "second", "everything else"}
    assert names["second"].operator == "ConvInteger"
    # Both columns add up to what the models take.
    assert sum(layer.ms for layer in dynamic.layers) == pytest.approx(dynamic.total_ms)
    before = sum(layer.reference_ms for layer in dynamic.layers)
    assert before == pytest.approx(reference.total_ms)


def test_statically_quantized_layers_are_matched_too(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization", reason="no quantizer here")
    plain = bench_models.convolutions(tmp_path / "plain.onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = [{"x": np.random.default_rng(0).random((1, 3, 32, 32), np.float32)}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self._left.pop() if self._left else None

    quantization.quantize_static(plain, tmp_path / "static.onnx", Reader(), per_channel=True)
    artifacts = [graph.detect(plain), graph.detect(tmp_path / "static.onnx")]
    static = explain(artifacts, {"x": np.ones((1, 3, 32, 32), np.float32)}, time_s=0.2)[1]
    operators = {layer.name: layer.operator for layer in static.layers}
    assert operators == {"first": "QLinearConv", "second": "QLinearConv", "everything else": ""}


def test_shares_add_up_in_the_json_of_an_explanation(tmp_path: Path) -> None:
    model = bench_models.elu_chain(tmp_path / "m.onnx", is_quantized=True)
    found = profiled(model, 64, 1024)
    explanation = Explanation(model, found, tuple(findings(found))).to_json()
    assert explanation["path"] == str(model)
    assert sum(row["share"] for row in explanation["operators"]) == pytest.approx(1, abs=1e-3)
    rounding = 1e-6 * len(explanation["nodes"])  # of each, as it is written
    assert sum(row["ms"] for row in explanation["nodes"]) == pytest.approx(
        found.total_ms, abs=rounding
    )
    assert {row["provider"] for row in explanation["operators"]} == {CPU}
    assert {finding["kind"] for finding in explanation["findings"]} == {"unfused-qdq"}
