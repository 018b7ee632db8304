"""Watches what enters the weights of a running network: sums of squares, column by column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Inputs:
    """Sums of the squared inputs of a weight, and over how many inputs they run.

    Args:
        shape: of the weight in GGUF: (outputs, inputs) or, of stacked experts, (experts, outputs,
            inputs).

    Attributes:
        sums: (matrices, inputs), float64.
        counts: (matrices,), int64.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        import torch

        matrices = shape[0] if len(shape) > 2 else 1
        self.sums = torch.zeros(matrices, shape[-1], dtype=torch.float64)
        self.counts = torch.zeros(matrices, dtype=torch.int64)

    def add(self, inputs: torch.Tensor, matrix: int) -> None:
        """Takes what enters one matrix: (..., inputs), any floats."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self.sums[matrix] += rows.square().sum(0, dtype=self.sums.dtype)
        self.counts[matrix] += len(rows)


def watch(module: torch.nn.Module, weight: str, inputs: Inputs, matrix: int) -> Any:
    """Has `inputs` take what enters a weight whenever its module is called.

    Args:
        module: a linear map, or experts that hold their weights stacked.
        weight: what the module calls the weight.
        inputs: of the weight.
        matrix: which of its matrices a linear map is; stacked experts are all of them.

    Returns:
        The hook's handle.
    """
    if getattr(module, weight).ndim > 2:
        return module.register_forward_pre_hook(_experts_watched(inputs, _ENTERING[weight]))

    def take(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        inputs.add(arguments[0], matrix)

    return module.register_forward_pre_hook(take)


def _experts_watched(inputs: Inputs, entering: Callable[..., torch.Tensor]) -> Callable[..., None]:
    """A hook on experts, which are called with all tokens and the experts chosen for each."""

    def take(experts: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        tokens, chosen = arguments[:2]  # (tokens, hidden), (tokens, experts of a token)
        for number in chosen.unique().tolist():
            own = tokens[(chosen == number).any(-1)]
            inputs.add(entering(experts, own, number), number)

    return take


def _tokens(experts: Any, tokens: torch.Tensor, number: int) -> torch.Tensor:
    """What enters gate and up."""
    return tokens


def _gated(experts: Any, tokens: torch.Tensor, number: int) -> torch.Tensor:
    """What enters the way down; the experts do not show it, so it is computed once more.

    Source: transformers, `MixtralExperts.forward`; those of Qwen 2 and 3 are the same.
    """
    from torch.nn.functional import linear

    gate, up = linear(tokens, experts.gate_up_proj[number]).chunk(2, dim=-1)
    gated: torch.Tensor = experts.act_fn(gate) * up
    return gated


_ENTERING = {"gate_up_proj": _tokens, "down_proj": _gated}
"""What transformers' experts call a weight -> what enters it."""
