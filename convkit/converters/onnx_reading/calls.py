"""Binds ONNX nodes to the Python functions that compute their operators.

A function's positional parameters are the operator's inputs in order, its keyword-only parameters
the attributes, spelled and defaulted as in the newest schema. A parameter annotated `Ints`, `Int`,
`Floats` or `Number` takes Python values where they are known.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from convkit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir

_HOST = ("Ints", "Int", "Floats", "Number")
_DTYPES = ("torch.dtype", "tf.DType", "tf.dtypes.DType")
_COUNT = "output_count"

Operator = tuple[str, str]
"""Domain ("" is ai.onnx) and operator."""


@dataclass(frozen=True)
class Parameters:
    """What an operator function takes, read off its signature once.

    Attributes:
        host: indexes of positional parameters that take Python values.
        rest_is_host: whether the variadic parameter does.
        attributes: keyword-only parameters without `output_count`.
        dtypes: those of them that take a framework's data type.
        counts: whether it takes `output_count`.
        positional: how many positional parameters there are; None where variadic.
    """

    host: frozenset[int]
    rest_is_host: bool
    attributes: frozenset[str]
    dtypes: frozenset[str]
    counts: bool
    positional: int | None


@dataclass(frozen=True)
class Call:
    """A node as a call of its function.

    Attributes:
        inputs: values by position, None where absent; absent ones at the end are cut.
        keywords: attributes as Python values: int, float, str, lists of them, `ir.TensorProtocol`
            for a tensor, `ir.Graph` for a body. Data types are ONNX's integers.
        dtypes: names in `keywords` that hold an ONNX data type.
        host: indexes of `inputs` that may be given as Python values.
        output_count: outputs up to the last one that has a name.
        counts: whether the function takes `output_count`.
    """

    inputs: list[ir.Value | None]
    keywords: dict[str, Any]
    dtypes: frozenset[str]
    host: frozenset[int]
    output_count: int
    counts: bool


def library(package: ModuleType) -> Mapping[Operator, Callable[..., Any]]:
    """All operator functions of a package: `OPERATORS` of its modules; a plain name is ai.onnx."""
    found: dict[Operator, Callable[..., Any]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for key, function in getattr(loaded, "OPERATORS", {}).items():
            found[("", key) if isinstance(key, str) else key] = function
    return found


@functools.cache
def parameters_of(function: Callable[..., Any]) -> Parameters:
    """What a function takes."""
    host, positional, rest_is_host, variadic = set(), 0, False, False
    attributes, dtypes = set(), set()
    for name, parameter in inspect.signature(function).parameters.items():
        words = [word.strip() for word in str(parameter.annotation).split("|")]
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            variadic, rest_is_host = True, any(word in _HOST for word in words)
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            attributes.add(name)
            if any(word in _DTYPES for word in words):
                dtypes.add(name)
        else:
            if any(word in _HOST for word in words):
                host.add(positional)
            positional += 1
    return Parameters(
        frozenset(host),
        rest_is_host,
        frozenset(attributes - {_COUNT}),
        frozenset(dtypes),
        _COUNT in attributes,
        None if variadic else positional,
    )


def call_of(node: ir.Node, function: Callable[..., Any]) -> Call:
    """The call of `function` that computes `node`.

    Raises:
        UnsupportedError: the node has inputs or attributes that the function does not know.
    """
    takes = parameters_of(function)
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    if takes.positional is not None and len(inputs) > takes.positional:
        raise _refused(node, f"{len(inputs)} inputs")
    unknown = [name for name in node.attributes if name not in takes.attributes]
    if unknown:
        raise _refused(node, f"the attribute {unknown[0]}")
    keywords = {name: _decoded(attribute) for name, attribute in node.attributes.items()}
    host = {
        index
        for index in range(len(inputs))
        if index in takes.host or (takes.rest_is_host and index >= len(takes.host))
    }
    named = [i for i, value in enumerate(node.outputs) if value.name]
    return Call(
        inputs,
        keywords,
        takes.dtypes & keywords.keys(),
        frozenset(host),
        (named[-1] + 1) if named else 0,
        takes.counts,
    )


def _decoded(attribute: ir.Attr) -> Any:
    import onnx_ir as ir

    value = attribute.value
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(value)
    return value


def _refused(node: ir.Node, what: str) -> UnsupportedError:
    where = node.name or ", ".join(value.name or "" for value in node.outputs)
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return UnsupportedError(f"{operator} '{where}' has {what}, which is not known here.")
