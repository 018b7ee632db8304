"""What a family of architectures is: its names in either world, and what its metadata say."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher, get_close_matches
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
        raise _unknown(config, names)
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


def family_of_architecture(architecture: str) -> Family:
    """The family of a GGUF file.

    Raises:
        UnsupportedError: there is none; names the nearest.
    """
    known = {family.architecture: family for family in families()}
    if architecture not in known:
        near = get_close_matches(architecture, known, n=1, cutoff=0.4)
        raise UnsupportedError(
            f"GGUF architecture '{architecture}' has no way back to Hugging Face yet.",
            why=[f"Known: {', '.join(sorted(known))}", *(f"Nearest: {name}" for name in near)],
        )
    return known[architecture]


def _unknown(config: Config, names: Sequence[str]) -> UnsupportedError:
    """An error that says which family comes nearest, and what it has no place for."""
    known = {kind: family for family in families() for kind in family.model_types}
    why = [f"Known model types: {', '.join(sorted(known))}"]
    fits = [(fit, family) for family in families() if (fit := _fit(family, config, names))]
    if fits:
        fit, nearest = max(fits, key=lambda pair: pair[0].rank)
        why.append(f"Nearest: {nearest.architecture} ({nearest.model_types[0]})")
        if fit.foreign:
            why.append(f"which has no place for {', '.join(fit.foreign[:3])}")
        if fit.missing:
            why.append(f"and needs {', '.join(fit.missing[:3])}")
    near = get_close_matches(config.model_type, known, n=1, cutoff=0.7)
    return UnsupportedError(
        f"Model type '{config.model_type}' has no translation to GGUF.",
        why=why,
        hint=f"Did you mean '{near[0]}' in config.json?" if near else "",
        model_type=config.model_type,
    )


@dataclass(frozen=True)
class _Fit:
    share: float
    likeness: float
    foreign: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def rank(self) -> tuple[float, int, float]:
        """What is placed counts most, then what is not missed, then the name."""
        return self.share, -len(self.missing), self.likeness


def _fit(family: Family, config: Config, names: Sequence[str]) -> _Fit | None:
    """How much of a checkpoint a family could place; None where it cannot even be asked."""
    try:
        entries = list(family.entries(config))
    except Exception:  # a configuration of another kind lacks what this family asks it for
        return None
    placed = {name for one in entries for source in one.sources for name in source.names}
    placed |= family.tied.keys()
    needed = {one.sources[0].names[0] for one in entries}
    present = set(names)
    shared = placed & present
    if not shared:
        return None
    likeness = max(
        SequenceMatcher(None, config.model_type, kind).ratio() for kind in family.model_types
    )
    return _Fit(
        len(shared) / len(present),
        likeness,
        tuple(name for name in names if name not in placed),
        tuple(sorted(needed - present)),
    )
