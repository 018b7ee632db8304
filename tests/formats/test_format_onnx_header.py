"""The header reader against the onnx package, and against files that are damaged."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from convkit.artifact import TensorSpec
from convkit.errors import ModelError
from convkit.formats.onnx_header import is_onnx, read_header

onnx = pytest.importorskip("onnx", reason="the reference reader is the onnx package")
helper, TensorProto = onnx.helper, onnx.TensorProto


def _suite_models() -> list[Path]:
    folder = Path(onnx.__path__[0]) / "backend" / "test" / "data"
    return sorted(folder.rglob("*.onnx"))


def _small_model() -> Any:
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["inner"])],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["inner"])],
        "else",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("If", ["flag"], ["chosen"], then_branch=body, else_branch=other),
        helper.make_node("Add", ["chosen", "w"], ["y"], name="add"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", None, "", -1, 0, 3]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def _count(nodes: Any, counts: Counter[tuple[str, str]]) -> None:
    for node in nodes:
        counts["" if node.domain == "ai.onnx" else node.domain, node.op_type] += 1
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _count(graph.node, counts)


def _shape(value: Any) -> list[int | str | None] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in tensor.shape.dim
    ]


def _agrees(spec: TensorSpec, value: Any) -> bool:
    if spec.name != value.name:
        return False
    if not value.type.HasField("tensor_type"):
        return "(" in spec.dtype
    shape = _shape(value)
    if shape is None:
        return spec.shape == ("...",)
    pairs = zip(spec.shape, shape, strict=True)
    return all(
        ours == theirs if theirs is not None else ours == f"{spec.name}_dim{axis}"
        for axis, (ours, theirs) in enumerate(pairs)
    )


@pytest.mark.parametrize("path", _suite_models(), ids=lambda path: path.parent.name)
def test_header_agrees_with_the_onnx_package_on_its_own_suite(path: Path) -> None:
    model = onnx.load(str(path), load_external_data=False)
    header = read_header(path, with_nodes=True)
    own = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in own]
    counts: Counter[tuple[str, str]] = Counter()
    _count(model.graph.node, counts)
    for function in model.functions:
        _count(function.node, counts)
    assert is_onnx(path)
    assert header.ir_version == model.ir_version
    assert header.producer == model.producer_name
    assert header.opsets == {
        "" if entry.domain == "ai.onnx" else entry.domain: entry.version
        for entry in model.opset_import
    }
    assert len(header.inputs) == len(inputs)
    assert all(map(_agrees, header.inputs, inputs))
    assert len(header.outputs) == len(model.graph.output)
    assert all(map(_agrees, header.outputs, model.graph.output))
    assert header.operators == counts
    assert [(node.op_type, node.inputs, node.outputs) for node in header.nodes] == [
        (node.op_type, tuple(node.input), tuple(node.output)) for node in model.graph.node
    ]
    ours = {tensor.name: (tensor.dtype, tensor.dims) for tensor in header.initializers}
    for tensor in model.graph.initializer:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        assert ours[tensor.name] == (dtype if dtype != "object" else "string", tuple(tensor.dims))


def test_dimensions_without_a_size_get_stable_names(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(_small_model(), path)
    header = read_header(path)
    names = [str(spec) for spec in header.inputs]
    assert names == ["x: float32[batch, x_dim1, x_dim2, x_dim3, 0, 3]", "flag: bool[]"]
    assert header.outputs[0].shape == ("...",)


def test_operators_in_branches_are_counted_and_their_reads_belong_to_the_node(
    tmp_path: Path,
) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(_small_model(), path)
    header = read_header(path, with_nodes=True)
    assert header.operators == {("", "If"): 1, ("", "Relu"): 1, ("", "Neg"): 1, ("", "Add"): 1}
    assert set(header.nodes[0].reads) == {"flag", "x"}


def test_sequence_types_are_named(tmp_path: Path) -> None:
    value = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, [2])
    graph = helper.make_graph(
        [helper.make_node("SplitToSequence", ["x"], ["parts"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [value],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert read_header(tmp_path / "m.onnx").outputs[0].dtype == "sequence(float32)"


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_header(tmp_path / "none.onnx")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"")
    assert not is_onnx(path)
    with pytest.raises(ModelError, match="is empty"):
        read_header(path)


def test_truncated_file_is_recognised_and_refused_with_offset_and_size(tmp_path: Path) -> None:
    whole = _small_model().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: len(whole) // 2])
    assert is_onnx(path)
    with pytest.raises(ModelError, match=rf"At byte \d+ of {len(whole) // 2}") as refused:
        read_header(path)
    assert refused.value.details["size_bytes"] == len(whole) // 2


def test_weight_shorter_than_its_dims_is_refused(tmp_path: Path) -> None:
    model = _small_model()
    tensor = model.graph.initializer[0]
    del tensor.float_data[:]
    tensor.raw_data = bytes(8)
    path = tmp_path / "short.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="needs 12 bytes and holds 8"):
        read_header(path)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"PK\x03\x04" + bytes(64),
        b"\x08\x0a",
        b"\x08\x0a\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x08\x0a\x3a\x00",
        b"\xff" * 64,
    ],
    ids=["lfs-pointer", "zip", "version-only", "huge-length", "no-operator", "ones"],
)
def test_what_is_no_model_is_never_more_than_a_model_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    is_onnx(path)
    with pytest.raises(ModelError, match=r"odd\.onnx"):
        read_header(path, with_nodes=True)


def test_graphs_that_nest_without_end_are_refused(tmp_path: Path) -> None:
    def field(number: int, payload: bytes) -> bytes:
        length, size = len(payload), b""
        while length >= 0x80:
            size += bytes((length & 0x7F | 0x80,))
            length >>= 7
        return bytes((number << 3 | 2,)) + size + bytes((length,)) + payload

    graph = field(1, field(4, b"Relu"))
    for _ in range(2000):
        graph = field(1, field(4, b"If") + field(5, field(1, b"b") + field(6, graph)))
    path = tmp_path / "bomb.onnx"
    path.write_bytes(b"\x08\x0a" + field(7, graph))
    with pytest.raises(ModelError, match="nest deeper"):
        read_header(path)


def test_damaged_files_give_a_model_error_and_nothing_else(tmp_path: Path) -> None:
    """Seeded mutations of real structure: cuts, flipped bytes, spliced and random bytes."""
    rng = random.Random(7)
    whole = [_small_model().SerializeToString(), *(p.read_bytes() for p in _suite_models()[-6:])]
    path = tmp_path / "fuzz.onnx"
    refused = 0
    for _ in range(1500):
        data = bytearray(rng.choice(whole)[:20000])
        kind = rng.randrange(4)
        if kind == 0:
            del data[rng.randrange(len(data)) :]
        elif kind == 1:
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 2:
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(16)] = rng.randbytes(rng.randrange(16))
        else:
            data = bytearray(rng.randbytes(rng.randrange(1, 300)))
        path.write_bytes(data)
        is_onnx(path)
        try:
            read_header(path, with_nodes=True)
        except ModelError:
            refused += 1
    assert refused > 500
