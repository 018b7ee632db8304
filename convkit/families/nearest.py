"""Of an architecture that no family is of: which family comes nearest, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

from convkit.errors import UnsupportedError
from convkit.families.config import Config
from convkit.families.family import Entry, Family, Stored

_NAMED = 3


@dataclass(frozen=True)
class Fit:
    """How much of a model's tensors a family could place.

    Attributes:
        family: the family.
        share: of the tensors that it could.
        likeness: of the names of the architectures, 0 to 1.
        foreign: tensors it has no place for.
        missing: tensors it needs that the model lacks.
    """

    family: Family
    share: float
    likeness: float
    foreign: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def rank(self) -> tuple[float, int, float]:
        """What is placed counts most, then what is not missed, then the name."""
        return self.share, -len(self.missing), self.likeness

    @property
    def is_whole(self) -> bool:
        """Whether the names of tensors speak for nothing else."""
        return not self.foreign and not self.missing

    def told(self) -> Iterator[str]:
        """Lines for a message."""
        yield f"Nearest: {self.family.architecture} ({self.family.model_types[0]})"
        if self.foreign:
            yield f"which has no place for {', '.join(self.foreign[:_NAMED])}"
        if self.missing:
            yield f"and needs {', '.join(self.missing[:_NAMED])}"


def unknown_model_type(
    config: Config, names: Sequence[str], families: Iterable[Family]
) -> UnsupportedError:
    """An error about a checkpoint.

    Args:
        config: of the model.
        names: of its tensors.
        families: all there are.
    """
    families = tuple(families)
    known = {kind: family for family in families for kind in family.model_types}
    nearest = _nearest(
        families,
        names,
        lambda family: _in_checkpoint(family, list(family.entries(config))),
        lambda family: [(config.model_type, kind) for kind in family.model_types],
    )
    near = get_close_matches(config.model_type, known, n=1, cutoff=0.7)
    is_spelling = near and (nearest is None or nearest.is_whole)
    told = nearest.told() if nearest else ()
    return UnsupportedError(
        f"Model type '{config.model_type}' has no translation to GGUF.",
        why=[f"Known model types: {', '.join(sorted(known))}", *told],
        hint=f"Did you mean '{near[0]}' in config.json?"
        if is_spelling
        else "Networks that transformers has become ONNX graphs:  --to onnx",
        model_type=config.model_type,
    )


def unknown_architecture(
    architecture: str,
    families: Iterable[Family],
    stored: Stored | None = None,
    path: Path | None = None,
) -> UnsupportedError:
    """An error about a GGUF file.

    Args:
        architecture: as the file says.
        families: all there are.
        stored: what the file holds.
        path: of the file.
    """
    families = tuple(families)
    known = {family.architecture: family for family in families}
    nearest = None
    if stored is not None:
        nearest = _nearest(
            families,
            tuple(stored.shapes),
            lambda family: _in_file(list(family.entries(Config(family.config(stored))))),
            lambda family: [(architecture, family.architecture)],
        )
    near = get_close_matches(architecture, known, n=1, cutoff=0.4)
    told = list(nearest.told()) if nearest else [f"Nearest: {name}" for name in near]
    what = f"{path} is of GGUF architecture" if path else "GGUF architecture"
    joint = ", which has" if path else " has"
    return UnsupportedError(
        f"{what} '{architecture}'{joint} no way back to Hugging Face yet.",
        why=[f"Known: {', '.join(sorted(known))}", *told],
        hint=f"What llama.cpp runs can be quantized:  convkit convert {path} --to gguf --q4"
        if path
        else "",
        architecture=architecture,
    )


_Places = tuple[set[str], set[str]]
"""Names of tensors that a family has a place for, and of those that it needs."""


def _in_checkpoint(family: Family, entries: Sequence[Entry]) -> _Places:
    placed = {name for one in entries for source in one.sources for name in source.names}
    return placed | family.tied.keys(), {one.sources[0].names[0] for one in entries}


def _in_file(entries: Sequence[Entry]) -> _Places:
    names = {one.gguf for one in entries}
    return names, names


def _nearest(
    families: Iterable[Family],
    names: Sequence[str],
    places: Callable[[Family], _Places],
    pairs: Callable[[Family], Sequence[tuple[str, str]]],
) -> Fit | None:
    fits = []
    present = set(names)
    for family in families:
        try:
            placed, needed = places(family)
        except Exception:  # a configuration of another kind lacks what this family asks it for
            continue
        shared = placed & present
        if shared:
            likeness = max(SequenceMatcher(None, *pair).ratio() for pair in pairs(family))
            foreign = tuple(name for name in names if name not in placed)
            missing = tuple(sorted(needed - present))
            fits.append(Fit(family, len(shared) / len(present), likeness, foreign, missing))
    return max(fits, key=lambda fit: fit.rank, default=None)
