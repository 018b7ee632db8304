"""Operators whose sizes, axes and lengths are known only at run time, captured by torch.export."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operator", "axes"),
    [("ReduceSum", (0,)), ("ReduceMean", (1, 2)), ("ReduceMax", (-1, 0)), ("ReduceL2", (1,))],
)
def test_reductions_over_axes_given_at_run_time_export(operator: str, axes: Any) -> None:
    from convkit.converters.onnx_to_torch.operators import reduction

    function = reduction.OPERATORS[operator]

    class Reduction(torch.nn.Module):
        def forward(self, x: Any, over: Any) -> Any:
            return function(x, over, keepdims=1), function(x, over, keepdims=0)

    x, over = torch.randn(3, 4, 5), torch.tensor(axes)
    program = torch.export.export(Reduction(), (x, over))
    others = torch.tensor([(axis + 1) % 3 for axis in axes])
    for given in (over, others):
        for got, wanted in zip(program.module()(x, given), Reduction()(x, given), strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.slow
def test_run_time_shapes_bounds_and_counts_export() -> None:
    from convkit.converters.onnx_to_torch.operators.reduction import cum_sum
    from convkit.converters.onnx_to_torch.operators.selection import non_max_suppression, top_k
    from convkit.converters.onnx_to_torch.operators.shape import expand, reshape, tile
    from convkit.converters.onnx_to_torch.operators.slicing import pad, slice_tensor

    class Shapes(torch.nn.Module):
        def forward(self, x: Any, target: Any, start: Any, axis: Any, k: Any) -> Any:
            return (
                reshape(x, target),
                slice_tensor(x, start, start + 2, axis),
                pad(x, torch.cat([start, start]), None, axis),
                tile(x, torch.cat([k, k])),
                expand(x[:, :1], torch.cat([k * 0 + 1, k])),
                cum_sum(x, axis, reverse=1),
                *top_k(x, k, axis=0),
            )

    class Boxes(torch.nn.Module):
        def forward(self, boxes: Any, scores: Any, limit: Any) -> Any:
            return non_max_suppression(boxes, scores, limit, 0.5, 0.1)

    def ints(*values: int) -> Any:
        return torch.tensor(values)

    first = (torch.randn(4, 6), ints(-1, 3), ints(1), ints(0), ints(2))
    second = (torch.randn(4, 6), ints(2, 12), ints(0), ints(1), ints(3))
    program = torch.export.export(Shapes(), first)
    for got, wanted in zip(program.module()(*second), Shapes()(*second), strict=True):
        torch.testing.assert_close(got, wanted)

    def scene() -> tuple[Any, ...]:
        corner = torch.rand(1, 20, 2) * 9
        return torch.cat([corner, corner + 3], 2), torch.rand(1, 2, 20)

    program = torch.export.export(Boxes(), (*scene(), ints(5)))
    given = (*scene(), ints(3))
    torch.testing.assert_close(program.module()(*given), Boxes()(*given))


@pytest.mark.slow
@pytest.mark.parametrize("operator", GATES)
def test_recurrent_networks_of_any_kind_and_length_export(operator: str) -> None:
    from convkit.converters.onnx_to_torch.operators import recurrent

    function = recurrent.OPERATORS[operator]
    gates, hidden = GATES[operator], 4
    w, r = torch.randn(1, gates * hidden, 6), torch.randn(1, gates * hidden, hidden)
    b = torch.randn(1, 2 * gates * hidden)

    class Network(torch.nn.Module):
        def forward(self, x: Any, lengths: Any) -> Any:
            return function(x, w, r, b, lengths, direction="reverse", clip=1.5)

    def feeds(steps: int, batch: int) -> tuple[Any, ...]:
        return torch.randn(steps, batch, 6), torch.randint(1, steps, (batch,))

    auto = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        Network(), feeds(7, 2), dynamic_shapes=({0: auto, 1: auto}, {0: auto})
    )
    given = feeds(9, 3)
    for got, wanted in zip(program.module()(*given), Network()(*given), strict=True):
        torch.testing.assert_close(got, wanted)
