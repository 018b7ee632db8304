"""Reading ONNX for importers: whatever the opset, the same numbers out of newest operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from convkit.converters.onnx_reading.calls import call_of, library, parameters_of  # noqa: E402
from convkit.converters.onnx_reading.modern import NEWEST  # noqa: E402
from convkit.converters.onnx_reading.reading import CORE, read_graph  # noqa: E402
from convkit.errors import ModelError, UnsafeError, UnsupportedError  # noqa: E402

_SCHEMAS = onnx.defs.get_all_schemas()
ALL = {(schema.domain, schema.name) for schema in _SCHEMAS}
_COMPOSED = {
    (schema.domain, schema.name)
    for schema in _SCHEMAS
    if schema.has_function or schema.has_context_dependent_function
}
PRIMITIVE = (ALL - _COMPOSED) | {("", "Range"), ("", "CastLike"), ("", "Clip")}


def written(folder: Path, text: str, opset: int, domains: str = "", ir_version: int = 8) -> Path:
    header = f'<ir_version: {ir_version}, opset_import: ["": {opset}{domains}]>'
    onnx.save(onnx.parser.parse_model(f"{header}\n{text}"), folder / "m.onnx")
    return folder / "m.onnx"


def outputs_of(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(proto).run(None, feeds)  # type: ignore[return-value]


def read(path: Path, known: set[tuple[str, str]] = ALL) -> onnx.ModelProto:
    import onnx_ir as ir

    model = read_graph(path, known)
    ir.external_data.load_to_model(model)
    return ir.to_proto(model)


# Each was written for an opset in which its operator meant something else.
OLD = {
    "softmax over all axes from the first": (
        9, "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax(x) }", (2, 3, 4)),
    "softmax over the last axis": (
        11, "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis: int = 2>(x) }", (2, 3, 4)),
    "limits as attributes": (
        9, "g (float[2,3] x) => (float[2,3] y) { y = Clip<min=-0.5, max=0.25>(x) }", (2, 3)),
    "pads as an attribute": (
        9, "g (float[2,3] x) => (float[N,M] y) { y = Pad<pads=[0,1,1,0], value=2.0>(x) }", (2, 3)),
    "starts and ends as attributes": (
        9, "g (float[4,6] x) => (float[N,M] y) { y = Slice<axes=[1], starts=[1], ends=[-1]>(x) }",
        (4, 6)),
    "axes of a reduction as an attribute": (
        12, "g (float[4,6] x) => (float[N,M] y) { y = ReduceMean<axes=[1]>(x) }", (4, 6)),
    "parts as an attribute": (
        11, "g (float[4,6] x) => (float[N,M] y, float[N,K] z)"
        " { y, z = Split<axis=1, split=[2,4]>(x) }", (4, 6)),
    "k as an attribute": (
        9, "g (float[4,6] x) => (float[N,M] y, int64[N,M] z) { y, z = TopK<k=2>(x) }", (4, 6)),
    "upsampling by an attribute": (
        8, "g (float[1,2,3,3] x) => (float[N,C,H,W] y)"
        " { y = Upsample<mode=\"nearest\", scales=[1.0,1.0,2.0,3.0]>(x) }", (1, 2, 3, 3)),
    "the mode of grid sampling under its old name": (
        16, "g (float[1,1,3,3] x) => (float[N,C,H,W] y) { g = Constant<value_floats=[0.1,0.2,-0.3,"
        "0.4,0.0,0.0,-0.7,0.9]>() s = Constant<value_ints=[1,2,2,2]>() h = Reshape(g, s)"
        " y = GridSample<mode=\"bilinear\">(x, h) }", (1, 1, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", OLD)
def test_an_operator_of_an_older_opset_keeps_its_meaning(case: str, tmp_path: Path) -> None:
    opset, text, shape = OLD[case]
    path = written(tmp_path, text, opset)
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    proto = read(path)
    assert proto.opset_import[0].version == NEWEST
    import onnxruntime

    runtime = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for found, wanted in zip(outputs_of(proto, feeds), runtime.run(None, feeds), strict=True):
        # The same float32 operations, perhaps summed in another order: a few roundings apart.
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_scale_per_group_becomes_one_per_channel(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "g (float[2,4,3] x, float[2] s, float[2] b) => (float[2,4,3] y)"
        " { y = GroupNormalization<num_groups=2>(x, s, b) }",
        18,
    )
    generator = np.random.default_rng(0)
    feeds = {"x": generator.standard_normal((2, 4, 3)).astype(np.float32)}
    feeds |= {name: generator.standard_normal(2).astype(np.float32) for name in "sb"}
    groups = feeds["x"].reshape(2, 2, 6)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    # By the formula of opset 18, in which each group has one scale and one bias.
    wanted = (normal * feeds["s"][:, None] + feeds["b"][:, None]).reshape(2, 4, 3)
    np.testing.assert_allclose(outputs_of(read(path), feeds)[0], wanted, rtol=1e-4, atol=1e-5)


def suite() -> list[onnx.backend.test.case.test_case.TestCase]:
    from onnx.backend.test.loader import load_model_tests

    return [case for case in load_model_tests(kind="node") if case.name != "test_scan_sum"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "known",
    [
        pytest.param(ALL, id="as they are"),
        pytest.param(PRIMITIVE, id="taken apart", marks=pytest.mark.slow),
    ],
)
def test_every_model_of_the_official_suite_reads_and_computes_the_same(
    known: set[tuple[str, str]], tmp_path: Path
) -> None:
    from onnx.backend.test.runner import Runner

    count, wrong = 0, []
    for case in suite()[::7]:
        onnx.save(case.model, tmp_path / "m.onnx")
        proto = read(tmp_path / "m.onnx", known)
        try:
            agrees(case, case.model, Runner)
        except Exception:  # the evaluator itself cannot run this one
            continue
        count += 1
        try:
            agrees(case, proto, Runner)
        except Exception as error:
            if "DFT_20" not in str(error):  # the evaluator's DFT takes no absent length
                wrong.append((case.name, str(error)[:200]))
    assert not wrong
    assert count > 200


def agrees(case: onnx.backend.test.case.test_case.TestCase, proto: onnx.ModelProto, judge) -> None:
    evaluator = ReferenceEvaluator(proto)
    for inputs, wanted in case.data_sets:
        found = evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=False)))
        judge.assert_similar_outputs(wanted, found, rtol=case.rtol, atol=case.atol, model_dir=None)


def test_inputs_and_outputs_keep_their_names_when_operators_are_taken_apart(tmp_path: Path) -> None:
    path = written(tmp_path, "g (float[2,3] in) => (float[2,3] out) { out = Gelu(in) }", 20)
    proto = read(path, PRIMITIVE)
    assert [value.name for value in proto.graph.input] == ["in"]
    assert [value.name for value in proto.graph.output] == ["out"]
    assert "Gelu" not in {node.op_type for node in proto.graph.node}


def test_an_operator_of_an_unknown_domain_is_refused_with_its_nodes(tmp_path: Path) -> None:
    path = written(
        tmp_path, "g (float[2] x) => (float[2] y) { y = acme.Frobnicate(x) }", 18, ', "acme": 1'
    )
    with pytest.raises(UnsupportedError, match=r"acme\.Frobnicate") as caught:
        read_graph(path, ALL)
    assert "y" in str(caught.value)


def test_a_batched_scan_is_refused_by_name(tmp_path: Path) -> None:
    from onnx.backend.test.loader import load_model_tests

    case = next(case for case in load_model_tests(kind="node") if case.name == "test_scan_sum")
    onnx.save(case.model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="batch dimension"):
        read_graph(tmp_path / "m.onnx", ALL)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }", 18)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ModelError):
        read_graph(path, ALL)


def test_a_weight_outside_the_folder_is_refused(tmp_path: Path) -> None:
    path = written(
        tmp_path, "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }", 18
    )
    proto = onnx.load(path)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UnsafeError):
        read_graph(path, ALL)


def test_large_weights_stay_on_disk(tmp_path: Path) -> None:
    import onnx_ir as ir

    path = written(tmp_path, "g (float[2,64] x) => (float[2,64] y) { y = MatMul(x, w) }", 18)
    proto = onnx.load(path)
    weight = np.ones((64, 64), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, path)
    model = read_graph(path, ALL)
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)


TEXT = {"pool_strings"}
"""Attributes that hold text, which neither framework computes on."""

Ints = list[int]


def split(data: object, parts: Ints | None = None, *, axis: int = 0, output_count: int) -> object:
    return data, parts, axis, output_count


def test_a_call_says_which_inputs_may_be_python_values(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "g (float[4] x) => (float[N] y, float[M] z)"
        " { p = Constant<value_ints=[1,3]>() y, z = Split<axis=0>(x, p) }",
        18,
    )
    node = next(iter(read_graph(path, ALL).graph))
    call = call_of(node, split)
    assert (call.host, call.keywords, call.output_count, call.counts) == ({1}, {"axis": 0}, 2, True)


def test_an_attribute_that_the_function_does_not_take_is_refused(tmp_path: Path) -> None:
    def relu(data: object) -> object:
        return data

    path = written(tmp_path, "g (float[4] x) => (float[4] y) { y = Elu<alpha=0.5>(x) }", 18)
    with pytest.raises(UnsupportedError, match="alpha"):
        call_of(next(iter(read_graph(path, ALL).graph)), relu)


@pytest.mark.parametrize("name", ["onnx_to_torch", "onnx_to_savedmodel"])
def test_every_function_of_an_importer_takes_what_the_newest_schema_offers(name: str) -> None:
    import importlib

    needs = {"onnx_to_torch": "torch", "onnx_to_savedmodel": "tensorflow"}[name]
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    functions = library(importlib.import_module(f"convkit.converters.{name}.operators"))
    assert functions.keys().isdisjoint(CORE)
    for (domain, operator), function in functions.items():
        if domain != "":
            continue
        try:
            schema = onnx.defs.get_schema(operator, NEWEST)
        except onnx.defs.SchemaError:
            continue  # an operator that ONNX Runtime added to ONNX's own domain
        takes = parameters_of(function)
        missing = set(schema.attributes) - takes.attributes - TEXT
        assert not missing, f"{operator} lacks {missing}"
        if takes.positional is not None:
            assert takes.positional >= len(schema.inputs), operator
