"""Runs a PyTorch network eagerly on the CPU: arrays in, arrays out, outputs by name."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convkit.artifact import TensorSpec
from convkit.errors import SamplesError, StepError
from convkit.step import Feeds, Outputs, Runner, Sizes
from convkit.torch_values import named_tensors, parameters_of, to_argument, to_array

if TYPE_CHECKING:
    import torch

Example = Callable[[Sizes, int], Feeds]
"""Makes seeded inputs for sizes of the dynamic dimensions."""


class TorchRunner(Runner):
    """A network in evaluation mode, run under `torch.inference_mode`.

    Output specs are known after the first call; a dimension that followed a dynamic input
    dimension in every call so far, through at least two sizes, carries its name.
    """

    def __init__(
        self, network: torch.nn.Module, inputs: Sequence[TensorSpec], example: Example
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs: tuple[TensorSpec, ...] = ()
        self._network: torch.nn.Module | None = network
        self._example = example
        self._parameters = parameters_of(network)
        # PyTorch computes in the type of the weights.
        self.rounds_activations = any(
            str(parameter.dtype) == "torch.bfloat16" for parameter in network.parameters()
        )
        self._seen: list[tuple[dict[str, int], dict[str, tuple[str, tuple[int, ...]]]]] = []

    @property
    def network(self) -> torch.nn.Module:
        """What computes.

        Raises:
            StepError: the model was closed.
        """
        if self._network is None:
            raise StepError("This model was closed.")
        return self._network

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name.

        Raises:
            SamplesError: an input is missing.
            StepError: the model was closed.
        """
        import torch

        network = self.network
        reset = getattr(network, "reset_states", None)
        if callable(reset):
            reset()
        positional, named = self._arguments(feeds)
        try:
            with torch.inference_mode():
                result = network(*positional, **named)
        except SystemExit as cause:  # no model ends the process that runs it
            raise StepError("The network asked to end the process.", why=repr(cause)) from cause
        arrays = {name: to_array(tensor) for name, tensor in named_tensors(result)}
        self._learn(feeds, arrays)
        return arrays

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Seeded inputs the network makes sense of."""
        return self._example(sizes, seed)

    def close(self) -> None:
        """Lets the network go."""
        self._network = None
        gc.collect()

    def _arguments(self, feeds: Feeds) -> tuple[list[Any], dict[str, Any]]:
        missing = [spec.name for spec in self.inputs if spec.name not in feeds]
        if missing:
            raise SamplesError(
                f"The model takes '{missing[0]}', which the inputs lack.",
                why=f"They have: {', '.join(feeds)}",
            )
        values = {
            spec.name: to_argument(feeds[spec.name], self._parameters.get(spec.name))
            for spec in self.inputs
        }
        tree = getattr(self._network, "_in_spec", None)
        if tree is not None and tree.num_leaves == len(values):
            # An exported program takes arguments exactly as it was exported with.
            from torch.utils import _pytree

            positional, named = _pytree.tree_unflatten(list(values.values()), tree)
            return list(positional), dict(named)
        unknown = [name for name in values if name not in self._parameters]
        if not unknown:
            return [], values
        if len(unknown) < len(values):  # with all names foreign, their order decides
            raise SamplesError(
                f"The network takes no '{unknown[0]}'.",
                why=f"It takes: {', '.join(self._parameters)}",
                hint="Name the inputs like the network's arguments.",
            )
        return list(values.values()), {}

    def _learn(self, feeds: Feeds, arrays: Mapping[str, Any]) -> None:
        bound = {
            size: feeds[spec.name].shape[axis]
            for spec in self.inputs
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str)
        }
        seen = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        self._seen = [*self._seen[-7:], (bound, seen)]
        self.outputs = tuple(self._output_spec(name, seen[name]) for name in seen)

    def _output_spec(self, name: str, last: tuple[str, tuple[int, ...]]) -> TensorSpec:
        dtype, shape = last
        calls = [
            (bound, shapes[name][1])
            for bound, shapes in self._seen
            if name in shapes and len(shapes[name][1]) == len(shape)
        ]
        return TensorSpec(name, dtype, tuple(_dimension(name, a, calls) for a in range(len(shape))))


def _dimension(
    name: str, axis: int, calls: Sequence[tuple[Mapping[str, int], tuple[int, ...]]]
) -> int | str:
    sizes = [shape[axis] for _, shape in calls]
    if len(set(sizes)) == 1:
        return sizes[0]
    candidates = set.intersection(*(set(bound) for bound, _ in calls))
    for candidate in sorted(candidates):
        if all(bound[candidate] == shape[axis] for bound, shape in calls):
            return candidate
    return f"{name}_dim{axis}"
