"""Runs a frozen graph: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence

from convkit.artifact import TensorSpec
from convkit.errors import StepError
from convkit.step import Feeds, Outputs, Runner, Sizes
from convkit.tensorflow_feeds import draw_example
from convkit.tensorflow_graph import FrozenGraph, GraphRunner


class FrozenGraphRunner(Runner):
    """A frozen graph in a session, on the CPU.

    Args:
        frozen: the graph.
        name: the model's name, for messages.
        inputs: specs that take the place of the graph's own.
    """

    def __init__(self, frozen: FrozenGraph, name: str, inputs: Sequence[TensorSpec] = ()) -> None:
        self._frozen = frozen
        self._name = name
        self._graph: GraphRunner | None = GraphRunner(frozen)
        self.inputs = tuple(inputs) or tuple(port.spec for port in frozen.inputs)
        self.outputs = tuple(port.spec for port in frozen.outputs)

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name, in the graph's order.

        Raises:
            SamplesError: an input is missing, or TensorFlow refuses it.
            StepError: the graph fails, or was closed.
        """
        if self._graph is None:
            raise StepError("This model was closed.")
        return self._graph(feeds)

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Seeded inputs the graph makes sense of; ids lie within the tables they look up."""
        return draw_example(self._name, self.inputs, sizes, seed, lambda: self._frozen)

    def close(self) -> None:
        """Closes the session."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
