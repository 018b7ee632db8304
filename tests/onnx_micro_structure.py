"""Small ONNX graphs whose structure half precision converters trip over."""

from __future__ import annotations

import numpy as np

from tests.onnx_micro_graph import MicroGraph, micro_graph, normal, parsed


@micro_graph
def cast_to_float() -> MicroGraph:
    """A Cast to float in the middle must become a Cast to half."""
    model = parsed(
        """g (float[n, 4] x, int64[n, 4] ids) => (float[n, 3] y) {
            f = Cast<to = 1>(ids)
            s = Add(x, f)
            y = MatMul(s, w)
        }""",
        {"w": normal(4, 3)},
    )
    ids = np.arange(8).reshape(2, 4)
    return MicroGraph("cast_to_float", model, ({"x": normal(2, 4), "ids": ids},))


@micro_graph
def duplicate_node_names() -> MicroGraph:
    """Nodes may share a name; a converter that keeps them in a dict loses some."""
    model = parsed(
        """g (float[n, 4] x) => (float[n, 4] y) {
            a = Cast<to = 1>(x)
            b = MatMul(a, w)
            c = Cast<to = 1>(b)
            y = MatMul(c, w)
        }""",
        {"w": normal(4, 4)},
    )
    for node in model.graph.node:
        node.name = "same"
    return MicroGraph("duplicate_node_names", model, ({"x": normal(2, 4)},))


@micro_graph
def if_captures() -> MicroGraph:
    """Branches read values of the outer graph, and hand out what their graph never computed."""
    model = parsed(
        """g (float[n, 4] x, bool c) => (float[n, 4] y) {
            h = Relu(x)
            z = If (c) <
                then_branch = then () => (float[n, 4] t) { t = MatMul(h, w) },
                else_branch = other () => (float[n, 4] e) { e = Identity(h) }
            >
            y = Add(z, h)
        }""",
        {"w": normal(4, 4)},
    )
    samples = tuple({"x": normal(2, 4), "c": np.array(c)} for c in (True, False))
    return MicroGraph("if_captures", model, samples)


@micro_graph
def if_shared_names() -> MicroGraph:
    """Both branches name their values alike, one of them overflows."""
    model = parsed(
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
    x = normal(2, 4, scale=30)
    samples = tuple({"x": x, "c": np.array(c)} for c in (True, False))
    return MicroGraph("if_shared_names", model, samples, islands=frozenset({"Mul", "Sqrt"}))


@micro_graph
def loop_body() -> MicroGraph:
    """What a loop carries has one type outside, inside and on its way back."""
    model = parsed(
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
        {"w": normal(3, 3, scale=0.5), "half": np.array(0.5, np.float32)},
    )
    return MicroGraph("loop_body", model, ({"x": normal(2, 3), "trips": np.array(3)},))


@micro_graph
def scan_body() -> MicroGraph:
    """A recurrent cell as Scan."""
    model = parsed(
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
        {"w": normal(3, 3)},
    )
    return MicroGraph("scan_body", model, ({"h0": normal(2, 3), "xs": normal(5, 2, 3)},))


@micro_graph
def eye_like() -> MicroGraph:
    """EyeLike says its type in an attribute, or takes its input's."""
    model = parsed(
        """g (float[3, 3] x, int64[3, 3] i) => (float[3, 3] y) {
            a = EyeLike<dtype = 1>(i)
            b = EyeLike(x)
            c = Add(a, b)
            y = MatMul(x, c)
        }"""
    )
    feeds = {"x": normal(3, 3), "i": np.ones((3, 3), np.int64)}
    return MicroGraph("eye_like", model, (feeds,), islands=frozenset({"EyeLike"}))


@micro_graph
def output_also_consumed() -> MicroGraph:
    """A graph output that another node reads: one reader wants fp32, one half."""
    model = parsed(
        """g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
            y = MatMul(x, w)
            z = MatMul(y, w)
        }""",
        {"w": normal(4, 4)},
    )
    return MicroGraph("output_also_consumed", model, ({"x": normal(2, 4)},))


@micro_graph
def input_is_output() -> MicroGraph:
    """An input handed out as it is, and read by a node."""
    model = parsed(
        """g (float[n, 4] x) => (float[n, 4] x, float[n, 4] y) {
            y = MatMul(x, w)
        }""",
        {"w": normal(4, 4)},
    )
    return MicroGraph("input_is_output", model, ({"x": normal(2, 4)},))


@micro_graph
def shared_with_forbidden() -> MicroGraph:
    """One initializer read by MatMul and by an operator whose schema knows fp32 only."""
    boxes = np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 5, 1, 6]]], np.float32)
    model = parsed(
        """g (float[1, 1, 3] scores, float[4, 2] m) => (int64[k, 3] kept, float[1, 3, 2] y) {
            s = Sigmoid(scores)
            kept = NonMaxSuppression(boxes, s, limit, overlap)
            y = MatMul(boxes, m)
        }""",
        {"boxes": boxes, "limit": np.array([3]), "overlap": np.array([0.5], np.float32)},
    )
    feeds = {"scores": np.array([[[0.9, 0.8, 0.7]]], np.float32), "m": normal(4, 2)}
    return MicroGraph(
        "shared_with_forbidden", model, (feeds,), islands=frozenset({"NonMaxSuppression"})
    )


@micro_graph
def resize_scales() -> MicroGraph:
    """Resize takes its scales in fp32 only, its data in half."""
    model = parsed(
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
    return MicroGraph("resize_scales", model, ({"x": normal(1, 2, 5, 7)},))
