"""What `torch.export` demands of sizes, and networks that once could not be captured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.converters.onnx_to_torch.build import module_of
from convkit.converters.onnx_to_torch.exporting import exported
from convkit.converters.onnx_to_torch.guards import loosened, refused_axes, refusing
from convkit.errors import UnsupportedError
from tests.torch_import import assert_agrees, imported, node, numbers, saved, torch

pytestmark = pytest.mark.filterwarnings("ignore")

nn = torch.nn


def captured(
    module: Any, path: Path, *samples: tuple[Any, ...], notes: list[str] | None = None
) -> Any:
    """The program made of the first sample, compared with ONNX Runtime on every one."""
    inputs = [[torch.from_numpy(np.array(feed)) for feed in feeds] for feeds in samples]
    note = None if notes is None else notes.append
    program = exported(module, inputs[0], samples=inputs, note=note)
    for feeds in samples:
        assert_agrees(program.module(), path, feeds)
    return program


def _recurrent(folder: Path, operator: str, **attributes: Any) -> Path:
    """A recurrent network of which only the sequence of states is used."""
    gates = {"GRU": 3, "LSTM": 4}[operator]
    weights = {
        "w": numbers(1, gates * 4, 5),
        "r": numbers(1, gates * 4, 4, seed=1),
        "b": numbers(1, 2 * gates * 4, seed=2),
        "axis": np.array([1]),
    }
    nodes = [
        node(operator, ["x", "w", "r", "b"], ["states"], hidden_size=4, **attributes),
        node("Squeeze", ["states", "axis"], ["y"]),
    ]
    return saved(folder, nodes, {"x": ["time", "batch", 5]}, ["y"], weights)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Relu"]}),
        pytest.param("GRU", {"linear_before_reset": 0}, marks=pytest.mark.slow),
    ],
    ids=["lstm-relu", "gru-reset-before"],
)
def test_a_recurrent_network_without_a_layer_of_its_own_is_captured_for_any_length(
    operator: str, attributes: dict[str, Any], tmp_path: Path
) -> None:
    path = _recurrent(tmp_path, operator, **attributes)
    module = imported(path, numbers(4, 2, 5))
    captured(module, path, (numbers(6, 3, 5),), (numbers(4, 1, 5),), (numbers(9, 2, 5),))


def test_a_batch_of_one_is_taken_by_a_program_made_of_a_larger_one(tmp_path: Path) -> None:
    # Its product with 400 was once compared with 400.
    path = _recurrent(tmp_path, "GRU", linear_before_reset=1)
    module = module_of(path)
    captured(module, path, (numbers(6, 3, 5),), (numbers(7, 1, 5),), (numbers(12, 2, 5),))


class _Assuming(nn.Module):
    """Asks whether its batch is 1, and does the same either way unless told otherwise."""

    def __init__(self, is_right: bool) -> None:
        super().__init__()
        self.is_right = is_right

    def forward(self, x: Any) -> Any:
        return x * 2 if x.shape[0] != 1 or self.is_right else x * 3


def _program(module: Any, example: Any) -> Any:
    shapes = {"x": {0: torch.export.Dim.DYNAMIC}}
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        return torch.export.export(module, (example,), dynamic_shapes=shapes)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_demand_is_struck_only_where_results_are_right_without_it(is_right: bool) -> None:
    module = _Assuming(is_right)
    program = _program(module, torch.ones(3, 2))
    one = [torch.ones(1, 2)]
    program._guards_code = sorted({*program._guards_code, "L['x'].size()[0] != 1"})
    assert refusing(program, ["x"], one) == ["L['x'].size()[0] != 1"]
    assert refused_axes(refusing(program, ["x"], one)) == {"x": {0}}
    assert loosened(program, module, ["x"], [one]) is is_right
    assert (refusing(program, ["x"], one) == []) is is_right
    if is_right:
        torch.testing.assert_close(program.module()(*one), torch.full((1, 2), 2.0))


def test_a_size_that_became_fixed_refuses_others() -> None:
    program = torch.export.export(_Assuming(True), (torch.ones(3, 2),))
    assert refusing(program, ["x"], [torch.ones(3, 2)]) == []
    assert refusing(program, ["x"], [torch.ones(4, 2)]) == ["L['x'].size()[0] == 3"]


def test_a_branch_that_sizes_decide_is_chosen_when_captured(tmp_path: Path) -> None:
    then = _graph(node("Squeeze", ["x", "axis"], ["t"]), "t")
    other = _graph(node("ReduceSum", ["x", "axis"], ["e"], keepdims=0), "e")
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "place"], ["size"]),
        node("Equal", ["size", "one"], ["c"]),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {"place": np.int64(1), "one": np.int64(1), "axis": np.array([1])}
    path = saved(tmp_path, nodes, {"x": ["batch", "width"]}, ["y"], weights)
    module = imported(path, numbers(3, 4))
    assert_agrees(module, path, [numbers(3, 1)])
    notes: list[str] = []
    samples = [[torch.from_numpy(numbers(3, 4))], [torch.from_numpy(numbers(2, 4))]]
    program = exported(module, samples[0], samples=samples, note=notes.append)
    assert_agrees(program.module(), path, [numbers(5, 6)])
    assert notes == []


def _graph(made: Any, output: str) -> Any:
    from tests.torch_import import FLOAT, graph, value

    return graph([made], output, [], [value(output, FLOAT, None)])


def test_what_cannot_be_captured_names_the_value_it_stopped_at(tmp_path: Path) -> None:
    nodes = [
        node("Exp", ["x"], ["before"]),
        node("NonZero", ["before"], ["places"]),
        node("ReduceSum", ["places"], ["count"], keepdims=0),
        node("Range", ["zero", "count", "one"], ["steps"]),
        node("Loop", ["", "go", "before"], ["y", "rows"], body=_endless()),
    ]
    weights = {"zero": np.int64(0), "one": np.int64(1), "go": np.bool_(True)}
    path = saved(tmp_path, nodes, {"x": ["n"]}, ["y", "rows"], weights)
    with pytest.raises(UnsupportedError) as caught:
        exported(module_of(path), [torch.ones(3)])
    assert "While computing 'y'." in str(caught.value.why)
    assert "-o FOLDER/" in str(caught.value)


def _endless() -> Any:
    """A loop that its data end, and that stacks rows."""
    from tests.torch_import import BOOL, FLOAT, INT64, graph, value

    body = [
        node("Mul", ["state", "state"], ["next"]),
        node("ReduceSum", ["next"], ["sum"], keepdims=0),
        node("Cast", ["sum"], ["go_on"], to=BOOL),
        node("Identity", ["next"], ["row"]),
    ]
    return graph(
        body,
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("state", FLOAT, None)],
        [value("go_on", BOOL, []), value("next", FLOAT, None), value("row", FLOAT, None)],
    )
