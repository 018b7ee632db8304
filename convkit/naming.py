"""Names: of what a network returns, by one rule for every format; and a few of many, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any


def listed(names: Sequence[str], most: int) -> str:
    """At most so many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def named_leaves(result: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of everything in a nested result that is no container; None is left out.

    A lone value is `output`; a position in a tuple or list is `output_0`, nested `output_0.1`; keys
    of mappings (a transformers `ModelOutput` too) and fields of named tuples and dataclasses name
    themselves.
    """
    for path, value in _leaves(result, ()):
        name = ".".join(map(str, path))
        yield (f"output_{name}" if path and isinstance(path[0], int) else name or "output"), value


def _leaves(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    parts = _parts(value)
    if parts is None:
        if value is not None:
            yield path, value
        return
    for key, item in parts:
        yield from _leaves(item, (*path, key))


def _parts(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Keys and items of a container; None for anything else."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if isinstance(value, list | tuple):
        return enumerate(value)
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in fields(value))
    return None
