"""Takes the tensors of one world to the other; every one of them is accounted for."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convkit.checkpoint.rows import Held, Reshaped, Rows
from convkit.errors import ModelError, UnsupportedError
from convkit.families import layer_count, rotary
from convkit.families.config import Config
from convkit.families.family import Entry, Family, Read, Source, Stored
from convkit.naming import listed

_NAMED = 6
_COMPARED_ELEMENTS = 1 << 20


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
        found = source_of(entry, family, tensors)
        if found is None:
            raise _missing(entry.sources[0].names, family, config, tensors)
        names, change = found.names, found.change
        try:
            rows = change.to_gguf([tensors[name] for name in names])
        except ValueError as cause:
            raise ModelError(
                f"Tensor '{names[0]}' does not fit: {cause}.",
                why=f"By the model's configuration it makes {entry.gguf}, "
                f"{' x '.join(map(str, entry.shape))}.",
                hint="Does config.json belong to these weights?",
            ) from cause
        if rows.shape != entry.shape:
            raise _wrong_shape(names[0], rows.shape, entry)
        made[entry.gguf] = rows
        used.update(names)
    derived = {name: Held(array) for name, array in family.derived(config).items()}
    repeated = _repeated(family, tensors, used)
    left = [name for name in (*tensors, *others) if name not in used and name not in repeated]
    return Mapped({**made, **derived}, repeated | _accounted(family, config, left), tuple(derived))


def stored_of(get: Read, tensors: Mapping[str, Rows]) -> Stored:
    """What the inverse of a family reads of a GGUF file.

    Args:
        get: (key, default) -> a metadata value, as `Header.get`.
        tensors: of the file.
    """
    shapes = {name: tuple(rows.shape) for name, rows in tensors.items()}
    small = {name: tensors[name].array() for name in rotary.TENSORS if name in tensors}
    return Stored(get, shapes, small)


def to_torch(family: Family, config: Config, tensors: Mapping[str, Rows]) -> Mapped:
    """A GGUF file's tensors as a checkpoint has them.

    Raises:
        ModelError: one is missing or of the wrong shape.
        UnsupportedError: one has no place in the checkpoint.
    """
    made: dict[str, Rows] = {}
    used = set(rotary.TENSORS) if "rope_parameters" in config else set()
    for entry in family.entries(config):
        rows = tensors.get(entry.gguf)
        if rows is None:
            count = layer_count.counted(tensors, entry.gguf)
            differ = f"It has {count} layers, and says that it has {config.layers} (block_count)."
            raise ModelError(
                f"The tensor '{entry.gguf}' is missing.",
                why=differ
                if count not in (0, config.layers)
                else f"Every {family.architecture} model has it.",
                hint="Download or convert the file again.",
            )
        if rows.shape != entry.shape:
            if _without_ones(rows.shape) != _without_ones(entry.shape):
                raise _wrong_shape(entry.gguf, rows.shape, entry)
            rows = Reshaped(rows, entry.shape)
        source = entry.sources[0]
        made |= zip(source.names, source.change.to_torch(rows), strict=True)
        used.add(entry.gguf)
    left = [name for name in tensors if name not in used]
    if left:
        named = listed(left, _NAMED)
        raise UnsupportedError(
            f"{_have(left)} no place in a Hugging Face checkpoint: {named}.",
            why=f"{family.architecture} models have none of that name.",
        )
    return Mapped(made, {})


def source_of(entry: Entry, family: Family, names: Container[str]) -> Source | None:
    """Where a tensor of GGUF comes from, of these names; None where they lack it."""
    for source in entry.sources:
        for renamed in _spellings(source, family):
            if all(name in names for name in renamed.names):
                return renamed
    return None


def _spellings(source: Source, family: Family) -> Iterator[Source]:
    yield source
    for names in _renamed(source.names, family):
        yield Source(names, source.change)


def _missing(
    names: Sequence[str], family: Family, config: Config, tensors: Mapping[str, Rows]
) -> ModelError:
    held = f"Every {family.architecture} model has it. It holds: {listed(list(tensors), _NAMED)}"
    return ModelError(
        f"The checkpoint lacks the tensor '{names[0]}'.",
        why=layer_count.difference(config, tensors, names[0]) or held,
        hint="Is the download complete, and does config.json belong to it?",
        missing=[name for name in names if name not in tensors],
    )


def _have(names: Sequence[str]) -> str:
    return f"{len(names)} tensors have" if len(names) > 1 else "1 tensor has"


def _wrong_shape(name: str, shape: tuple[int, ...], entry: Entry) -> ModelError:
    return ModelError(
        f"Tensor '{name}' has the wrong shape: {' x '.join(map(str, shape))}.",
        why=f"By the model's configuration it is {' x '.join(map(str, entry.shape))} "
        f"({entry.gguf}).",
        hint="Does config.json belong to these weights?",
    )


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without leading ones, which llama.cpp leaves out when it writes files."""
    first = next((i for i, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[first:])


def _repeated(family: Family, tensors: Mapping[str, Rows], used: set[str]) -> dict[str, str]:
    """Tensors that the checkpoint holds twice.

    Raises:
        ModelError: one differs from what it should repeat; transformers then takes both.
    """
    found = {}
    for pair in family.tied.items():
        for again, once in (pair, *_renamed(pair, family)):
            if again not in tensors or again in used or once not in tensors:
                continue
            if not _are_equal(tensors[again], tensors[once]):
                raise ModelError(
                    f"'{again}' differs from '{once}', though config.json says they are the same.",
                    why="transformers keeps both in such a case.",
                    hint='Put "tie_word_embeddings": false into config.json.',
                )
            found[again] = f"it is {once} once more"
    return found


def _are_equal(one: Rows, other: Rows) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return all(
        np.array_equal(one.stored(*span), other.stored(*span))
        for span in one.spans(_COMPARED_ELEMENTS)
    )


def _renamed(names: Sequence[str], family: Family) -> Iterator[tuple[str, ...]]:
    """Names as some checkpoints spell them."""
    for here, there in family.aliases:
        if all(name.startswith(here) for name in names):
            yield tuple(there + name.removeprefix(here) for name in names)


def _accounted(family: Family, config: Config, names: Sequence[str]) -> dict[str, str]:
    """Why each tensor that was not used is not needed."""
    dropped = {}
    left = []
    for name in names:
        reason = next(
            (why for pattern, why in family.dropped.items() if re.search(pattern, name)), ""
        )
        if reason:
            dropped[name] = reason
        else:
            left.append(name)
    if left:
        raise UnsupportedError(
            f"{_have(left)} no place in GGUF: {listed(left, _NAMED)}.",
            why=layer_count.difference(config, left, left[0])
            or f"llama.cpp's {family.architecture} has none of that name; without it the result "
            "would be another model.",
            tensors=left[:100],
        )
    return dropped
