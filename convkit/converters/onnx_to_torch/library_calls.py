"""A node as a call of the library function that computes its operator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_reading.calls import call_of
from convkit.converters.onnx_to_torch.dtypes import dtype_name
from convkit.converters.onnx_to_torch.scope import Scope
from convkit.converters.onnx_to_torch.weights import Weight
from convkit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir


def emit_call(scope: Scope, node: ir.Node) -> bool:
    """Writes `y = operators.function(x, ..., attribute=...)`."""
    function = scope.context.library.get((node.domain, node.op_type))
    if function is None:
        raise UnsupportedError(
            f"The operator {node.domain or 'ai.onnx'}.{node.op_type} has no translation.",
            why=f"Used by {node.name or node.outputs[0].name}.",
        )
    call = call_of(node, function)
    kinds = _host_kinds(function)
    arguments = [
        _argument(scope, value, kinds[min(index, len(kinds) - 1)] if index in call.host else "")
        for index, value in enumerate(call.inputs)
    ]
    for name, value in call.keywords.items():
        arguments.append(f"{name}={_keyword(scope, node, name, value, name in call.dtypes)}")
    if call.counts and call.output_count != _usual_count(function):
        arguments.append(f"output_count={call.output_count}")
    code = f"{scope.context.function(function)}({', '.join(arguments)})"
    is_tuple = not call.counts and str(function.__annotations__.get("return")).startswith("tuple")
    scope.assign(node, code, call.output_count if call.counts else None, is_tuple)
    return True


@functools.cache
def _usual_count(function: Callable[..., Any]) -> int:
    """How many outputs the function gives unless told."""
    default = inspect.signature(function).parameters["output_count"].default
    return default if isinstance(default, int) else 0


@functools.cache
def _host_kinds(function: Callable[..., Any]) -> tuple[str, ...]:
    """`one` for each positional parameter that takes a single number, else `many`."""
    kinds = []
    for parameter in inspect.signature(function).parameters.values():
        words = [word.strip() for word in str(parameter.annotation).split("|")]
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            kinds.append("one" if "Int" in words or "Number" in words else "many")
    return tuple(kinds)


def _argument(scope: Scope, value: ir.Value | None, kind: str) -> str:
    """A value as Python numbers where the parameter takes them and they are known."""
    known = scope.host(value) if kind else None
    if known is None:
        return scope.tensor(value)
    if kind == "one" and len(known.numbers) == 1:
        return known.numbers[0].code
    return known.code if known.is_list else f"[{known.code}]"


def _keyword(scope: Scope, node: ir.Node, name: str, value: Any, is_dtype: bool) -> str:
    import onnx_ir as ir

    if is_dtype:
        return f"torch.{dtype_name(ir.DataType(value))}" if value else "None"
    if isinstance(value, ir.TensorProtocol):
        return _constant(scope, node, name, value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, list):
        return f"[{', '.join(_float(v) if isinstance(v, float) else repr(v) for v in value)}]"
    return repr(value)


def _float(value: float) -> str:
    """Attributes are single precision; the shortest decimal for the same number is shown."""
    import math

    import numpy as np

    return repr(float(str(np.float32(value)))) if math.isfinite(value) else f'float("{value}")'


def _constant(scope: Scope, node: ir.Node, name: str, tensor: ir.TensorProtocol) -> str:
    """A tensor attribute as a buffer."""
    shape = tuple(int(size) for size in tensor.shape.numpy())
    title = f"{node.name or node.outputs[0].name}_{name}"
    weight = Weight(title, shape, tensor.dtype, lambda: tensor.numpy())
    return scope.context.table.tensor(weight)
