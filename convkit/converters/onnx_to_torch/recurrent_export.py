"""Keeps LSTM, GRU and RNN whole while a network is exported.

PyTorch writes a recurrent operator out step by step when it exports, which fixes the length of the
sequence. Its exported programs can hold the operator itself (`aten.lstm.input`), with any length;
they only lack a rule for its shapes. So the step-by-step rules are exchanged for shape rules while
a network is captured.

Source: PyTorch 2.13, torch/_ops.py (`OpOverload.py_kernels`, `_dispatch_cache`) and
torch/_decomp/decompositions.py (the rules that write the steps out).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def recurrent_kept() -> Iterator[None]:
    """Within, recurrent operators stay one node, whatever the length of their sequences."""
    import torch
    from torch._C import DispatchKey

    aten = torch.ops.aten
    rules: dict[Any, Any] = {
        aten.lstm.input: _lstm_shapes,
        aten.gru.input: _rnn_shapes,
        aten.rnn_tanh.input: _rnn_shapes,
        aten.rnn_relu.input: _rnn_shapes,
    }
    before = {operator: dict(operator.py_kernels) for operator in rules}
    try:
        for operator, rule in rules.items():
            operator.py_kernels.pop(DispatchKey.Autograd, None)
            operator.py_kernels[DispatchKey.CompositeImplicitAutograd] = rule
            operator.py_kernels[DispatchKey.Meta] = rule
            operator._dispatch_cache.clear()
        yield
    finally:
        for operator, kernels in before.items():
            operator.py_kernels.clear()
            operator.py_kernels.update(kernels)
            operator._dispatch_cache.clear()


def _lstm_shapes(
    data: torch.Tensor,
    state: list[torch.Tensor],
    parameters: list[torch.Tensor],
    has_biases: bool,
    layer_count: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Empty results of the right shapes; without a batch axis data have two axes."""
    import torch

    hidden, cell = state
    sequence = _sequence(data, hidden, bidirectional)
    return sequence, torch.empty_like(hidden), torch.empty_like(cell)


def _rnn_shapes(
    data: torch.Tensor,
    hidden: torch.Tensor,
    parameters: list[torch.Tensor],
    has_biases: bool,
    layer_count: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without a cell state."""
    import torch

    return _sequence(data, hidden, bidirectional), torch.empty_like(hidden)


def _sequence(data: torch.Tensor, hidden: torch.Tensor, bidirectional: bool) -> Any:
    width = hidden.shape[-1] * (2 if bidirectional else 1)
    return data.new_empty([*data.shape[:-1], width])
