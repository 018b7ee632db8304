"""If, Loop, Scan and SequenceMap, run and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.converters.onnx_to_torch.exporting import exported
from tests.torch_import import (
    BOOL,
    FLOAT,
    INT64,
    assert_agrees,
    graph,
    imported,
    node,
    numbers,
    saved,
    torch,
    value,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def exports(module: Any, path: Path, *feeds: Any, again: tuple[Any, ...] = ()) -> Any:
    samples = [[torch.from_numpy(np.array(feed)) for feed in each] for each in (feeds, again)]
    program = exported(module, samples[0], samples=samples if again else ())
    assert_agrees(program.module(), path, again or feeds)
    return program


def test_a_branch_on_data_becomes_cond_and_captures_outer_values(tmp_path: Path) -> None:
    then = graph([node("Mul", ["x", "w"], ["t"])], "then", [], [value("t", FLOAT, None)])
    other = graph([node("Sub", ["h", "x"], ["e"])], "else", [], [value("e", FLOAT, None)])
    nodes = [
        node("Exp", ["x"], ["h"]),
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {"w": numbers(3), "zero": np.float32(0)}
    path = saved(tmp_path, nodes, {"x": ["n", 3]}, ["y"], weights)
    positive, negative = np.abs(numbers(4, 3)), -np.abs(numbers(4, 3))
    module = imported(path, positive)
    assert_agrees(module, path, [negative])
    program = exports(module, path, positive, again=(negative[:2],))
    assert any(n.target is torch.ops.higher_order.cond for n in program.graph.nodes)


def test_a_branch_on_a_constant_is_gone(tmp_path: Path) -> None:
    then = graph([node("Neg", ["x"], ["t"])], "then", [], [value("t", FLOAT, None)])
    other = graph([node("Exp", ["x"], ["e"])], "else", [], [value("e", FLOAT, None)])
    nodes = [node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    path = saved(tmp_path, nodes, {"x": ["n"]}, ["y"], {"c": np.bool_(False)})
    module = imported(path, numbers(3))
    assert "y" in module.program.values.values() or "exp" in module.program.source
    assert "branch" not in module.program.source


def _counting_loop() -> Any:
    """Adds the running state to a capture, stacks each state."""
    body = [
        node("Add", ["state", "x"], ["next"]),
        node("Identity", ["next"], ["row"]),
        node("Identity", ["go"], ["go_on"]),
    ]
    return graph(
        body,
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("state", FLOAT, None)],
        [value("go_on", BOOL, []), value("next", FLOAT, None), value("row", FLOAT, None)],
    )


def test_a_loop_of_few_constant_steps_is_unrolled(tmp_path: Path) -> None:
    nodes = [node("Loop", ["count", "", "x"], ["last", "rows"], body=_counting_loop())]
    weights = {"count": np.int64(3)}
    path = saved(tmp_path, nodes, {"x": ["n", 2]}, ["last", "rows"], weights)
    program = exports(imported(path, numbers(4, 2)), path, numbers(4, 2), again=(numbers(5, 2),))
    assert not any("scan" in str(n.target) for n in program.graph.nodes)


def test_a_loop_over_a_dynamic_size_becomes_scan(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["long"], ["s"]),
        node("Squeeze", ["s"], ["count"]),
        node("Loop", ["count", "", "x"], ["last", "rows"], body=_counting_loop()),
    ]
    inputs = {"x": ["n", 2], "long": ["steps"]}
    path = saved(tmp_path, nodes, inputs, ["last", "rows"])
    module = imported(path, numbers(3, 2), numbers(5))
    # Summing in another order over nine steps: 1e-6 relative.
    program = exports(module, path, numbers(3, 2), numbers(5), again=(numbers(4, 2), numbers(9)))
    assert any(n.target is torch.ops.higher_order.scan for n in program.graph.nodes)


def test_a_loop_that_a_condition_ends_becomes_while_loop(tmp_path: Path) -> None:
    body = graph(
        [
            node("Mul", ["state", "half"], ["next"]),
            node("ReduceSum", ["next"], ["sum"], keepdims=0),
            node("Greater", ["sum", "limit"], ["go_on"]),
        ],
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("state", FLOAT, None)],
        [value("go_on", BOOL, []), value("next", FLOAT, None)],
    )
    nodes = [node("Loop", ["", "true", "x"], ["y"], body=body)]
    weights = {"half": np.float32(0.5), "limit": np.float32(0.1), "true": np.bool_(True)}
    path = saved(tmp_path, nodes, {"x": ["n"]}, ["y"], weights)
    big = np.full(4, 9, np.float32)
    program = exports(imported(path, big), path, big, again=(np.ones(3, np.float32),))
    assert any(n.target is torch.ops.higher_order.while_loop for n in program.graph.nodes)


@pytest.mark.parametrize("length", ["steps", 4])
def test_scan_agrees_both_ways_round(length: Any, tmp_path: Path) -> None:
    body = graph(
        [node("Add", ["state", "item"], ["next"]), node("Tanh", ["next"], ["row"])],
        "body",
        [value("state", FLOAT, [2]), value("item", FLOAT, [2])],
        [value("next", FLOAT, [2]), value("row", FLOAT, [2])],
    )
    options = {"scan_input_directions": [1], "scan_output_axes": [1]}
    nodes = [node("Scan", ["s", "x"], ["last", "rows"], body=body, num_scan_inputs=1, **options)]
    inputs = {"s": [2], "x": [length, 2]}
    path = saved(tmp_path, nodes, inputs, ["last", "rows"])
    feeds = (numbers(2), numbers(4, 2))
    module = imported(path, *feeds)
    again = (numbers(2), numbers(7 if length == "steps" else 4, 2))
    exports(module, path, *feeds, again=again)


def test_sequence_map_applies_its_body_to_each_element(tmp_path: Path) -> None:
    body = graph(
        [node("Mul", ["item", "factor"], ["scaled"])],
        "body",
        [value("item", FLOAT, ["n"]), value("factor", FLOAT, ["m"])],
        [value("scaled", FLOAT, ["n"])],
    )
    nodes = [
        node("SequenceConstruct", ["a", "b"], ["list"]),
        node("SequenceMap", ["list", "f"], ["mapped"], body=body),
        node("ConcatFromSequence", ["mapped"], ["y"], axis=0),
    ]
    inputs = {"a": [2], "b": [3], "f": [1]}
    path = saved(tmp_path, nodes, inputs, ["y"])
    module = imported(path, numbers(2), numbers(3), numbers(1))
    exports(module, path, numbers(2), numbers(3), numbers(1))


def _counting(bound: str) -> Any:
    """As TensorFlow's loops come: a counter and a weight are carried, the bound is asked for."""
    body = [
        node("Add", ["counter", "one"], ["next_counter"]),
        node("MatMul", ["state", "matrix"], ["next"]),
        node("Cast", ["next_counter"], ["reached"], to=FLOAT),
        node("Cast", [bound], ["end"], to=FLOAT),
        node("Less", ["reached", "end"], ["below"]),
        node("Less", ["i", bound], ["within"]),
        node("And", ["below", "within"], ["go_on"]),
        node("Identity", ["matrix"], ["same"]),
        node("Identity", ["next"], ["row"]),
    ]
    return graph(
        body,
        "body",
        [
            value("i", INT64, []),
            value("go", BOOL, []),
            value("counter", INT64, []),
            value("state", FLOAT, None),
            value("matrix", FLOAT, [2, 2]),
        ],
        [
            value("go_on", BOOL, []),
            value("next_counter", INT64, []),
            value("next", FLOAT, None),
            value("same", FLOAT, [2, 2]),
            value("row", FLOAT, None),
        ],
    )


def _counting_model(folder: Path, bound: str) -> Path:
    nodes = [
        node("Shape", ["long"], ["s"]),
        node("Squeeze", ["s"], ["count"]),
        node(
            "Loop",
            ["count", "true", "zero", "x", "w"],
            ["counted", "last", "w_out", "rows"],
            body=_counting(bound),
        ),
    ]
    weights = {
        "w": numbers(2, 2) / 2,
        "zero": np.int64(0),
        "one": np.int64(1),
        "three": np.int64(3),
        "true": np.bool_(True),
    }
    outputs = ["counted", "last", "w_out", "rows"]
    inputs = {"x": ["n", 2], "long": ["steps"]}
    return saved(folder, nodes, inputs, outputs, weights, {"counted": INT64})


def test_a_loop_whose_condition_only_counts_becomes_scan(tmp_path: Path) -> None:
    path = _counting_model(tmp_path, "count")
    module = imported(path, numbers(3, 2), numbers(5))
    assert "True, (" in module.program.source  # nothing but the trip count ends it
    program = exports(module, path, numbers(3, 2), numbers(5), again=(numbers(4, 2), numbers(9)))
    assert any(n.target is torch.ops.higher_order.scan for n in program.graph.nodes)


def test_a_loop_that_its_counter_ends_early_keeps_its_condition(tmp_path: Path) -> None:
    path = _counting_model(tmp_path, "three")
    module = imported(path, numbers(3, 2), numbers(5))
    assert "True, (" not in module.program.source
    assert_agrees(module, path, [numbers(3, 2), numbers(2)])


def test_what_no_iteration_changes_is_not_carried(tmp_path: Path) -> None:
    module = imported(_counting_model(tmp_path, "count"), numbers(3, 2), numbers(4))
    call = next(line for line in module.program.source.splitlines() if "operators.loop" in line)
    assert call.split("=")[0].count(",") == 2  # the counter, the state, the rows
    assert isinstance(next(module.children()), torch.nn.Linear)  # the matrix is a layer now


def test_a_recurrent_network_within_a_branch_is_captured(tmp_path: Path) -> None:
    then = graph(
        [node("LSTM", ["x", "wi", "wh"], ["t"], hidden_size=3)],
        "then",
        [],
        [value("t", FLOAT, None)],
    )
    other = graph([node("LSTM", ["x", "wo", "wh"], ["e"], hidden_size=3)], "else", [],
                  [value("e", FLOAT, None)])  # fmt: skip
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {
        "wi": numbers(1, 12, 4),
        "wo": numbers(1, 12, 4, seed=1),
        "wh": numbers(1, 12, 3, seed=2),
        "zero": np.float32(0),
    }
    path = saved(tmp_path, nodes, {"x": ["time", "batch", 4]}, ["y"], weights)
    positive = np.abs(numbers(5, 2, 4))
    exports(imported(path, positive), path, positive, again=(-np.abs(numbers(5, 3, 4)),))
