"""Control flow of ONNX at run time: plain Python when run, PyTorch's own operators when exported.

These functions are copied into the generated module, like those of the library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

UNROLLED_STEPS = 64


def is_exporting() -> bool:
    """Whether the network is being traced, so that control flow must be part of the graph."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def branch(
    condition: Any,
    then_branch: Callable[..., tuple[Any, ...]],
    else_branch: Callable[..., tuple[Any, ...]],
    operands: tuple[Any, ...],
) -> tuple[Any, ...]:
    """ONNX If: `torch.cond` while exporting, which asks for branches of equal shapes.

    What sizes alone decide (`condition` is no tensor) stays as it is for the exported sizes.
    """
    is_tensor = isinstance(condition, torch.Tensor)
    condition = condition.reshape(()) if is_tensor else condition
    if is_tensor and is_exporting():
        results = torch.cond(condition, cloned(then_branch), cloned(else_branch), operands)
        return tuple(results)
    return then_branch(*operands) if condition else else_branch(*operands)


def cloned(function: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """The function with results of their own memory: control flow may not return its operands."""

    def run(*operands: Any) -> tuple[Any, ...]:
        return tuple(value.clone() for value in function(*operands))

    return run


def loop(
    body: Callable[..., tuple[Any, ...]],
    trip_count: Any,
    condition: Any,
    carried: tuple[Any, ...],
    captured: tuple[Any, ...] = (),
    empty: tuple[torch.Tensor, ...] = (),
) -> tuple[Any, ...]:
    """ONNX Loop.

    Args:
        body: takes (iteration, condition, *carried, *captured), gives (condition, *carried, *rows).
        trip_count: most iterations, a number or a tensor; None without a limit.
        condition: True, or a tensor that says whether to begin.
        carried: values that go from iteration to iteration.
        captured: values that stay.
        empty: what each stacked output is when no iteration ran.

    Returns:
        The carried values at the end, then each row output stacked.
    """
    if is_exporting() and not (isinstance(trip_count, int) and trip_count <= UNROLLED_STEPS):
        return traced_loop(body, trip_count, condition, carried, captured, empty)
    if isinstance(trip_count, torch.Tensor):
        trip_count = int(trip_count)
    rows: list[list[torch.Tensor]] = [[] for _ in empty]
    count = len(carried)
    iteration = 0
    while (trip_count is None or iteration < trip_count) and (condition is True or condition):
        condition, *made = body(iteration, condition, *carried, *captured)
        carried = tuple(made[:count])
        for row, value in zip(rows, made[count:], strict=True):
            row.append(value)
        iteration += 1
    stacked = [torch.stack(row) if row else none for row, none in zip(rows, empty, strict=True)]
    return (*carried, *stacked)


def traced_loop(
    body: Callable[..., tuple[Any, ...]],
    trip_count: Any,
    condition: Any,
    carried: tuple[Any, ...],
    captured: tuple[Any, ...],
    empty: tuple[torch.Tensor, ...],
) -> tuple[Any, ...]:
    """The loop as `while_loop`, or as `scan` where it stacks outputs and runs to its trip count."""
    from torch._higher_order_ops.scan import scan
    from torch._higher_order_ops.while_loop import while_loop

    count = len(carried)
    # A tensor that is both carried and captured would be taken for one and the same: PyTorch 2.13
    # then traces a body that never sees what it carried on.
    carried = tuple(value.clone() for value in carried)
    if empty and isinstance(trip_count, torch.Tensor):
        trip_count = trip_count.reshape(()).item()
        torch._check(trip_count >= 0)
    if empty and condition is True:

        def step(state: list[torch.Tensor], index: torch.Tensor) -> tuple[Any, Any]:
            _, *made = body(index, True, *state, *captured)
            copies = [value.clone() for value in made]
            return copies[:count], copies[count:]

        last, rows = scan(step, list(carried), torch.arange(trip_count))
        return (*last, *rows)

    def proceeds(index: torch.Tensor, go_on: torch.Tensor, *state: Any) -> torch.Tensor:
        return go_on.clone() if trip_count is None else go_on & (index < trip_count)

    def advance(index: torch.Tensor, go_on: torch.Tensor, *state: Any) -> tuple[Any, ...]:
        again, *made = body(index, go_on, *state[:count], *captured)
        again = torch.ones_like(go_on) if again is True else again.reshape(())
        place = index.reshape(1)
        pairs = zip(state[count:], made[count:], strict=True)
        kept = [stack.index_copy(0, place, row.unsqueeze(0)) for stack, row in pairs]
        return (index + 1, *(value.clone() for value in (again, *made[:count], *kept)))

    start = torch.tensor(True) if condition is True else condition.reshape(())
    first = torch.zeros((), dtype=torch.int64)
    stacks = room_for_rows(body, trip_count, start, carried, captured, len(empty))
    steps, _, *results = while_loop(proceeds, advance, (first, start, *carried, *stacks))
    if not empty:
        return tuple(results)
    length = steps.item()
    torch._check(length >= 0)
    torch._check(length <= trip_count)
    return (*results[:count], *(stack.narrow(0, 0, length) for stack in results[count:]))


def room_for_rows(
    body: Callable[..., tuple[Any, ...]],
    trip_count: Any,
    condition: Any,
    carried: tuple[Any, ...],
    captured: tuple[Any, ...],
    row_count: int,
) -> list[torch.Tensor]:
    """A tensor for the rows of each stacked output; one iteration tells their shapes."""
    if not row_count:
        return []
    if trip_count is None:
        raise NotImplementedError("a Loop that stacks outputs without a limit to their number")
    first = torch.zeros((), dtype=torch.int64)
    rows = body(first, condition, *carried, *captured)[-row_count:]
    return [row.new_zeros([trip_count, *row.shape]) for row in rows]


def scan_axes(
    body: Callable[..., tuple[Any, ...]],
    carried: tuple[torch.Tensor, ...],
    sequences: tuple[torch.Tensor, ...],
    captured: tuple[Any, ...] = (),
    input_axes: Sequence[int] = (),
    input_directions: Sequence[int] = (),
    output_axes: Sequence[int] = (),
    output_directions: Sequence[int] = (),
) -> tuple[Any, ...]:
    """ONNX Scan: `body` takes (*carried, *rows, *captured) and gives (*carried, *new_rows)."""
    axes = zip(sequences, input_axes or [0] * len(sequences), strict=True)
    moved = [sequence.movedim(axis, 0) for sequence, axis in axes]
    for place, backwards in enumerate(input_directions):
        moved[place] = moved[place].flip(0) if backwards else moved[place]
    count, length = len(carried), moved[0].shape[0]
    if is_exporting() and not (type(length) is int and length <= UNROLLED_STEPS):
        from torch._higher_order_ops.scan import scan

        def step(state: list[torch.Tensor], rows: list[torch.Tensor]) -> tuple[Any, Any]:
            made = cloned(body)(*state, *rows, *captured)
            return list(made[:count]), list(made[count:])

        # Copies, so that nothing is both carried and captured (see `traced_loop`).
        last, stacked = scan(step, [value.clone() for value in carried], moved)
        carried, results = tuple(last), list(stacked)
    else:
        rows: list[tuple[torch.Tensor, ...]] = []
        for index in range(length):
            made = body(*carried, *(sequence[index] for sequence in moved), *captured)
            carried = tuple(made[:count])
            rows.append(tuple(made[count:]))
        results = [torch.stack(column) for column in zip(*rows, strict=True)]
    for place, backwards in enumerate(output_directions):
        results[place] = results[place].flip(0) if backwards else results[place]
    for place, axis in enumerate(output_axes):
        results[place] = results[place].movedim(0, axis)
    return (*carried, *results)


def sequence_map(
    body: Callable[..., tuple[Any, ...]],
    sequences: tuple[Any, ...],
    is_sequence: Sequence[bool],
    captured: tuple[Any, ...] = (),
) -> tuple[list[Any], ...]:
    """ONNX SequenceMap: `body` on each element; inputs that are no sequence go to every call."""
    length = next(
        len(value) for value, is_list in zip(sequences, is_sequence, strict=True) if is_list
    )
    made = []
    for index in range(length):
        pairs = zip(sequences, is_sequence, strict=True)
        made.append(body(*(v[index] if is_list else v for v, is_list in pairs), *captured))
    return tuple(list(column) for column in zip(*made, strict=True))
