"""Takes the tensors of one world to the other; every one of them is accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convkit.checkpoint.rows import Held, Rows
from convkit.errors import ModelError, UnsupportedError
from convkit.families.config import Config
from convkit.families.family import Entry, Family, Source

_NAMED = 6


@dataclass(frozen=True)
class Mapped:
    """Tensors under their new names.

    Attributes:
        tensors: new name -> tensor, in order.
        dropped: old name -> why it is not needed.
        derived: new names of tensors that have none behind them.
    """

    tensors: Mapping[str, Rows]
    dropped: Mapping[str, str]
    derived: tuple[str, ...] = ()


def to_gguf(
    family: Family, config: Config, tensors: Mapping[str, Rows], others: Iterable[str] = ()
) -> Mapped:
    """A checkpoint's tensors as GGUF has them.

    Args:
        family: of the model.
        config: of the model.
        tensors: name -> tensor.
        others: names of what is no float tensor (tables of positions, masks).

    Raises:
        ModelError: one is missing or of the wrong shape.
        UnsupportedError: one has no place in GGUF.
    """
    made: dict[str, Rows] = {}
    used: set[str] = set()
    for entry in family.entries(config):
        found = _found(entry, family, tensors)
        if found is None:
            if entry.is_optional:
                continue
            raise _missing(entry.sources[0].names, family, tensors)
        names, change = found.names, found.change
        try:
            rows = change.to_gguf([tensors[name] for name in names])
        except ValueError as cause:
            raise ModelError(f"{names[0]} does not fit: {cause}.") from cause
        _check_shape(names[0], rows.shape, entry)
        made[entry.gguf] = rows
        used.update(names)
    derived = {name: Held(array) for name, array in family.derived(config).items()}
    dropped = _accounted(family, [*tensors, *others], used)
    return Mapped({**made, **derived}, dropped, tuple(derived))


def to_torch(family: Family, config: Config, tensors: Mapping[str, Rows]) -> Mapped:
    """A GGUF file's tensors as a checkpoint has them.

    Raises:
        ModelError: one is missing or of the wrong shape.
        UnsupportedError: one has no place in the checkpoint.
    """
    made: dict[str, Rows] = {}
    used = set(family.derived(config))
    for entry in family.entries(config):
        rows = tensors.get(entry.gguf)
        if rows is None:
            if entry.is_optional:
                continue
            raise ModelError(
                f"The tensor '{entry.gguf}' is missing.",
                why=f"Every {family.architecture} model has it.",
                hint="Download or convert the file again.",
            )
        _check_shape(entry.gguf, rows.shape, entry)
        source = entry.sources[0]
        made |= zip(source.names, source.change.to_torch(rows), strict=True)
        used.add(entry.gguf)
    left = [name for name in tensors if name not in used]
    if left:
        raise UnsupportedError(
            f"{len(left)} tensors have no place in a Hugging Face checkpoint: {_listed(left)}.",
            why=f"They are none of those of {family.architecture}.",
        )
    return Mapped(made, {}, ())


def _found(entry: Entry, family: Family, tensors: Mapping[str, Rows]) -> Source | None:
    for source in entry.sources:
        for renamed in _spellings(source, family):
            if all(name in tensors for name in renamed.names):
                return renamed
    return None


def _spellings(source: Source, family: Family) -> Iterable[Source]:
    yield source
    for here, there in family.aliases:
        if all(name.startswith(here) for name in source.names):
            names = tuple(there + name.removeprefix(here) for name in source.names)
            yield Source(names, source.change)


def _missing(names: Sequence[str], family: Family, tensors: Mapping[str, Rows]) -> ModelError:
    return ModelError(
        f"The checkpoint lacks the tensor '{names[0]}'.",
        why=f"Every {family.architecture} model has it. It holds: {_listed(list(tensors))}",
        hint="Is the download complete, and does config.json belong to it?",
        missing=[name for name in names if name not in tensors],
    )


def _check_shape(name: str, shape: tuple[int, ...], entry: Entry) -> None:
    fits = len(shape) == len(entry.shape) and all(
        wanted in (None, size) for size, wanted in zip(shape, entry.shape, strict=True)
    )
    if not fits:
        wanted = " x ".join("any" if size is None else str(size) for size in entry.shape)
        raise ModelError(
            f"Tensor '{name}' has the wrong shape: {' x '.join(map(str, shape))}.",
            why=f"By the model's configuration it is {wanted} ({entry.gguf}).",
            hint="Does config.json belong to these weights?",
        )


def _accounted(family: Family, names: Sequence[str], used: set[str]) -> dict[str, str]:
    """Why each tensor that was not used is not needed."""
    dropped = {}
    left = []
    for name in names:
        if name in used:
            continue
        reason = next(
            (why for pattern, why in family.dropped.items() if re.search(pattern, name)), ""
        )
        if reason:
            dropped[name] = reason
        else:
            left.append(name)
    if left:
        raise UnsupportedError(
            f"{len(left)} tensors have no place in GGUF: {_listed(left)}.",
            why=f"llama.cpp's {family.architecture} does not know them; without them the result "
            "would be another model.",
            tensors=left[:100],
        )
    return dropped


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
