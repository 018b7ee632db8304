"""RNN, GRU and LSTM: PyTorch's own where it computes the same, else step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.recurrent_cells import (
    Cell,
    chosen_activations,
    gru_cell,
    lstm_cell,
    rnn_cell,
)
from convkit.converters.onnx_to_torch.operators.slicing import reverse_sequence

# Where PyTorch's gates are found among ONNX's.
LSTM_GATES = (0, 2, 3, 1)  # input, forget, cell, output from input, output, forget, cell
GRU_GATES = (1, 0, 2)  # reset, update, hidden from update, reset, hidden


def rnn(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: torch.Tensor | None = None,
    initial_h: torch.Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_count: int = 2,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX RNN."""
    names = [name.lower() for name in activations or ["Tanh"] * w.shape[0]]
    plain = sequence_lens is None and clip is None and len(set(names)) == 1
    if plain and names[0] in ("tanh", "relu"):
        network = torch.rnn_tanh if names[0] == "tanh" else torch.rnn_relu
        return native_network(
            network, x, w, r, b, (initial_h,), (0,), direction, layout, output_count
        )
    functions = chosen_activations(names, activation_alpha, activation_beta, clip)
    cells = [rnn_cell(r[d], [functions[d]]) for d in range(w.shape[0])]
    biases = None if b is None else b.unflatten(1, (2, -1)).sum(1)
    return stepped(
        x,
        w,
        biases,
        cells,
        r.shape[2],
        (initial_h,),
        sequence_lens,
        direction,
        layout,
        output_count,
    )


def gru(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: torch.Tensor | None = None,
    initial_h: torch.Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_count: int = 2,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX GRU; PyTorch has the variant `linear_before_reset`."""
    names = [name.lower() for name in activations or ["Sigmoid", "Tanh"] * w.shape[0]]
    plain = sequence_lens is None and clip is None and linear_before_reset
    if plain and names == ["sigmoid", "tanh"] * w.shape[0]:
        return native_network(
            torch.gru, x, w, r, b, (initial_h,), GRU_GATES, direction, layout, output_count
        )
    functions = chosen_activations(names, activation_alpha, activation_beta, clip)
    size = r.shape[2]
    cells, biases = [], None
    if b is not None:
        # The hidden gate's recurrent bias belongs to the step, all others to the input part.
        biases = b[:, : 3 * size] + F.pad(b[:, 3 * size : 5 * size], (0, size))
    for d in range(w.shape[0]):
        inner = None if b is None else b[d, 5 * size :]
        cells.append(gru_cell(r[d], inner, functions[2 * d : 2 * d + 2], linear_before_reset))
    return stepped(
        x,
        w,
        biases,
        cells,
        r.shape[2],
        (initial_h,),
        sequence_lens,
        direction,
        layout,
        output_count,
    )


def lstm(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None = None,
    sequence_lens: torch.Tensor | None = None,
    initial_h: torch.Tensor | None = None,
    initial_c: torch.Tensor | None = None,
    p: torch.Tensor | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_count: int = 3,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """ONNX LSTM."""
    names = [name.lower() for name in activations or ["Sigmoid", "Tanh", "Tanh"] * w.shape[0]]
    plain = sequence_lens is None and clip is None and p is None and not input_forget
    initial = (initial_h, initial_c)
    if plain and names == ["sigmoid", "tanh", "tanh"] * w.shape[0]:
        return native_network(
            torch.lstm, x, w, r, b, initial, LSTM_GATES, direction, layout, output_count
        )
    functions = chosen_activations(names, activation_alpha, activation_beta, clip)
    # ONNX Runtime clips what goes into the gates only, not the cell that the output is made of.
    functions[2::3] = chosen_activations(names, activation_alpha, activation_beta, None)[2::3]
    cells = [
        lstm_cell(r[d], None if p is None else p[d], functions[3 * d : 3 * d + 3], input_forget)
        for d in range(w.shape[0])
    ]
    biases = None if b is None else b.unflatten(1, (2, -1)).sum(1)
    return stepped(
        x, w, biases, cells, r.shape[2], initial, sequence_lens, direction, layout, output_count
    )


def initial_state(
    given: torch.Tensor | None, steps: torch.Tensor, directions: int, size: int, layout: int
) -> torch.Tensor:
    """A state to begin with, (directions, batch, hidden); zeros if none is given."""
    if given is not None:
        return given.transpose(0, 1) if layout else given
    return torch.zeros(directions, steps.shape[1], size, dtype=steps.dtype, device=steps.device)


def regrouped(weight: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Rows of a weight or a bias, gate by gate, in PyTorch's order."""
    if len(order) == 1:
        return weight
    gates = weight.chunk(len(order))
    return torch.cat([gates[gate] for gate in order])


def native_network(
    network: Callable[..., tuple[torch.Tensor, ...]],
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None,
    given: tuple[torch.Tensor | None, ...],
    order: tuple[int, ...],
    direction: str,
    layout: int,
    output_count: int,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """`torch.lstm`, `gru`, `rnn_tanh` or `rnn_relu` with ONNX's weights."""
    directions, size = w.shape[0], r.shape[2]
    steps = x.transpose(0, 1) if layout else x
    steps = steps.flip(0) if direction == "reverse" else steps
    states = [initial_state(state, steps, directions, size, layout) for state in given]
    weights = []
    for d in range(directions):
        weights += [regrouped(w[d], order), regrouped(r[d], order)]
        if b is not None:
            weights += [regrouped(half, order) for half in b[d].chunk(2)]
    state = tuple(states) if len(states) > 1 else states[0]
    y, *last = network(steps, state, weights, b is not None, 1, 0.0, False, directions == 2, False)
    y = y.flip(0) if direction == "reverse" else y
    y = y.unflatten(2, (directions, size)).transpose(1, 2)
    return laid_out(y, last, layout, output_count)


def laid_out(
    y: torch.Tensor, last: list[torch.Tensor], layout: int, output_count: int
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Outputs from (steps, directions, batch, hidden), batch first if `layout` says so."""
    if layout:
        y, last = y.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in last]
    return y if output_count == 1 else (y, *last)[:output_count]


def stepped(
    x: torch.Tensor,
    w: torch.Tensor,
    biases: torch.Tensor | None,
    cells: list[Cell],
    hidden: int,
    given: tuple[torch.Tensor | None, ...],
    sequence_lens: torch.Tensor | None,
    direction: str,
    layout: int,
    output_count: int,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Runs each direction's cell over the sequence."""
    steps = x.transpose(0, 1) if layout else x
    states = [initial_state(state, steps, len(cells), hidden, layout) for state in given]
    sequences, finals = [], []
    for d, cell in enumerate(cells):
        backwards = direction == "reverse" or d == 1
        inputs = reversed_steps(steps, sequence_lens) if backwards else steps
        parts = F.linear(inputs, w[d], None if biases is None else biases[d])
        sequence, final = run_cell(cell, parts, tuple(state[d] for state in states), sequence_lens)
        sequences.append(reversed_steps(sequence, sequence_lens) if backwards else sequence)
        finals.append(final)
    last = [torch.stack(states) for states in zip(*finals, strict=True)]
    return laid_out(torch.stack(sequences, 1), last, layout, output_count)


def reversed_steps(steps: torch.Tensor, sequence_lens: torch.Tensor | None) -> torch.Tensor:
    """(steps, batch, ...) backwards, each entry of the batch within its own length."""
    return steps.flip(0) if sequence_lens is None else reverse_sequence(steps, sequence_lens)


def run_cell(
    cell: Cell,
    parts: torch.Tensor,
    states: tuple[torch.Tensor, ...],
    sequence_lens: torch.Tensor | None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """All hidden states, (steps, batch, hidden), and the last states.

    Beyond the end of its own sequence an entry outputs zeros and keeps its states.
    """
    if torch.compiler.is_exporting() and is_symbolic(parts.shape[0]):
        return looped_cell(cell, parts, states, sequence_lens)
    outputs = []
    for step in range(parts.shape[0]):
        fresh = cell(parts[step], *states)
        output, states = stopped(step, fresh, states, sequence_lens)
        outputs.append(output)
    return torch.stack(outputs), states


def is_symbolic(size: object) -> bool:
    """Whether `torch.export` keeps a size open."""
    return not isinstance(size, int)


def stopped(
    step: int | torch.Tensor,
    fresh: tuple[torch.Tensor, ...],
    states: tuple[torch.Tensor, ...],
    sequence_lens: torch.Tensor | None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The output and the states after a step, where sequences that are over stand still."""
    if sequence_lens is None:
        return fresh[0], fresh
    running = (step < sequence_lens).unsqueeze(1)
    kept = [torch.where(running, new, old) for new, old in zip(fresh, states, strict=True)]
    return torch.where(running, fresh[0], 0), tuple(kept)


def looped_cell(
    cell: Cell,
    parts: torch.Tensor,
    states: tuple[torch.Tensor, ...],
    sequence_lens: torch.Tensor | None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """`run_cell` as a loop that `torch.export` keeps, for sequences of any length."""
    count = parts.shape[0]

    def goes_on(step: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return step < count

    def advance(
        step: torch.Tensor, outputs: torch.Tensor, *states: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        part = parts.index_select(0, step.reshape(1)).squeeze(0)
        output, after = stopped(step, cell(part, *states), states, sequence_lens)
        here = (torch.arange(count, device=parts.device) == step).reshape(-1, 1, 1)
        return step + 1, torch.where(here, output, outputs), *(x.clone() for x in after)

    start = torch.zeros((), dtype=torch.int64, device=parts.device)
    empty = torch.zeros(count, *states[0].shape, dtype=parts.dtype, device=parts.device)
    result: tuple[torch.Tensor, ...] = torch.while_loop(
        goes_on, advance, (start, empty, *(x.clone() for x in states))
    )
    return result[1], tuple(result[2:])


OPERATORS = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
