"""What a family of architectures is: its names in either world, and what its metadata say."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convkit.checkpoint.rows import Array
from convkit.errors import ModelError, UnsupportedError
from convkit.families.changes import SAME, Change
from convkit.families.config import Config

Shape = tuple[int, ...]
"""A shape in GGUF, row-major."""


@dataclass(frozen=True)
class Source:
    """Where a GGUF tensor comes from in a checkpoint.

    Attributes:
        names: of the tensors behind it, in order.
        change: how they become it.
    """

    names: tuple[str, ...]
    change: Change = SAME


@dataclass(frozen=True)
class Entry:
    """A tensor of GGUF and the tensors of a checkpoint behind it.

    Attributes:
        gguf: its name in GGUF.
        shape: in GGUF.
        sources: spellings in checkpoints; the first whose tensors are all there serves, and the
            first of all is what is written on the way back.
    """

    gguf: str
    shape: Shape
    sources: tuple[Source, ...]


Read = Callable[..., Any]
"""(key, default) -> a metadata value as Python has it; `ARCH` in the key is the architecture."""


@dataclass(frozen=True)
class Stored:
    """What the inverse of a family reads: a GGUF file.

    Attributes:
        get: metadata.
        shapes: tensor name -> shape, row-major.
        small: the tensors that speak of positions, read: name -> float32.
    """

    get: Read
    shapes: Mapping[str, tuple[int, ...]]
    small: Mapping[str, Array] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a matrix that every model of the family has.

        Raises:
            ModelError: it is missing, or no matrix.
        """
        shape = self.shapes.get(name, ())
        if len(shape) != 2:
            raise ModelError(
                f"The tensor '{name}' is {'no matrix' if shape else 'missing'}.",
                hint="Download or convert the file again.",
            )
        return shape


def _any(config: Config) -> None:
    """Takes every configuration."""


def _none(given: Any) -> dict[str, Any]:
    """Nothing."""
    return {}


def _silent(config: Config) -> tuple[str, ...]:
    """Nothing to say."""
    return ()


@dataclass(frozen=True)
class Family:
    """A family of architectures that llama.cpp runs with one graph.

    Attributes:
        architecture: `general.architecture`.
        model_types: `model_type` of the configurations it takes.
        classes: transformers' classes it takes; what others compute is not what llama.cpp does.
        entries: the tensors, from a configuration.
        metadata: `ARCH.*` and what else it has to say; the vocabulary is not its matter.
        config: a configuration from a GGUF file, so that transformers computes the same.
        demands: key of a configuration -> values it may have; absent keys are fine.
        check: raises UnsupportedError where values do not go together.
        notes: sentences for the report on what llama.cpp does otherwise than transformers.
        aliases: (beginning of a name here, beginning in some checkpoints).
        dropped: regular expression over names in a checkpoint -> why they are not needed.
        tied: a tensor that some checkpoints hold once more -> the one that it has to equal.
        derived: tensors of GGUF that are computed from the configuration.
        beside: metadata from files beside the model, from its folder.
        files: JSON files to write beside `config.json` on the way back: relative path -> content.
        gives_embeddings: whether it gives a vector per token instead of the next token.
    """

    architecture: str
    model_types: tuple[str, ...]
    classes: tuple[str, ...]
    entries: Callable[[Config], Iterator[Entry]]
    metadata: Callable[[Config], dict[str, Any]]
    config: Callable[[Stored], dict[str, Any]]
    demands: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    check: Callable[[Config], None] = _any
    notes: Callable[[Config], tuple[str, ...]] = _silent
    aliases: tuple[tuple[str, str], ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Config], dict[str, Array]] = _none
    beside: Callable[[Path], dict[str, Any]] = _none
    files: Callable[[Stored], dict[str, Any]] = _none
    gives_embeddings: bool = False


@functools.cache
def families() -> tuple[Family, ...]:
    """All families there are."""
    from convkit.families import known

    names = sorted(found.name for found in pkgutil.iter_modules(known.__path__))
    modules = (importlib.import_module(f"{known.__name__}.{name}") for name in names)
    return tuple(module.FAMILY for module in modules)


def family_of(config: Config, names: Sequence[str] = ()) -> Family:
    """The family of a configuration.

    Args:
        config: of the model.
        names: of its tensors; with them an unknown architecture is told what it is nearest to.

    Raises:
        UnsupportedError: no family, another class, or an option that GGUF cannot express.
    """
    found = next((f for f in families() if config.model_type in f.model_types), None)
    if found is None:
        from convkit.families.nearest import unknown_model_type

        raise unknown_model_type(config, names, families())
    classes = config.whole.get("architectures") or found.classes[:1]
    if classes[0] not in found.classes:
        raise UnsupportedError(
            f"{classes[0]} is no network that llama.cpp runs.",
            why=f"Of model type '{config.model_type}' it runs {', '.join(found.classes)}.",
        )
    for key, accepted in found.demands.items():
        if key in config and config[key] not in accepted:
            wanted = " or ".join(repr(value) for value in accepted)
            raise UnsupportedError(
                f"llama.cpp's {found.architecture} has no {key} = {config[key]!r}.",
                why=f"It computes with {wanted}; the result would be another model.",
                option=key,
            )
    found.check(config)
    return found


def family_of_architecture(
    architecture: str, stored: Callable[[], Stored] | None = None, path: Path | None = None
) -> Family:
    """The family of a GGUF file.

    Args:
        architecture: as the file says.
        stored: gives what the file holds; with it an unknown architecture is told what it lacks.
        path: of the file.

    Raises:
        UnsupportedError: there is none; names the nearest.
    """
    found = next((family for family in families() if family.architecture == architecture), None)
    if found is None:
        from convkit.families.nearest import unknown_architecture

        raise unknown_architecture(architecture, families(), stored() if stored else None, path)
    return found
