"""How a ScriptModule is called and what its results are named, for exporters."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from convkit.artifact import Artifact, TensorSpec
from convkit.converters.torch_graph_log import graph_log_off
from convkit.step import Feeds, Work
from convkit.torch_values import NUMBERS, to_tensor


@dataclass(frozen=True)
class Call:
    """A module's arguments by position, with the samples to feed them.

    Attributes:
        module: the ScriptModule, yours alone.
        specs: of the inputs that are fed, in the order of `forward`'s arguments.
        outputs: names of the outputs, in order.
        samples: inputs the source accepts; `example` is the one to export with.
    """

    module: Any
    specs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    samples: Sequence[Feeds]

    @property
    def example(self) -> Feeds:
        """The first sample in which no dynamic dimension is 0 or 1, which exporters would fix."""
        for feeds in self.samples:
            sizes = [
                size
                for spec in self.specs
                for size, name in zip(feeds[spec.name].shape, spec.shape, strict=False)
                if isinstance(name, str)
            ]
            if all(size > 1 for size in sizes):
                return feeds
        return self.samples[-1]

    @property
    def number_names(self) -> tuple[str, ...]:
        """Arguments that are Python numbers, not tensors."""
        fed = {spec.name for spec in self.specs}
        arguments = self._arguments()
        return tuple(a.name for a in arguments if a.name in fed and str(a.type) in NUMBERS)

    def arguments(self, feeds: Feeds, *, numbers: bool) -> tuple[Any, ...]:
        """Positional arguments; None for an optional one that is not fed.

        Args:
            feeds: arrays by name.
            numbers: number arguments as Python numbers; else as 0-d tensors, which keeps them
                inputs of an exported graph.
        """
        values: list[Any] = []
        for argument in self._arguments():
            convert = NUMBERS.get(str(argument.type))
            if argument.name not in feeds:
                values.append(None)
            elif convert is not None and numbers:
                values.append(convert(feeds[argument.name].item()))
            else:
                values.append(to_tensor(feeds[argument.name]))
        while values and values[-1] is None:
            values.pop()
        return tuple(values)

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Input name -> axis -> name of the dynamic dimension there."""
        return {
            spec.name: {i: size for i, size in enumerate(spec.shape) if isinstance(size, str)}
            for spec in self.specs
            if spec.dynamic
        }

    def _arguments(self) -> list[Any]:
        return list(self.module.forward.schema.arguments[1:])


def call_of(source: Artifact, work: Work) -> Call:
    """A freshly loaded module with its specs, output names and samples."""
    from convkit import samples

    module = work.load(source)
    given = source.inputs or source.opening.inputs or samples.specs_of(work.samples)
    order = [argument.name for argument in module.forward.schema.arguments[1:]]
    specs = sorted((s for s in given if s.name in order), key=lambda spec: order.index(spec.name))
    outputs = tuple(spec.name for spec in source.outputs)
    return Call(module, tuple(specs), outputs, work.samples)


def private_copy(call: Call) -> Call:
    """The same call on a copy of the module, for rewriting its graph."""
    import torch

    with quiet_exporters():
        buffer = io.BytesIO(call.module.save_to_buffer())
        module = torch.jit.load(buffer, map_location="cpu").eval()
    return replace(call, module=module)


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Keeps exporters from writing to the terminal: deprecations, graphs, progress."""
    import logging

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            graph_log_off(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
