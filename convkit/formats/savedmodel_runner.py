"""Runs a SavedModel's signature in a session: arrays in, arrays out."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Opening, TensorSpec
from convkit.errors import StepError
from convkit.step import Feeds, Outputs, Runner, Sizes
from convkit.tensorflow_feeds import arranged, draw_example
from convkit.tensorflow_graph import freeze_saved_model, run
from convkit.tensorflow_session import SavedModelSession
from convkit.tensorflow_signature import channels_last_names


class SavedModelRunner(Runner):
    """A loaded SavedModel, on the CPU.

    Args:
        path: its folder.
        opening: which signature; specs that take the place of the signature's inputs.
        saver: what restores the variables before each call, for a signature that assigns them.
        looks_up: whether the graph looks anything up in a table.
    """

    def __init__(
        self, path: Path, opening: Opening, saver: tuple[str, ...] = (), looks_up: bool = True
    ) -> None:
        self._path = path
        self._opened: SavedModelSession | None = SavedModelSession(path, opening.signature)
        signature = self._opened.signature
        self._ports = signature.inputs
        self.channels_last = channels_last_names(path)
        self.inputs = self._specs(opening)
        self.outputs = tuple(port.spec for port in signature.outputs)
        self._saver = saver
        self._looks_up = looks_up
        self._call = self._opened.session.make_callable(
            [port.tensor for port in signature.outputs],
            feed_list=[port.tensor for port in signature.inputs],
        )

    def _specs(self, opening: Opening) -> tuple[TensorSpec, ...]:
        """As given; but what has its channels elsewhere than in its source, as the model says."""
        own = {port.name: port.spec for port in self._ports}
        moved = {name: own[name] for name in self.channels_last if name in own}
        given = opening.inputs or tuple(own.values())
        return tuple(moved.get(spec.name, spec) for spec in given)

    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name, in the signature's order.

        Raises:
            SamplesError: an input is missing, or TensorFlow refuses it.
            StepError: the model fails, or was closed.
        """
        if self._opened is None:
            raise StepError("This model was closed.")
        if self._saver:
            file, restore = self._saver
            variables = str(self._path / "variables" / "variables")
            self._opened.session.run(restore, {file: variables})
        arrays = run(self._call, arranged(feeds, self._ports))
        return dict(zip((spec.name for spec in self.outputs), arrays, strict=True))

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Seeded inputs the model makes sense of; ids lie within the tables they look up."""
        signature = self._opened.signature.name if self._opened else None
        return draw_example(
            self._path.name,
            self.inputs,
            sizes,
            seed,
            lambda: freeze_saved_model(self._path, signature),
            looks_up=self._looks_up,
        )

    def close(self) -> None:
        """Closes the session."""
        if self._opened is not None:
            self._opened.session.close()
            self._opened = None
