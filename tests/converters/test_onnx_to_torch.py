from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convkit.converters.onnx_to_torch.build import exposing, module_of
from convkit.converters.onnx_to_torch.exporting import exported
from convkit.errors import UnsupportedError
from tests.torch_import import (
    BOOL,
    FLOAT,
    INT64,
    assert_agrees,
    imported,
    node,
    numbers,
    saved,
    torch,
)

nn = torch.nn

pytestmark = pytest.mark.filterwarnings("ignore")


def test_constant_weights_become_layers_named_like_them(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "stem.weight", "stem.bias"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["c", "bn.weight", "bn.bias", "mean", "var"], ["n"]),
        node("GlobalAveragePool", ["n"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "head.weight", "head.bias"], ["g"], transB=1),
        node("MatMul", ["g", "onnx::MatMul_9"], ["m"], name="/proj/MatMul"),
        node("Add", ["m", "proj.bias"], ["y"]),
    ]
    weights = {
        "stem.weight": numbers(4, 3, 3, 3),
        "stem.bias": numbers(4),
        "bn.weight": numbers(4),
        "bn.bias": numbers(4),
        "mean": numbers(4),
        "var": np.abs(numbers(4)),
        "head.weight": numbers(6, 4),
        "head.bias": numbers(6),
        "onnx::MatMul_9": numbers(6, 5),
        "proj.bias": numbers(5),
    }
    path = saved(tmp_path, nodes, {"x": ["batch", 3, 8, 8]}, ["y"], weights)
    module = imported(path, numbers(2, 3, 8, 8))
    assert isinstance(module.stem, nn.Conv2d)
    assert isinstance(module.bn, nn.BatchNorm2d)
    assert isinstance(module.head, nn.Linear)
    assert isinstance(module.proj, nn.Linear)
    assert module.proj.bias is not None
    assert set(dict(module.named_children())) == {"stem", "bn", "head", "proj"}


def test_layers_of_every_kind_agree(tmp_path: Path) -> None:
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("LayerNormalization", ["e", "ln", "lb"], ["l"], epsilon=1e-6),
        node("Transpose", ["l"], ["t"], perm=[0, 2, 1]),
        node("Conv", ["t", "cw"], ["c"], pads=[2, 0], group=2),
        node("PRelu", ["c", "slope"], ["p"]),
        node("InstanceNormalization", ["p", "iw", "ib"], ["i"]),
        node("ConvTranspose", ["i", "tw"], ["y"], strides=[2], output_padding=[1]),
    ]
    weights = {
        "table": numbers(11, 4),
        "ln": numbers(4),
        "lb": numbers(4),
        "cw": numbers(6, 2, 3),
        "slope": numbers(6, 1),
        "iw": numbers(6),
        "ib": numbers(6),
        "tw": numbers(6, 2, 3),
    }
    inputs = {"ids": ["batch", "time"]}
    path = saved(tmp_path, nodes, inputs, ["y"], weights, {"ids": INT64})
    module = imported(path, np.arange(14).reshape(2, 7) % 11)
    kinds = {type(layer).__name__ for layer in module.children()}
    assert kinds == {
        "Embedding",
        "LayerNorm",
        "Conv1d",
        "PReLU",
        "InstanceNorm1d",
        "ConvTranspose1d",
    }


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrent_layers_keep_any_length_when_exported(
    kind: str, direction: str, tmp_path: Path
) -> None:
    gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 1 + (direction == "bidirectional")
    outputs = ["y", "h", "c"] if kind == "LSTM" else ["y", "h"]
    options = {"linear_before_reset": 1} if kind == "GRU" else {}
    given = ["x", "w", "r", "b", "", "h0", *(["c0"] if kind == "LSTM" else [])]
    nodes = [node(kind, given, outputs, hidden_size=5, direction=direction, **options)]
    weights = {
        "w": numbers(ways, gates * 5, 3),
        "r": numbers(ways, gates * 5, 5, seed=1),
        "b": numbers(ways, gates * 10, seed=2),
    }
    states = {name: [ways, "batch", 5] for name in given[5:]}
    path = saved(tmp_path, nodes, {"x": ["time", "batch", 3], **states}, outputs, weights)

    def feeds(time: int, batch: int) -> list[np.ndarray]:  # type: ignore[type-arg]
        return [numbers(time, batch, 3), *(numbers(ways, batch, 5, seed=3) for _ in states)]

    module = imported(path, *feeds(4, 2))
    assert isinstance(next(module.children()), getattr(nn, kind))
    program = exported(module, [torch.from_numpy(feed) for feed in feeds(4, 2)])
    assert_agrees(program.module(), path, feeds(9, 3))


def test_shape_arithmetic_is_written_as_python_and_exports_dynamically(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["b"]),
        node("Gather", ["s", "one"], ["t"]),
        node("Mul", ["b", "t"], ["bt"]),
        node("Unsqueeze", ["bt", "axis"], ["bt1"]),
        node("Concat", ["bt1", "two_three"], ["shape"], axis=0),
        node("Reshape", ["x", "shape"], ["r"]),
        node("Cast", ["t"], ["tf"], to=FLOAT),
        node("Sqrt", ["tf"], ["root"]),
        node("Div", ["r", "root"], ["y"]),
    ]
    weights = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis": np.array([0]),
        "two_three": np.array([2, 3]),
    }
    path = saved(tmp_path, nodes, {"x": ["batch", "time", 6]}, ["y"], weights)
    module = imported(path, numbers(2, 5, 6))
    assert "x.reshape(x.shape[0] * x.shape[1], 2, 3)" in module.program.source
    assert ".item()" not in module.program.source
    program = exported(module, [torch.from_numpy(numbers(2, 5, 6))])
    assert_agrees(program.module(), path, [numbers(7, 3, 6)])


def test_run_time_shapes_are_read_from_inputs_only(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "shape"], ["y"])]
    inputs = {"x": [4, 6], "shape": [2]}
    path = saved(tmp_path, nodes, inputs, ["y"], dtypes={"shape": INT64})
    module = imported(path, numbers(4, 6), np.array([3, 8]))
    feeds = [numbers(4, 6), np.array([3, 8])]
    program = exported(module, [torch.from_numpy(feed) for feed in feeds])
    assert_agrees(program.module(), path, [numbers(4, 6), np.array([12, 2])])


def test_parameters_can_be_trained(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["a"])]
    nodes += [node("Mul", ["a", "scale"], ["y"])]
    weights = {"w": numbers(3, 4), "b": numbers(4), "scale": numbers(4)}
    module = module_of(saved(tmp_path, nodes, {"x": ["n", 3]}, ["y"], weights)).train()
    module(torch.ones(2, 3))[0].sum().backward()
    trained = {name for name, p in module.named_parameters() if p.grad is not None}
    assert trained == {"w.weight", "w.bias", "scale"}


def test_tied_weights_stay_one_parameter(tmp_path: Path) -> None:
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("Transpose", ["table"], ["t"], perm=[1, 0]),
        node("MatMul", ["e", "t"], ["y"]),
    ]
    inputs = {"ids": ["batch", 3]}
    path = saved(tmp_path, nodes, inputs, ["y"], {"table": numbers(7, 4)}, {"ids": INT64})
    module = imported(path, np.array([[0, 3, 6], [1, 1, 2]]))
    assert [name for name, _ in module.named_parameters()] == ["table.weight"]


def test_one_layer_called_twice_is_one_layer(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    path = saved(tmp_path, nodes, {"x": ["n", 3]}, ["y"], {"w": numbers(3, 3)})
    assert len(list(imported(path, numbers(2, 3)).parameters())) == 1


def test_odd_names_become_python_names_and_stay_known(tmp_path: Path) -> None:
    nodes = [node("Relu", ["input.1"], ["/a/b 0"]), node("Neg", ["/a/b 0"], ["class"])]
    path = saved(tmp_path, nodes, {"input.1": ["n", 3]}, ["class"])
    module = imported(path, numbers(2, 3))
    assert module.program.values["a_b_0"] == "/a/b 0"
    assert [port.name for port in module.program.outputs] == ["class"]
    assert [port.variable for port in module.program.inputs] == ["input_1"]


def test_inner_values_can_be_asked_for_by_their_onnx_name(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["/r"]), node("Neg", ["/r"], ["n"]), node("Exp", ["n"], ["y"])]
    path = saved(tmp_path, nodes, {"x": ["batch", 3]}, ["y"])
    data = torch.from_numpy(numbers(2, 3))
    found = exposing(module_of(path).program, ["/r", "n", "unknown"])(data)
    assert set(found) == {"y", "/r", "n"}
    assert torch.equal(found["/r"], data.relu())


def test_nodes_of_the_exported_program_carry_onnx_names(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["/r"]), node("Exp", ["/r"], ["y"])]
    module = module_of(saved(tmp_path, nodes, {"x": ["batch", 3]}, ["y"]))
    program = exported(module, [torch.from_numpy(numbers(2, 3))])
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2")
    carried = {n.meta["custom"]["onnx"] for n in again.graph.nodes if n.meta.get("custom")}
    assert carried == {"/r", "y"}


def test_outputs_may_repeat_inputs_and_be_constants(tmp_path: Path) -> None:
    nodes = [
        node("Identity", ["x"], ["same"]),
        node("Identity", ["c"], ["constant"]),
        node("Shape", ["x"], ["shape"]),
    ]
    outputs = ["same", "constant", "shape"]
    weights = {"c": numbers(3)}
    path = saved(tmp_path, nodes, {"x": ["n", 2]}, outputs, weights, {"shape": INT64})
    imported(path, numbers(5, 2))


def test_large_intermediate_tensors_are_let_go(tmp_path: Path) -> None:
    nodes = [node("Exp", ["x"], ["e"]), node("Relu", ["e"], ["r"]), node("Neg", ["r"], ["y"])]
    module = module_of(saved(tmp_path, nodes, {"x": ["n", 2]}, ["y"]))
    assert "r = torch.relu(e);  del e" in module.program.source


def test_half_precision_weights_stay_half(tmp_path: Path) -> None:
    from onnx import TensorProto

    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Mul", ["m", "factor"], ["y"])]
    weights = {"w": numbers(3, 4).astype(np.float16), "factor": np.float16(0.1)}
    half = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    path = saved(tmp_path, nodes, {"x": ["n", 3]}, ["y"], weights, half)
    # One rounding of half precision, 2**-11, may fall either way.
    module = imported(path, numbers(2, 3).astype(np.float16), limit=2e-3)
    assert module.w.weight.dtype is torch.float16


def test_quantized_weights_stay_integers(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", ["q", "scale", "zero"], ["w"]),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = {
        "q": np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
        "scale": np.float32(0.05),
        "zero": np.int8(1),
    }
    path = saved(tmp_path, nodes, {"x": ["n", 3]}, ["y"], weights)
    module = imported(path, numbers(2, 3))
    assert module.q.dtype is torch.int8
    assert not any(name == "q" for name, _ in module.named_parameters())


def test_weights_quantized_by_hand_stay_integers(tmp_path: Path) -> None:
    quantized = np.random.default_rng(0).integers(-127, 127, (300, 300)).astype(np.int8)
    nodes = [
        node("Cast", ["q"], ["f"], to=FLOAT),
        node("Mul", ["f", "scale"], ["w"]),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = {"q": quantized, "scale": np.float32(1 / 2000)}
    path = saved(tmp_path, nodes, {"x": ["n", 300]}, ["y"], weights)
    module = imported(path, numbers(2, 300))
    assert [t.dtype for t in module.state_dict().values() if t.numel() > 1] == [torch.int8]


def test_text_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto

    nodes = [node("Identity", ["x"], ["y"])]
    text = {"x": TensorProto.STRING, "y": TensorProto.STRING}
    path = saved(tmp_path, nodes, {"x": ["n"]}, ["y"], dtypes=text)
    with pytest.raises(UnsupportedError, match="text"):
        module_of(path)


def test_unknown_operators_are_named_with_their_nodes(tmp_path: Path) -> None:
    import onnx

    from tests.onnx_files import make_model, make_value

    model = make_model(
        [node("Warp", ["x"], ["y"], domain="com.example", name="warp_7")],
        [make_value("x", FLOAT, ["n"])],
        [make_value("y", FLOAT, ["n"])],
        opsets=(("", 20), ("com.example", 1)),
    )
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedError) as caught:
        module_of(tmp_path / "model.onnx")
    assert "com.example.Warp" in str(caught.value)
    assert "warp_7" in str(caught.value)


def test_a_comparison_with_minus_one_needs_no_look_at_sizes(tmp_path: Path) -> None:
    # PyTorch's exporter writes Expand as: where the shape says -1, take 1, else the size.
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Equal", ["s", "minus"], ["is_minus"]),
        node("Where", ["is_minus", "ones", "s"], ["shape"]),
        node("Expand", ["c", "shape"], ["y"]),
    ]
    weights = {"minus": np.array([-1, -1]), "ones": np.array([1, 1]), "c": numbers(1, 1)}
    path = saved(tmp_path, nodes, {"x": ["n", "m"]}, ["y"], weights, {"is_minus": BOOL})
    module = imported(path, numbers(3, 4))
    program = exported(module, [torch.from_numpy(numbers(3, 4))])
    assert_agrees(program.module(), path, [numbers(5, 2)])


def test_sizes_written_as_minus_one_or_a_question_mark_are_dynamic(tmp_path: Path) -> None:
    nodes = [node("Softmax", ["x"], ["y"])]
    path = saved(tmp_path, nodes, {"x": [-1, "?", "?"]}, ["y"])
    module = imported(path, numbers(2, 3, 4))
    assert module.program.inputs[0].shape == ("x_dim0", "x_dim1", "x_dim2")
    program = exported(module, [torch.from_numpy(numbers(2, 3, 4))])
    assert_agrees(program.module(), path, [numbers(5, 1, 7)])
