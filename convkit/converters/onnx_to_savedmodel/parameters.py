"""How operator functions take their inputs: tensors, or Python values where they are known.

A function says so by annotating a parameter `Ints`, `Int`, `Floats` or `Number`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convkit.converters.onnx_to_savedmodel.held import Held


def arguments(function: Callable[..., Any], given: Sequence[Any]) -> list[Any]:
    """The positional arguments; what is not `Held` is passed as it is."""
    known = kinds(function)
    result: list[Any] = []
    for index, value in enumerate(given):
        if isinstance(value, Held):
            read = READERS.get(known[min(index, len(known) - 1)], _tensor)
            result.append(read(value))
        else:
            result.append(value)
    return result


@functools.cache
def kinds(function: Callable[..., Any]) -> tuple[str, ...]:
    """Per positional parameter which Python value it takes, "" for a tensor; a last one repeats."""
    found = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            words = [word.strip() for word in str(parameter.annotation).split("|")]
            found.append(next((word for word in words if word in READERS), ""))
    return tuple(found)


@functools.cache
def keyword_names(function: Callable[..., Any]) -> frozenset[str]:
    """Names of keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def _tensor(value: Held) -> Any:
    return value.first


def _ints(value: Held) -> Any:
    known = value.known()
    if known is not None:
        return [int(number) for number in known.reshape(-1)]
    if value.elements is not None:
        return list(value.elements.reshape(-1))
    return value.first


def _int(value: Held) -> Any:
    known = value.known()
    if known is not None:
        return int(known.reshape(-1)[0])
    if value.elements is not None:
        return value.elements.reshape(-1)[0]
    return value.first


def _floats(value: Held) -> Any:
    known = value.known()
    return value.first if known is None else [float(number) for number in known.reshape(-1)]


def _number(value: Held) -> Any:
    known = value.known()
    return value.first if known is None else known.reshape(-1)[0].item()


READERS: Mapping[str, Callable[[Held], Any]] = {
    "Ints": _ints,
    "Int": _int,
    "Floats": _floats,
    "Number": _number,
}
