"""Small ONNX graphs, each with one thing that half precision converters trip over.

Each is an fp32 model, samples, and how far a half precision result may be from the fp32 one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

FP16_TOLERANCE = 4e-3
"""Relative to the largest output: a few operators, each off by at most 2^-11 = 4.9e-4."""

_HEAD = '<ir_version: 10, opset_import: ["" : 18]>'
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class MicroGraph:
    """A model and what to run it on.

    Attributes:
        tolerance: largest difference to fp32, relative to the largest output.
        islands: operator types that must be found to need fp32 ("" for none).
    """

    name: str
    model: onnx.ModelProto
    samples: tuple[Feeds, ...]
    tolerance: float = FP16_TOLERANCE
    islands: frozenset[str] = frozenset()


def micro_graphs() -> list[MicroGraph]:
    """All of them, freshly built; nodes get the names that exporters would give them."""
    graphs = [build() for build in _BUILDERS]
    for graph in graphs:
        for index, node in enumerate(graph.model.graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
    return graphs


_BUILDERS: list[Callable[[], MicroGraph]] = []


def _graph(build: Callable[[], MicroGraph]) -> Callable[[], MicroGraph]:
    _BUILDERS.append(build)
    return build


def _normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def _parsed(body: str, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    model = parser.parse_model(f"{_HEAD}\n{body}")
    for name, array in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@_graph
def cast_to_float() -> MicroGraph:
    """A Cast to float in the middle must become a Cast to half."""
    model = _parsed(
        """g (float[n, 4] x, int64[n, 4] ids) => (float[n, 3] y) {
            f = Cast<to = 1>(ids)
            s = Add(x, f)
            y = MatMul(s, w)
        }""",
        {"w": _normal(4, 3)},
    )
    ids = np.arange(8).reshape(2, 4)
    return MicroGraph("cast_to_float", model, ({"x": _normal(2, 4), "ids": ids},))


@_graph
def duplicate_node_names() -> MicroGraph:
    """Nodes may share a name; a converter that keeps them in a dict loses some."""
    model = _parsed(
        """g (float[n, 4] x) => (float[n, 4] y) {
            a = Cast<to = 1>(x)
            b = MatMul(a, w)
            c = Cast<to = 1>(b)
            y = MatMul(c, w)
        }""",
        {"w": _normal(4, 4)},
    )
    for node in model.graph.node:
        node.name = "same"
    return MicroGraph("duplicate_node_names", model, ({"x": _normal(2, 4)},))


@_graph
def if_captures() -> MicroGraph:
    """Branches read values of the outer graph, and hand out what their graph never computed."""
    model = _parsed(
        """g (float[n, 4] x, bool c) => (float[n, 4] y) {
            h = Relu(x)
            z = If (c) <
                then_branch = then () => (float[n, 4] t) { t = MatMul(h, w) },
                else_branch = other () => (float[n, 4] e) { e = Identity(h) }
            >
            y = Add(z, h)
        }""",
        {"w": _normal(4, 4)},
    )
    samples = tuple({"x": _normal(2, 4), "c": np.array(c)} for c in (True, False))
    return MicroGraph("if_captures", model, samples)


@_graph
def if_shared_names() -> MicroGraph:
    """Both branches name their values alike, one of them overflows."""
    model = _parsed(
        """g (float[n, 4] x, bool c) => (float[n, 4] y) {
            z = If (c) <
                then_branch = then () => (float[n, 4] t) {
                    v = Mul(x, x)
                    u = Mul(v, v)
                    t = Sqrt(u) },
                else_branch = other () => (float[n, 4] t) {
                    v = Neg(x)
                    t = Abs(v) }
            >
            y = Tanh(z)
        }"""
    )
    x = _normal(2, 4, scale=30)
    samples = tuple({"x": x, "c": np.array(c)} for c in (True, False))
    return MicroGraph("if_shared_names", model, samples, islands=frozenset({"Mul", "Sqrt"}))


@_graph
def loop_body() -> MicroGraph:
    """What a loop carries has one type outside, inside and on its way back."""
    model = _parsed(
        """g (float[2, 3] x, int64 trips) => (float[2, 3] last, float[k, 2, 3] all) {
            go = Constant<value = bool {1}>()
            start = MatMul(x, w)
            last, all = Loop (trips, go, start) <
                body = body (int64 i, bool before, float[2, 3] s)
                    => (bool after, float[2, 3] next, float[2, 3] seen) {
                    after = Identity(before)
                    m = MatMul(s, w)
                    step = Cast<to = 1>(i)
                    next = Add(m, step)
                    seen = Mul(next, half)
                }
            >
        }""",
        {"w": _normal(3, 3, scale=0.5), "half": np.array(0.5, np.float32)},
    )
    return MicroGraph("loop_body", model, ({"x": _normal(2, 3), "trips": np.array(3)},))


@_graph
def scan_body() -> MicroGraph:
    """A recurrent cell as Scan."""
    model = _parsed(
        """g (float[2, 3] h0, float[5, 2, 3] xs) => (float[2, 3] h, float[5, 2, 3] hs) {
            h, hs = Scan (h0, xs) <num_scan_inputs = 1,
                body = cell (float[2, 3] hi, float[2, 3] xi)
                    => (float[2, 3] ho, float[2, 3] out) {
                    m = MatMul(hi, w)
                    a = Add(m, xi)
                    ho = Tanh(a)
                    out = Identity(ho)
                }
            >
        }""",
        {"w": _normal(3, 3)},
    )
    return MicroGraph("scan_body", model, ({"h0": _normal(2, 3), "xs": _normal(5, 2, 3)},))


@_graph
def eye_like() -> MicroGraph:
    """EyeLike says its type in an attribute, or takes its input's."""
    model = _parsed(
        """g (float[3, 3] x, int64[3, 3] i) => (float[3, 3] y) {
            a = EyeLike<dtype = 1>(i)
            b = EyeLike(x)
            c = Add(a, b)
            y = MatMul(x, c)
        }"""
    )
    feeds = {"x": _normal(3, 3), "i": np.ones((3, 3), np.int64)}
    return MicroGraph("eye_like", model, (feeds,), islands=frozenset({"EyeLike"}))


@_graph
def output_also_consumed() -> MicroGraph:
    """A graph output that another node reads: one reader wants fp32, one half."""
    model = _parsed(
        """g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
            y = MatMul(x, w)
            z = MatMul(y, w)
        }""",
        {"w": _normal(4, 4)},
    )
    return MicroGraph("output_also_consumed", model, ({"x": _normal(2, 4)},))


@_graph
def input_is_output() -> MicroGraph:
    """An input handed out as it is, and read by a node."""
    model = _parsed(
        """g (float[n, 4] x) => (float[n, 4] x, float[n, 4] y) {
            y = MatMul(x, w)
        }""",
        {"w": _normal(4, 4)},
    )
    return MicroGraph("input_is_output", model, ({"x": _normal(2, 4)},))


@_graph
def shared_with_forbidden() -> MicroGraph:
    """One initializer read by MatMul and by an operator whose schema knows fp32 only."""
    boxes = np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 5, 1, 6]]], np.float32)
    model = _parsed(
        """g (float[1, 1, 3] scores, float[4, 2] m) => (int64[k, 3] kept, float[1, 3, 2] y) {
            s = Sigmoid(scores)
            kept = NonMaxSuppression(boxes, s, limit, overlap)
            y = MatMul(boxes, m)
        }""",
        {"boxes": boxes, "limit": np.array([3]), "overlap": np.array([0.5], np.float32)},
    )
    feeds = {"scores": np.array([[[0.9, 0.8, 0.7]]], np.float32), "m": _normal(4, 2)}
    return MicroGraph(
        "shared_with_forbidden", model, (feeds,), islands=frozenset({"NonMaxSuppression"})
    )


@_graph
def resize_scales() -> MicroGraph:
    """Resize takes its scales in fp32 only, its data in half."""
    model = _parsed(
        """g (float[1, 2, h, v] x) => (float[1, 2, p, q] y) {
            r = Relu(x)
            u = Resize<mode = "linear">(r, , scales)
            y = Mul(u, gain)
        }""",
        {
            "scales": np.array([1, 1, 1.7, 1.3], np.float32),
            "gain": np.array([1.5], np.float32),
        },
    )
    return MicroGraph("resize_scales", model, ({"x": _normal(1, 2, 5, 7)},))


@_graph
def square_mean_root() -> MicroGraph:
    """|x| near 400: the square overflows fp16, which ONNX Runtime on x86 never shows."""
    model = _parsed(
        """g (float[n, 16] x) => (float[n, 1] y) {
            s = Mul(x, x)
            m = ReduceMean<keepdims = 1>(s, axes)
            y = Sqrt(m)
        }""",
        {"axes": np.array([1])},
    )
    islands = frozenset({"Mul", "ReduceMean", "Sqrt"})
    return MicroGraph(
        "square_mean_root", model, ({"x": _normal(2, 16, scale=400)},), islands=islands
    )


@_graph
def huge_weight() -> MicroGraph:
    """A weight of 1e5 must be neither clamped nor inf."""
    weight = _normal(4, 3)
    weight[1, 1] = 1e5
    model = _parsed(
        """g (float[n, 4] x) => (float[n, 3] y) {
            h = MatMul(x, w)
            y = Mul(h, small)
        }""",
        {"w": weight, "small": np.array([1e-3], np.float32)},
    )
    return MicroGraph("huge_weight", model, ({"x": _normal(2, 4)},), islands=frozenset({"MatMul"}))


@_graph
def billion_mask() -> MicroGraph:
    """(1 - mask) * -1e9 added to attention scores."""
    model = _parsed(
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
            "w": _normal(4, 4),
            "one": np.array(1, np.float32),
            "minus": np.array(-1e9, np.float32),
        },
    )
    mask = np.array([[[1, 1, 1, 0]], [[1, 0, 0, 0]]])
    return MicroGraph("billion_mask", model, ({"q": _normal(2, 4, 4), "mask": mask},))


@_graph
def lowest_mask() -> MicroGraph:
    """Where(mask, 0, float32's lowest) added to scores, as Hugging Face exports it."""
    model = _parsed(
        """g (float[b, 4, 4] q, bool[b, 1, 4] mask) => (float[b, 4, 4] y) {
            s = MatMul(q, w)
            bias = Where(mask, zero, lowest)
            masked = Add(s, bias)
            p = Softmax<axis = -1>(masked)
            y = MatMul(p, w)
        }""",
        {
            "w": _normal(4, 4),
            "zero": np.array(0, np.float32),
            "lowest": np.array(np.finfo(np.float32).min),
        },
    )
    mask = np.array([[[1, 1, 1, 0]], [[1, 0, 0, 0]]], bool)
    return MicroGraph("lowest_mask", model, ({"q": _normal(2, 4, 4), "mask": mask},))


@_graph
def mask_handed_out() -> MicroGraph:
    """-1e9 that reaches an output besides the softmax: it cannot become anything else."""
    model = _parsed(
        """g (float[b, 4, 4] q, bool[b, 1, 4] mask) => (float[b, 4, 4] y, float[b, 4, 4] masked) {
            s = MatMul(q, w)
            masked = Where(mask, s, minus)
            y = Softmax<axis = -1>(masked)
        }""",
        {"w": _normal(4, 4), "minus": np.array(-1e9, np.float32)},
    )
    mask = np.array([[[1, 1, 1, 0]], [[1, 0, 0, 0]]], bool)
    feeds = {"q": _normal(2, 4, 4), "mask": mask}
    return MicroGraph("mask_handed_out", model, (feeds,), islands=frozenset({"Where", "Softmax"}))


@_graph
def constant_of_shape_and_range() -> MicroGraph:
    """Types inside attributes, and Range, which knows no half at this opset."""
    model = _parsed(
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
        "constant_of_shape_and_range", model, ({"x": _normal(2, 6)},), islands=frozenset({"Range"})
    )


@_graph
def layer_norm_large() -> MicroGraph:
    """A decomposed LayerNorm on a residual stream in the thousands."""
    model = _parsed(
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
            "gain": _normal(8),
            "shift": _normal(8, seed=1),
        },
    )
    return MicroGraph(
        "layer_norm_large",
        model,
        ({"x": _normal(2, 8, scale=2000)},),
        islands=frozenset({"Pow", "ReduceMean", "Add", "Sqrt"}),
    )


@_graph
def tiny_epsilon() -> MicroGraph:
    """1e-12 would become 0 in fp16, and a row of zeros 0 / 0."""
    model = _parsed(
        """g (float[n, 8] x) => (float[n, 8] y) {
            sq = Mul(x, x)
            var = ReduceMean<keepdims = 1>(sq, axes)
            ve = Add(var, eps)
            sd = Sqrt(ve)
            y = Div(x, sd)
        }""",
        {"axes": np.array([-1]), "eps": np.array(1e-12, np.float32)},
    )
    x = _normal(2, 8)
    x[1] = 0
    return MicroGraph("tiny_epsilon", model, ({"x": x},), islands=frozenset({"Add", "Sqrt", "Div"}))


@_graph
def cast_chain() -> MicroGraph:
    """float -> half -> float -> double -> float: what is left must be valid and do no harm."""
    model = _parsed(
        """g (float[n, 4] x) => (float[n, 4] y) {
            a = Cast<to = 10>(x)
            b = Cast<to = 1>(a)
            c = Cast<to = 11>(b)
            d = Cast<to = 1>(c)
            y = MatMul(d, w)
        }""",
        {"w": _normal(4, 4)},
    )
    return MicroGraph("cast_chain", model, ({"x": _normal(2, 4)},))


@_graph
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
    model.graph.initializer.append(numpy_helper.from_array(_normal(4, 4), "w"))
    feeds = {"x": _normal(2, 4), "k": np.arange(8).reshape(2, 4)}
    return MicroGraph("local_function", model, (feeds,))


@_graph
def only_integers() -> MicroGraph:
    """Nothing to convert, nothing to break."""
    model = _parsed(
        """g (int64[n, 4] x) => (int64[n, 4] y) {
            y = Add(x, x)
        }"""
    )
    return MicroGraph("only_integers", model, ({"x": np.arange(8).reshape(2, 4)},))


@_graph
def partly_half() -> MicroGraph:
    """A part of the model is fp16 already."""
    model = _parsed(
        """g (float[n, 4] x) => (float[n, 4] y) {
            a = MatMul(x, w)
            h = Cast<to = 10>(a)
            m = MatMul(h, wh)
            f = Cast<to = 1>(m)
            y = Add(f, a)
        }""",
        {"w": _normal(4, 4), "wh": _normal(4, 4, seed=1).astype(np.float16)},
    )
    return MicroGraph("partly_half", model, ({"x": _normal(2, 4)},))


@_graph
def rotary_positions() -> MicroGraph:
    """Angles up to 3000 rad from positions: fp16 holds them to 1 rad only."""
    model = _parsed(
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
    feeds = {"x": _normal(5, 4), "positions": np.array([[0], [7], [99], [1001], [3001]])}
    return MicroGraph("rotary_positions", model, (feeds,), islands=frozenset({"Mul", "Cos", "Sin"}))


@_graph
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
        "w": _normal(2, 3),
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
        "sizes_from_shape", model, ({"x": _normal(3, 4099)},), islands=frozenset({"Mul", "Floor"})
    )


@_graph
def double_detour() -> MicroGraph:
    """A stretch in float64, with a float64 initializer."""
    model = _parsed(
        """g (float[n, 4] x) => (float[n, 4] y) {
            d = Cast<to = 11>(x)
            e = Mul(d, root)
            f = Cast<to = 1>(e)
            y = MatMul(f, w)
        }""",
        {"w": _normal(4, 4), "root": np.array(np.sqrt(2.0))},
    )
    return MicroGraph("double_detour", model, ({"x": _normal(2, 4)},))
