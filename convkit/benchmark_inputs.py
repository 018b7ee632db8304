"""The inputs that models are measured on: the same for all, at every batch that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from convkit import samples
from convkit.artifact import Dimension, TensorSpec
from convkit.errors import SamplesError
from convkit.step import Feeds

Specs = Sequence[TensorSpec]


def check_alike(names: Sequence[str], models: Sequence[Specs]) -> None:
    """Whether all models can be given what the first one takes, but for the batch.

    Args:
        names: of the models, for the error.
        models: their input specs; of one that does not carry any nothing is asked.

    Raises:
        SamplesError: one cannot.
    """
    name, first = names[0], models[0]
    for other, specs in zip(names[1:], models[1:], strict=True):
        if first and specs and not _is_alike(first, specs):
            raise SamplesError(
                f"{other} does not take the inputs of {name}.",
                why=(
                    f"{name}: {'; '.join(map(str, first))}",
                    f"{other}: {'; '.join(map(str, specs))}",
                ),
                hint="Measure them one by one:  convkit bench MODEL",
            )


def _is_alike(first: Specs, other: Specs) -> bool:
    return len(first) == len(other) and all(
        len(one.shape) == len(two.shape)
        and all(_agree(*sizes) for sizes in list(zip(one.shape, two.shape, strict=True))[1:])
        for one, two in _pairs(first, other)
    )


def _agree(one: Dimension, two: Dimension) -> bool:
    return isinstance(one, str) or isinstance(two, str) or one == two


def _pairs(first: Specs, other: Specs) -> Iterator[tuple[TensorSpec, TensorSpec]]:
    """Inputs that belong together: by name where all are alike, else by order."""
    named = {spec.name: spec for spec in other}
    if {spec.name for spec in first} == set(named):
        return iter([(spec, named[spec.name]) for spec in first])
    return zip(first, other, strict=False)


def batches_for(models: Sequence[Specs], asked: Sequence[int], examples: Path | None) -> list[int]:
    """The batches to measure at: as asked, else as the user's sample has it, else as models fix it.

    Raises:
        SamplesError: the samples cannot be read.
    """
    if asked:
        return list(dict.fromkeys(asked))
    if examples is not None and not samples.is_text(examples):
        arrays = samples.read(examples)[0].values()
        return [next((array.shape[0] for array in arrays if array.ndim), 1)]
    fixed = (_fixed_batch(specs) for specs in models)
    return [next((size for size in fixed if size is not None), 1)]


def takes(specs: Specs, batch: int) -> bool:
    """Whether a model takes this batch at all."""
    return _fixed_batch(specs) in (None, batch)


def source_for(models: Sequence[Specs], batch: int) -> int | None:
    """Which model to draw inputs from: the first one that takes the batch; None where none does."""
    return next((at for at, specs in enumerate(models) if takes(specs, batch)), None)


def _fixed_batch(specs: Specs) -> int | None:
    """The only batch that a model takes; None where it takes any, or has no batch."""
    if samples.batch_names(specs):
        return None
    sizes = (spec.shape[0] for spec in specs if len(spec.shape) > 1)
    return next((size for size in sizes if isinstance(size, int)), None)


def shared_sizes(models: Sequence[Specs], source: int, batch: int) -> dict[str, int]:
    """Sizes for one model's dynamic dimensions: the batch, and what any other model fixes."""
    own = models[source]
    sizes = {
        name: size
        for specs in models
        for one, two in _pairs(own, specs)
        for name, size in zip(one.shape, two.shape, strict=False)
        if isinstance(name, str) and isinstance(size, int)
    }
    return sizes | dict.fromkeys(samples.batch_names(own), batch)


def shown(feeds: Feeds) -> str:
    """Inputs as people read them."""
    return "; ".join(
        f"{name}: {array.dtype.name}[{', '.join(map(str, array.shape))}]"
        for name, array in feeds.items()
    )
