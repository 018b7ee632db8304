"""A model whose channels were moved to the end, as its source has them: on the second axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkit.artifact import TensorSpec
from convkit.step import Feeds, Outputs, Runner, Sizes


def as_in_source(runner: Runner, names: frozenset[str]) -> Runner:
    """The runner with these inputs and outputs in their source's order; itself for none."""
    return _ChannelsSecond(runner, names) if names else runner


class _ChannelsSecond(Runner):
    """Takes and gives arrays with channels second, for a model that has them last."""

    def __init__(self, runner: Runner, names: frozenset[str]) -> None:
        self._runner = runner
        self._names = names
        self.inputs = self._second(runner.inputs)
        self.outputs = self._second(runner.outputs)
        self.resolution = runner.resolution

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name, their channels second."""
        return self._moved(self._runner(self._moved(feeds, 1, -1)), -1, 1)

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Inputs the model makes sense of, their channels second."""
        return self._moved(self._runner.example(sizes, seed), -1, 1)

    def _moved(self, arrays: Any, source: int, target: int) -> dict[str, np.ndarray[Any, Any]]:
        return {
            name: np.ascontiguousarray(np.moveaxis(array, source, target))
            if name in self._names and array.ndim > 2
            else array
            for name, array in arrays.items()
        }

    def _second(self, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(s.name, s.dtype, (s.shape[0], s.shape[-1], *s.shape[1:-1]))
            if s.name in self._names and len(s.shape) > 2
            else s
            for s in specs
        )
