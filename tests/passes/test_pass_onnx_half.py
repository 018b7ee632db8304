"""onnx_fp16 and onnx_bf16 against ONNX's checker, ONNX Runtime and the fp32 model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

from onnx import TensorProto, helper, numpy_helper, parser  # noqa: E402

from convkit.artifact import Artifact, Precision  # noqa: E402
from convkit.errors import ModelError, ResourceError, UnsafeError, UnsupportedError  # noqa: E402
from convkit.formats.onnx_true_half import open_true_half  # noqa: E402
from tests.onnx_micro_checks import BF16_LOSS, check, convert, worst_error  # noqa: E402
from tests.onnx_micro_graphs import MicroGraph, micro_graphs  # noqa: E402

_GRAPHS = {graph.name: graph for graph in micro_graphs()}


@pytest.fixture(params=_GRAPHS)
def graph(request: pytest.FixtureRequest) -> MicroGraph:
    return _GRAPHS[request.param]


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "source.onnx"
    onnx.save(model, path)
    return path


def _parsed(body: str, opset: int = 18, **weights: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{body}')
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def _operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_micro_graph_is_valid_and_agrees_with_fp32(
    graph: MicroGraph, precision: str, keep_io: bool, tmp_path: Path
) -> None:
    source, out = _saved(graph.model, tmp_path), tmp_path / "out.onnx"
    convert(source, out, graph.samples, precision, keep_io=keep_io)
    check(out, Precision(precision))
    tolerance = graph.tolerance * (BF16_LOSS if precision == "bf16" else 1)
    assert worst_error(graph, out, Precision(precision)) <= tolerance


def test_inputs_and_outputs_keep_names_order_and_types(graph: MicroGraph, tmp_path: Path) -> None:
    source, out = _saved(graph.model, tmp_path), tmp_path / "out.onnx"
    convert(source, out, graph.samples)
    made = onnx.load(out).graph

    def signature(values: list[onnx.ValueInfoProto]) -> list[tuple[str, int]]:
        return [(value.name, value.type.tensor_type.elem_type) for value in values]

    assert signature(made.input) == signature(graph.model.graph.input)
    assert signature(made.output) == signature(graph.model.graph.output)


def test_fp32_islands_are_found_and_reported_by_name(graph: MicroGraph, tmp_path: Path) -> None:
    source, out = _saved(graph.model, tmp_path), tmp_path / "out.onnx"
    notes = convert(source, out, graph.samples)
    told = " ".join(note for note in notes if note.startswith("fp32:"))
    for operator in graph.islands:
        assert f"({operator})" in told
    assert bool(told) == bool(graph.islands)


def test_no_cast_follows_a_cast_and_none_is_made_twice(graph: MicroGraph, tmp_path: Path) -> None:
    source, out = _saved(graph.model, tmp_path), tmp_path / "out.onnx"
    convert(source, out, graph.samples)
    nodes = onnx.load(out).graph.node
    casts = [node for node in nodes if node.op_type == "Cast"]
    made = {node.output[0] for node in casts}
    targets = [(node.input[0], node.attribute[0].i) for node in casts]
    assert len(targets) == len(set(targets))
    if graph.name not in ("cast_chain", "partly_half", "double_detour"):  # casts of their own
        assert not [node for node in casts if node.input[0] in made]


def test_overflow_is_reported_with_the_size_of_the_value(tmp_path: Path) -> None:
    graph = _GRAPHS["square_mean_root"]
    notes = convert(_saved(graph.model, tmp_path), tmp_path / "out.onnx", graph.samples)
    largest = float(np.square(graph.samples[0]["x"]).max())
    assert any(f"|x| up to {largest:.4g} in 's'" in note for note in notes)


def test_without_samples_overflow_goes_unseen_and_the_report_says_so(tmp_path: Path) -> None:
    graph = _GRAPHS["square_mean_root"]
    out = tmp_path / "out.onnx"
    notes = convert(_saved(graph.model, tmp_path), out, [])
    assert any("No samples" in note for note in notes)
    assert worst_error(graph, out, Precision.FP16) == float("inf")


def test_weight_above_65504_keeps_its_value_without_samples(tmp_path: Path) -> None:
    graph = _GRAPHS["huge_weight"]
    out = tmp_path / "out.onnx"
    notes = convert(_saved(graph.model, tmp_path), out, [])
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    assert stored["w"].dtype == np.float32
    assert stored["w"].max() == 1e5
    assert any("|w| up to 1e+05 in 'w'" in note for note in notes)


def test_mask_stays_in_fp32_where_scores_are_too_large_for_the_proof(tmp_path: Path) -> None:
    graph = _GRAPHS["lowest_mask"]
    samples = [{**graph.samples[0], "q": graph.samples[0]["q"] * 1e4}]
    notes = convert(_saved(graph.model, tmp_path), tmp_path / "out.onnx", samples)
    assert not any("Masking" in note for note in notes)
    assert any("(Softmax)" in note for note in notes)


def test_shared_initializer_stays_exact_for_its_fp32_reader(tmp_path: Path) -> None:
    graph = _GRAPHS["shared_with_forbidden"]
    out = tmp_path / "out.onnx"
    convert(_saved(graph.model, tmp_path), out, graph.samples)
    kinds = {t.name: t.data_type for t in onnx.load(out).graph.initializer}
    assert kinds["boxes"] == TensorProto.FLOAT
    assert kinds["boxes_float16"] == TensorProto.FLOAT16


def test_operators_named_in_keep_fp32_stay(tmp_path: Path) -> None:
    graph = _GRAPHS["loop_body"]
    out = tmp_path / "out.onnx"
    notes = convert(_saved(graph.model, tmp_path), out, graph.samples, keep_fp32="MatMul")
    check(out, Precision.FP16)
    assert any("kept on request" in note for note in notes)
    assert worst_error(graph, out, Precision.FP16) <= graph.tolerance


def test_resize_reads_its_scales_in_fp32_and_its_data_in_fp16(tmp_path: Path) -> None:
    graph = _GRAPHS["resize_scales"]
    out = tmp_path / "out.onnx"
    convert(_saved(graph.model, tmp_path), out, graph.samples)
    kinds = {t.name: t.data_type for t in onnx.load(out).graph.initializer}
    assert (kinds["scales"], kinds["gain"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    assert not any(node.op_type == "Cast" and "scales" in node.input for node in _nodes(out))


def _nodes(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(path).graph.node)


def test_bf16_raises_the_opset_where_only_that_brings_bf16(tmp_path: Path) -> None:
    model = _parsed(
        "g (float[1, 2, 4, 4] x) => (float[1, 3, 2, 2] y) { y = Conv(x, w) }",
        w=np.random.default_rng(0).standard_normal((3, 2, 3, 3)).astype(np.float32),
    )
    out = tmp_path / "out.onnx"
    notes = convert(_saved(model, tmp_path), out, [], "bf16")
    made = onnx.load(out)
    assert made.opset_import[0].version == 22
    assert made.graph.initializer[0].data_type == TensorProto.BFLOAT16
    assert any("Opset 18 became 22" in note for note in notes)


def test_quantized_nodes_keep_unrounded_scales(tmp_path: Path) -> None:
    model = _parsed(
        """g (float[n, 4] x) => (float[n, 4] y) {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            y = MatMul(d, w)
        }""",
        opset=19,
        s=np.array(0.0123456, np.float32),
        z=np.array(0, np.int8),
        w=np.eye(4, dtype=np.float32),
    )
    out = tmp_path / "out.onnx"
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    convert(_saved(model, tmp_path), out, [feeds])
    check(out, Precision.FP16)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    assert stored["s"].dtype == np.float32
    assert stored["w"].dtype == np.float16


def test_block_quantized_products_keep_unrounded_scales(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    scales = generator.uniform(0.01, 0.02, 4).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["r", "b", "s"], ["m"], domain="com.microsoft", K=32, N=4, bits=4,
        block_size=32,
    )  # fmt: skip
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            node,
            helper.make_node("MatMul", ["m", "w"], ["y"]),
        ],
        "g",
        [info("x", 1, ["n", 32])],
        [info("y", 1, ["n", 4])],
        [
            numpy_helper.from_array(generator.integers(0, 256, (4, 1, 16), np.uint8), "b"),
            numpy_helper.from_array(scales, "s"),
            numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    out = tmp_path / "out.onnx"
    feeds = {"x": generator.standard_normal((3, 32)).astype(np.float32)}
    notes = convert(_saved(model, tmp_path), out, [feeds])
    assert any("scales of MatMulNBits are not rounded" in note for note in notes)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    np.testing.assert_array_equal(stored["s"], scales)
    assert stored["w"].dtype == np.float16
    graph = MicroGraph("blocks", model, [feeds], 2e-3, ())
    check(out, Precision.FP16)
    assert worst_error(graph, out, Precision.FP16) <= graph.tolerance


def test_branches_hand_out_one_type_where_one_of_them_gives_a_value_twice(tmp_path: Path) -> None:
    """What overflows in one result keeps fp32, and with it what the other branch gives twice."""
    model = _parsed(
        """g (float[4] x, bool c) => (float[4] y, float[4] z) {
            y, z = If (c) <
                then_branch = t () => (float[4] a, float[4] b) {
                    a = Mul(x, k)
                    b = Add(x, x)
                },
                else_branch = e () => (float[4] d, float[4] d) { d = Neg(x) }
            >
        }""",
        k=np.array(1e5, np.float32),
    )
    out = tmp_path / "out.onnx"
    x = np.arange(4, dtype=np.float32)
    convert(_saved(model, tmp_path), out, [{"x": x, "c": np.array(c)} for c in (True, False)])
    check(out, Precision.FP16)
    with open_true_half(Artifact(out, "onnx", Precision.FP16)) as runner:
        y, z = runner({"x": x, "c": np.array(True)}).values()
    np.testing.assert_allclose(y, x * 1e5)
    np.testing.assert_allclose(z, x * 2)


def test_runtime_operator_without_onnx_schema_becomes_half(tmp_path: Path) -> None:
    node = helper.make_node("FusedMatMul", ["x", "w"], ["h"], domain="com.microsoft", alpha=0.5)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [info("x", 1, ["n", 4])],
        [info("y", 1, ["n", 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    out = tmp_path / "out.onnx"
    notes = convert(_saved(model, tmp_path), out, [{"x": np.ones((2, 4), np.float32)}])
    assert not [note for note in notes if note.startswith("fp32:")]
    assert onnx.load(out).graph.initializer[0].data_type == TensorProto.FLOAT16
    with open_true_half(Artifact(out, "onnx", Precision.FP16)) as runner:
        np.testing.assert_array_equal(runner({"x": np.ones((2, 4), np.float32)})["y"], 0.5)


def test_unknown_operator_and_what_touches_it_keeps_its_types(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("Mystery", ["h"], ["k"], domain="nowhere"),
            helper.make_node("Neg", ["k"], ["y"]),
        ],
        "g",
        [info("x", 1, [4])],
        [info("y", 1, [4])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nowhere", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    out = tmp_path / "out.onnx"
    notes = convert(_saved(model, tmp_path), out, [])
    assert any("(Mystery)" in note for note in notes)
    assert _operators(out) in (
        ["Relu", "Mystery", "Neg"],
        ["Cast", "Relu", "Cast", "Mystery", "Neg"],
    )


@pytest.mark.parametrize("inside", [True, False])
def test_weights_may_lie_inside_or_beside_the_model(
    inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convkit.passes import onnx_half_writing

    weight = np.random.default_rng(0).standard_normal((600, 600)).astype(np.float32)
    model = _parsed("g (float[n, 600] x) => (float[n, 600] y) { y = MatMul(x, w) }", w=weight)
    source, out = tmp_path / "source.onnx", tmp_path / "out.onnx"
    onnx.save(model, source, save_as_external_data=not inside, location="source.weights")
    if not inside:
        monkeypatch.setattr(onnx_half_writing, "_INLINE_LIMIT_BYTES", 1000)
    before = source.read_bytes()
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 600)).astype(np.float32)}
    convert(source, out, [feeds])
    assert source.read_bytes() == before
    assert (tmp_path / "out.onnx.data").exists() is not inside
    check(out, Precision.FP16)
    stored = numpy_helper.to_array(onnx.load(out).graph.initializer[0])
    np.testing.assert_array_equal(stored, weight.astype(np.float16))
    # 600 products of rounded numbers: errors of 2^-11 add up like a random walk.
    graph = MicroGraph("weights", onnx.load(source), (feeds,))
    assert worst_error(graph, out, Precision.FP16) < 4e-3


def test_initializers_listed_as_inputs_are_converted_like_others(tmp_path: Path) -> None:
    model = _parsed("g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { y = MatMul(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    model.ir_version = 3
    out = tmp_path / "out.onnx"
    convert(_saved(model, tmp_path), out, [{"x": np.ones((1, 4), np.float32)}])
    check(out, Precision.FP16)
    made = onnx.load(out).graph
    assert [value.name for value in made.input] == ["x"]
    assert made.initializer[0].data_type == TensorProto.FLOAT16


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 300, b"cut"], ids=["empty", "noise", "cut"])
def test_damaged_file_is_refused_as_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "source.onnx"
    if content == b"cut":
        whole = _saved(_GRAPHS["loop_body"].model, tmp_path).read_bytes()
        content = whole[: len(whole) * 2 // 3]
    path.write_bytes(content)
    with pytest.raises(ModelError):
        convert(path, tmp_path / "out.onnx", [])
    assert not (tmp_path / "out.onnx").exists()


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing\\.onnx"):
        convert(tmp_path / "nothing.onnx", tmp_path / "out.onnx", [])


@pytest.mark.parametrize(
    ("location", "error"), [("../w", UnsafeError), ("/etc/passwd", UnsafeError), ("w", ModelError)]
)
def test_weights_outside_the_folder_or_missing_are_refused(
    location: str, error: type[Exception], tmp_path: Path
) -> None:
    model = _parsed("g (float[n, 600] x) => (float[n, 600] y) { y = MatMul(x, w) }")
    weight = model.graph.initializer.add(name="w", data_type=1, dims=[600, 600], data_location=1)
    for key, value in {"location": location, "offset": "0", "length": "1440000"}.items():
        weight.external_data.add(key=key, value=value)
    path = tmp_path / "source.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(error):
        convert(path, tmp_path / "out.onnx", [])


def test_opset_before_half_precision_is_refused(tmp_path: Path) -> None:
    model = _parsed("g (float[4] x) => (float[4] y) { y = Relu(x) }", opset=6)
    with pytest.raises(UnsupportedError, match="opset 6"):
        convert(_saved(model, tmp_path), tmp_path / "out.onnx", [])


def test_unwritable_destination_is_a_resource_error(tmp_path: Path) -> None:
    source = _saved(_GRAPHS["cast_to_float"].model, tmp_path)
    with pytest.raises(ResourceError):
        convert(source, tmp_path / "no-such-folder" / "out.onnx", [])
