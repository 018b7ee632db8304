"""Small ONNX graphs whose numbers half precision converters trip over."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper, parser

from tests.onnx_micro_graph import MicroGraph, micro_graph, normal, parsed


@micro_graph
def square_mean_root() -> MicroGraph:
    """|x| near 400: the square overflows fp16, which ONNX Runtime on x86 never shows."""
    model = parsed(
        """g (float[n, 16] x) => (float[n, 1] y) {
            s = Mul(x, x)
            m = ReduceMean<keepdims = 1>(s, axes)
            y = Sqrt(m)
        }""",
        {"axes": np.array([1])},
    )
    islands = frozenset({"Mul", "ReduceMean", "Sqrt"})
    return MicroGraph(
        "square_mean_root", model, ({"x": normal(2, 16, scale=400)},), islands=islands
    )


@micro_graph
def huge_weight() -> MicroGraph:
    """A weight of 1e5 must be neither clamped nor inf."""
    weight = normal(4, 3)
    weight[1, 1] = 1e5
    model = parsed(
        """g (float[n, 4] x) => (float[n, 3] y) {
            h = MatMul(x, w)
            y = Mul(h, small)
        }""",
        {"w": weight, "small": np.array([1e-3], np.float32)},
    )
    return MicroGraph("huge_weight", model, ({"x": normal(2, 4)},), islands=frozenset({"MatMul"}))


@micro_graph
def billion_mask() -> MicroGraph:
    """(1 - mask) * -1e9 added to attention scores."""
    model = parsed(
        """g (float[b, 4, 4] q, int64[b, 1, 4] mask) => (float[b, 4, 4] y) {
            s = MatMul(q, w)
            f = Cast<to = 1>(mask)
            inverse = Sub(one, f)
            bias = Mul(inverse, minus)
            masked = Add(s, bias)
            p = Softmax<axis = -1>(masked)
            y = MatMul(p, w)
        }""",
        {
            "w": normal(4, 4),
            "one": np.array(1, np.float32),
            "minus": np.array(-1e9, np.float32),
        },
    )
    mask = np.array([[[1, 1, 1, 0]], [[1, 0, 0, 0]]])
    return MicroGraph("billion_mask", model, ({"q": normal(2, 4, 4), "mask": mask},))


@micro_graph
def lowest_mask() -> MicroGraph:
    """Where(mask, 0, float32's lowest) added to scores, as Hugging Face exports it."""
    model = parsed(
        """g (float[b, 4, 4] q, bool[b, 1, 4] mask) => (float[b, 4, 4] y) {
            s = MatMul(q, w)
            bias = Where(mask, zero, lowest)
            masked = Add(s, bias)
            p = Softmax<axis = -1>(masked)
            y = MatMul(p, w)
        }""",
        {
            "w": normal(4, 4),
            "zero": np.array(0, np.float32),
            "lowest": np.array(np.finfo(np.float32).min),
        },
    )
    mask = np.array([[[1, 1, 1, 0]], [[1, 0, 0, 0]]], bool)
    return MicroGraph("lowest_mask", model, ({"q": normal(2, 4, 4), "mask": mask},))


@micro_graph
def mask_handed_out() -> MicroGraph:
    """-1e9 that reaches an output besides the softmax: it cannot become anything else."""
    model = parsed(
        """g (float[b, 4, 4] q, bool[b, 1, 4] mask) => (float[b, 4, 4] y, float[b, 4, 4] masked) {
            s = MatMul(q, w)
            masked = Where(mask, s, minus)
            y = Softmax<axis = -1>(masked)
        }""",
        {"w": normal(4, 4), "minus": np.array(-1e9, np.float32)},
    )
    mask = np.array([[[1, 1, 1, 0]], [[1, 0, 0, 0]]], bool)
    feeds = {"q": normal(2, 4, 4), "mask": mask}
    return MicroGraph("mask_handed_out", model, (feeds,), islands=frozenset({"Where", "Softmax"}))


@micro_graph
def constant_of_shape_and_range() -> MicroGraph:
    """Types inside attributes, and Range, which knows no half at this opset."""
    model = parsed(
        """g (float[n, 6] x) => (float[n, 6] y) {
            shape = Shape(x)
            fill = ConstantOfShape<value = float[1] {0.25}>(shape)
            steps = Range(zero, six, one)
            a = Add(x, fill)
            y = Mul(a, steps)
        }""",
        {
            "zero": np.array(0, np.float32),
            "six": np.array(6, np.float32),
            "one": np.array(1, np.float32),
        },
    )
    return MicroGraph(
        "constant_of_shape_and_range", model, ({"x": normal(2, 6)},), islands=frozenset({"Range"})
    )


@micro_graph
def layer_norm_large() -> MicroGraph:
    """A decomposed LayerNorm on a residual stream in the thousands."""
    model = parsed(
        """g (float[n, 8] x) => (float[n, 8] y) {
            mean = ReduceMean<keepdims = 1>(x, axes)
            d = Sub(x, mean)
            sq = Pow(d, two)
            var = ReduceMean<keepdims = 1>(sq, axes)
            ve = Add(var, eps)
            sd = Sqrt(ve)
            n_ = Div(d, sd)
            g_ = Mul(n_, gain)
            y = Add(g_, shift)
        }""",
        {
            "axes": np.array([-1]),
            "two": np.array(2, np.float32),
            "eps": np.array(1e-5, np.float32),
            "gain": normal(8),
            "shift": normal(8, seed=1),
        },
    )
    return MicroGraph(
        "layer_norm_large",
        model,
        ({"x": normal(2, 8, scale=2000)},),
        islands=frozenset({"Pow", "ReduceMean", "Add", "Sqrt"}),
    )


@micro_graph
def tiny_epsilon() -> MicroGraph:
    """1e-12 would become 0 in fp16, and a row of zeros 0 / 0."""
    model = parsed(
        """g (float[n, 8] x) => (float[n, 8] y) {
            sq = Mul(x, x)
            var = ReduceMean<keepdims = 1>(sq, axes)
            ve = Add(var, eps)
            sd = Sqrt(ve)
            y = Div(x, sd)
        }""",
        {"axes": np.array([-1]), "eps": np.array(1e-12, np.float32)},
    )
    x = normal(2, 8)
    x[1] = 0
    return MicroGraph("tiny_epsilon", model, ({"x": x},), islands=frozenset({"Add", "Sqrt", "Div"}))


@micro_graph
def cast_chain() -> MicroGraph:
    """float -> half -> float -> double -> float: what is left must be valid and do no harm."""
    model = parsed(
        """g (float[n, 4] x) => (float[n, 4] y) {
            a = Cast<to = 10>(x)
            b = Cast<to = 1>(a)
            c = Cast<to = 11>(b)
            d = Cast<to = 1>(c)
            y = MatMul(d, w)
        }""",
        {"w": normal(4, 4)},
    )
    return MicroGraph("cast_chain", model, ({"x": normal(2, 4)},))


@micro_graph
def local_function() -> MicroGraph:
    """A function of the model, called with half data and with int data."""
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
        g (float[n, 4] x, int64[n, 4] k) => (float[n, 4] y, int64[n, 4] j) {
            a = local.twice(x)
            j = local.twice(k)
            y = MatMul(a, w)
        }
        <domain: "local", opset_import: ["" : 18]>
        twice (v) => (r) { r = Add(v, v) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(normal(4, 4), "w"))
    feeds = {"x": normal(2, 4), "k": np.arange(8).reshape(2, 4)}
    return MicroGraph("local_function", model, (feeds,))


@micro_graph
def only_integers() -> MicroGraph:
    """Nothing to convert, nothing to break."""
    model = parsed(
        """g (int64[n, 4] x) => (int64[n, 4] y) {
            y = Add(x, x)
        }"""
    )
    return MicroGraph("only_integers", model, ({"x": np.arange(8).reshape(2, 4)},))


@micro_graph
def partly_half() -> MicroGraph:
    """A part of the model is fp16 already."""
    model = parsed(
        """g (float[n, 4] x) => (float[n, 4] y) {
            a = MatMul(x, w)
            h = Cast<to = 10>(a)
            m = MatMul(h, wh)
            f = Cast<to = 1>(m)
            y = Add(f, a)
        }""",
        {"w": normal(4, 4), "wh": normal(4, 4, seed=1).astype(np.float16)},
    )
    return MicroGraph("partly_half", model, ({"x": normal(2, 4)},))


@micro_graph
def rotary_positions() -> MicroGraph:
    """Angles up to 3000 rad from positions: fp16 holds them to 1 rad only."""
    model = parsed(
        """g (float[t, 4] x, int64[t, 1] positions) => (float[t, 4] y) {
            p = Cast<to = 1>(positions)
            angle = Mul(p, frequency)
            c = Cos(angle)
            s = Sin(angle)
            rest = Mul(x, c)
            turned = Mul(x, s)
            y = Sub(rest, turned)
        }""",
        {"frequency": np.array([1, 0.1, 0.01, 0.001], np.float32)},
    )
    feeds = {"x": normal(5, 4), "positions": np.array([[0], [7], [99], [1001], [3001]])}
    return MicroGraph("rotary_positions", model, (feeds,), islands=frozenset({"Mul", "Cos", "Sin"}))


@micro_graph
def sizes_from_shape() -> MicroGraph:
    """A float computed from sizes and made an integer again: 4097 * 0.5 must stay exact."""
    make = helper.make_node
    nodes = [
        make("Shape", ["x"], ["shape"]),
        make("Gather", ["shape", "at"], ["length"], axis=0),
        make("Cast", ["length"], ["long"], to=TensorProto.FLOAT),
        make("Mul", ["long", "share"], ["part"]),
        make("Floor", ["part"], ["whole"]),
        make("Cast", ["whole"], ["stop"], to=TensorProto.INT64),
        make("Slice", ["x", "start", "stop", "axis"], ["front"]),
        make("MatMul", ["w", "front"], ["y"]),
    ]
    weights = {
        "at": np.array([1]),
        "share": np.array(0.75, np.float32),
        "start": np.array([0]),
        "axis": np.array([1]),
        "w": normal(2, 3),
    }
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, [3, "n"])],
        [info("y", TensorProto.FLOAT, [2, "m"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return MicroGraph(
        "sizes_from_shape", model, ({"x": normal(3, 4099)},), islands=frozenset({"Mul", "Floor"})
    )


@micro_graph
def double_detour() -> MicroGraph:
    """A stretch in float64, with a float64 initializer."""
    model = parsed(
        """g (float[n, 4] x) => (float[n, 4] y) {
            d = Cast<to = 11>(x)
            e = Mul(d, root)
            f = Cast<to = 1>(e)
            y = MatMul(f, w)
        }""",
        {"w": normal(4, 4), "root": np.array(np.sqrt(2.0))},
    )
    return MicroGraph("double_detour", model, ({"x": normal(2, 4)},))
