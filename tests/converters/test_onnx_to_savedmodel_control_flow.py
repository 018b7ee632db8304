"""Branches, loops, scans and sequences of ONNX in a SavedModel, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="SavedModels are written with TensorFlow")
onnx = pytest.importorskip("onnx", reason="models are built with the onnx package")
pytest.importorskip("onnxruntime", reason="the reference is ONNX Runtime")

from onnx import parser  # noqa: E402 - after the packages are known to be there

from tests.converters.test_onnx_to_savedmodel import (  # noqa: E402
    agree,
    computed,
    converted,
    operators,
    random,
)


def model(text: str) -> Any:
    return parser.parse_model('<ir_version: 10, opset_import: ["": 20]>\n' + text)


def test_a_branch_is_taken_by_the_data_and_sees_outer_values(tmp_path: Path) -> None:
    graph = model("""
        g (float[n,2] x, bool which) => (float[m,2] y, float z)
        <float[2,2] w = {1, 2, 3, 4}> {
            h = MatMul(x, w)
            y, z = If(which) <
                then_branch = t () => (float[n,2] a, float s) {
                    a = Relu(h)
                    s = ReduceSum<keepdims=0>(h)
                },
                else_branch = e () => (float[k,2] b, float r) {
                    b = Concat<axis=0>(x, h)
                    r = ReduceMax<keepdims=0>(x)
                }>
        }""")
    out = converted(graph, tmp_path)
    assert operators(out)["If"] + operators(out)["StatelessIf"] == 1
    for which in (True, False):
        agree(tmp_path, out, {"x": random(3, 2), "which": np.array(which)})


def test_a_branch_decided_by_constants_is_the_only_one_left(tmp_path: Path) -> None:
    graph = model("""
        g (float[2,3] x) => (float[a,b] y) {
            size = Size(x)
            six = Constant<value_int=6>()
            is_six = Equal(size, six)
            y = If(is_six) <
                then_branch = t () => (float[a,b] p) { p = Relu(x) },
                else_branch = e () => (float[a,b] q) { q = Concat<axis=0>(x, x) }>
        }""")
    out = converted(graph, tmp_path)
    assert not operators(out).keys() & {"If", "StatelessIf"}
    function = tf.saved_model.load(str(out)).signatures["serving_default"]
    assert function.structured_outputs["y"].shape.as_list() == [2, 3]
    agree(tmp_path, out, {"x": random(2, 3)})


COUNTING = """
    g (int64 trips, float[n] x) => (float[n] last, float[t,n] all)
    <float two = {2}> {
        yes = Constant<value = bool {1}>()
        last, all = Loop(trips, yes, x) <
            body = b (int64 i, bool go, float[n] state) => (bool on, float[n] next, float[n] row) {
                on = Identity(go)
                number = Cast<to=1>(i)
                grown = Mul(state, two)
                next = Add(grown, number)
                row = Sub(next, x)
            }>
    }"""


@pytest.mark.parametrize("trips", [0, 1, 5])
def test_a_loop_of_any_length_gives_its_state_and_its_rows(tmp_path: Path, trips: int) -> None:
    out = converted(model(COUNTING), tmp_path)
    assert operators(out)["While"] + operators(out)["StatelessWhile"] == 1
    agree(tmp_path, out, {"trips": np.array(trips), "x": random(4)})


def test_a_loop_ends_when_its_condition_says_so(tmp_path: Path) -> None:
    graph = model("""
        g (float[n] x, float limit) => (float[n] last, float[t] sums)
        <int64 many = {1000}, bool yes = {1}> {
            last, sums = Loop(many, yes, x) <
                body = b (int64 i, bool go, float[n] state)
                    => (bool on, float[n] next, float total) {
                    next = Add(state, state)
                    total = ReduceSum<keepdims=0>(next)
                    on = Less(total, limit)
                }>
        }""")
    out = converted(graph, tmp_path)
    for limit in (3, 100):
        feeds = {"x": np.array([0.5, 1], np.float32), "limit": np.array(limit, np.float32)}
        agree(tmp_path, out, feeds)


def test_a_loop_without_a_count_runs_until_its_condition_fails(tmp_path: Path) -> None:
    graph = model(
        """
        g (float x) => (float last) <bool yes = {1}, float limit = {50}> {
            last = Loop("", yes, x) <
                body = b (int64 i, bool go, float state) => (bool on, float next) {
                    next = Add(state, state)
                    on = Less(next, limit)
                }>
        }""".replace('Loop("",', "Loop(none,")
    )
    loop = next(node for node in graph.graph.node if node.op_type == "Loop")
    loop.input[0] = ""
    out = converted(graph, tmp_path)
    agree(tmp_path, out, {"x": np.array(1.5, np.float32)})


def test_a_state_may_change_its_size_in_every_step(tmp_path: Path) -> None:
    graph = model("""
        g (int64 trips, float[1,2] x) => (float[k,2] last) <bool yes = {1}> {
            last = Loop(trips, yes, x) <
                body = b (int64 i, bool go, float[j,2] state) => (bool on, float[l,2] next) {
                    on = Identity(go)
                    next = Concat<axis=0>(state, x)
                }>
        }""")
    out = converted(graph, tmp_path)
    for trips in (0, 3):
        agree(tmp_path, out, {"trips": np.array(trips), "x": random(1, 2)})


def test_a_short_loop_of_known_length_is_written_out(tmp_path: Path) -> None:
    graph = model(
        COUNTING.replace("int64 trips, ", "").replace("two = {2}", "two = {2}, int64 trips = {3}")
    )
    out = converted(graph, tmp_path)
    assert not operators(out).keys() & {"While", "StatelessWhile"}
    agree(tmp_path, out, {"x": random(4)})


def test_a_loop_inside_a_branch_inside_a_loop_computes(tmp_path: Path) -> None:
    graph = model("""
        g (int64 trips, float[n] x) => (float[n] last) <bool yes = {1}, int64 one = {1}> {
            last = Loop(trips, yes, x) <
                body = b (int64 i, bool go, float[n] state) => (bool on, float[n] next) {
                    on = Identity(go)
                    late = Greater(i, one)
                    next = If(late) <
                        then_branch = t () => (float[n] deep) {
                            deep = Loop(i, yes, state) <
                                body = c (int64 j, bool run, float[n] s) => (bool ok, float[n] r) {
                                    ok = Identity(run)
                                    r = Sub(s, x)
                                }>
                        },
                        else_branch = e () => (float[n] kept) { kept = Add(state, x) }>
                }>
        }""")
    out = converted(graph, tmp_path)
    agree(tmp_path, out, {"trips": np.array(5), "x": random(3)})


@pytest.mark.parametrize("backward", [0, 1])
def test_a_scan_reads_and_writes_along_any_axis_either_way(tmp_path: Path, backward: int) -> None:
    graph = model(
        """
        g (float[2] start, float[2,t,3] x, float[t,2] y) => (float[2] last, float[2,t] sums)  {
            last, sums = Scan<
                num_scan_inputs = 2,
                scan_input_axes = [1, 0],
                scan_output_axes = [1],
                scan_input_directions = [0, WAY],
                scan_output_directions = [WAY],
                body = b (float[2] state, float[2,3] xi, float[2] yi)
                    => (float[2] next, float[2] row) {
                    axis = Constant<value_ints=[1]>()
                    total = ReduceSum<keepdims=0>(xi, axis)
                    moved = Add(total, yi)
                    next = Add(state, moved)
                    row = Mul(next, yi)
                }
            >(start, x, y)
        }""".replace("WAY", str(backward))
    )
    out = converted(graph, tmp_path)
    for length in (1, 4):
        agree(
            tmp_path, out, {"start": random(2), "x": random(2, length, 3), "y": random(length, 2)}
        )


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("new_axis", [0, 1])
def test_a_sequence_that_grows_in_a_loop_is_joined(
    tmp_path: Path, axis: int, new_axis: int
) -> None:
    graph = model(
        """
        g (int64 trips, float[2,2] x) => (float[a, b] y, int64 count, float[2,2] third)
        <bool yes = {1}, int64 two = {-1}> {
            none = SequenceEmpty<dtype=1>()
            all = Loop(trips, yes, none) <
                body = b (int64 i, bool go, seq(float[2,2]) s) => (bool on, seq(float[2,2]) t) {
                    on = Identity(go)
                    number = Cast<to=1>(i)
                    more = Add(x, number)
                    t = SequenceInsert(s, more)
                }>
            y = ConcatFromSequence<axis=AXIS, new_axis=NEW>(all)
            count = SequenceLength(all)
            third = SequenceAt(all, two)
        }""".replace("AXIS", str(axis))
        .replace("NEW", str(new_axis))
        .replace("float[a, b]", "float[a, b, c]" if new_axis else "float[a, b]")
    )
    out = converted(graph, tmp_path)
    agree(tmp_path, out, {"trips": np.array(3), "x": random(2, 2)})


def test_a_body_is_mapped_over_a_sequence(tmp_path: Path) -> None:
    graph = model("""
        g (float[2] x, float[3] y, float z) => (float[n] joined) {
            both = SequenceConstruct(x, y)
            more = SequenceMap<
                body = b (float[k] one, float other) => (float[k] sum) { sum = Add(one, other) }
            >(both, z)
            joined = ConcatFromSequence<axis=0>(more)
        }""")
    out = converted(graph, tmp_path)
    agree(tmp_path, out, {"x": random(2), "y": random(3), "z": np.array(2, np.float32)})


SQUEEZING = """
    g (float[n,t] x) => (float[n] y)
    <int64 last = {1}, int64 one = {1}, int64[1] axis = {1}, bool keep = {0}> {
        shape = Shape(x)
        size = Gather(shape, last)
        is_one = Equal(size, one)
        flat = If(is_one) <
            then_branch = t () => (float[n] a) { a = Squeeze(x, axis) },
            else_branch = e () => (float[n,t] b) { b = Identity(x) }>
        wide = Unsqueeze(flat, axis)
        y = ReduceSum<keepdims=0>(wide, axis)
    }"""


def test_a_condition_on_the_number_of_axes_is_settled_noted_and_checked(tmp_path: Path) -> None:
    # As exporters of PyTorch write squeeze(1) of an axis whose size is dynamic.
    graph = model(SQUEEZING)
    del graph.graph.value_info[:]
    notes: list[str] = []
    out = converted(graph, tmp_path, note=notes.append)
    assert len(notes) == 1
    assert "then branch" in notes[0]
    agree(tmp_path, out, {"x": random(3, 1)})
    with pytest.raises(tf.errors.InvalidArgumentError):
        computed(out, {"x": random(3, 2)})


def test_the_branch_that_leads_to_the_declared_outputs_is_settled_on(tmp_path: Path) -> None:
    text = SQUEEZING.split("wide =")[0].replace("float[n] y", "float[n,t] y")
    notes: list[str] = []
    out = converted(model(text + "y = Relu(flat) }"), tmp_path, note=notes.append)
    assert "else branch" in notes[0]
    agree(tmp_path, out, {"x": random(3, 2)})
    with pytest.raises(tf.errors.InvalidArgumentError):
        computed(out, {"x": random(3, 1)})
