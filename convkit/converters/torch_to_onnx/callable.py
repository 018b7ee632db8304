"""A network as exporters want it: tensors in by position, a flat tuple of tensors out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convkit.artifact import TensorSpec
from convkit.errors import StepError
from convkit.step import Feeds
from convkit.torch_values import named_tensors, parameters_of, to_tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prepared:
    """A network ready for export.

    Attributes:
        module: takes one tensor per spec, by position.
        arguments: example tensors.
        specs: the inputs that are tensors; plain numbers became part of the module.
        constants: input name -> the number it was fixed to.
    """

    module: torch.nn.Module
    arguments: tuple[torch.Tensor, ...]
    specs: tuple[TensorSpec, ...]
    constants: dict[str, Any]


def prepare(network: torch.nn.Module, specs: Sequence[TensorSpec], feeds: Feeds) -> Prepared:
    """Wraps a network for export with these example inputs."""
    import torch

    class Flat(torch.nn.Module):
        """Calls the network by name and flattens what it returns."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = dict(zip(names, tensors, strict=True)) | constants
            result = network(**given) if by_name else network(*(given[s.name] for s in specs))
            return tuple(tensor for _, tensor in named_tensors(result))

    parameters = parameters_of(network)
    by_name = all(spec.name in parameters for spec in specs)
    constants: dict[str, Any] = {}
    kept = []
    for spec in specs:
        number = parameters.get(spec.name)
        if number is not None and not spec.shape:
            constants[spec.name] = number(feeds[spec.name].item())
        else:
            kept.append(spec)
    names = [spec.name for spec in kept]
    if not names:
        raise StepError("The model takes no tensors, so there is nothing to export.")
    arguments = tuple(to_tensor(feeds[name]) for name in names)
    return Prepared(Flat().eval(), arguments, tuple(kept), constants)


def best_sample(samples: Sequence[Feeds], specs: Sequence[TensorSpec]) -> Feeds:
    """The sample to export with: dynamic sizes at least 2 and different from one another.

    Exporters take a size of 1 for a constant, and two equal sizes for one and the same.
    """

    def merit(feeds: Feeds) -> tuple[int, int]:
        sizes = {
            name: feeds[spec.name].shape[axis]
            for spec in specs
            if spec.name in feeds
            for axis, name in enumerate(spec.shape)
            if isinstance(name, str)
        }
        large = sum(size >= 2 for size in sizes.values())
        return large, len(set(sizes.values()))

    return max(samples, key=merit)


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keeps exporters' chatter (prints, log lines, warnings, progress bars) off the terminal.

    Yields what was printed.
    """
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()) as said:
            warnings.simplefilter("ignore")
            with redirect_stderr(said):
                yield said
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" =-")]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
