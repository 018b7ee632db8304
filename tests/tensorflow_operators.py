"""Calls an operator function of the SavedModel importer as the importer does, without it.

Inputs are bound by position, attributes by keyword, and the function is traced by a `tf.function`,
whose inputs have static shapes or none.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import tensorflow as tf
from onnx import numpy_helper

PACKAGE = "convkit.converters.onnx_to_savedmodel.operators"
MODES = ("known", "static", "dynamic")
"""Shapes, axes and the like as Python values; all as tensors; the first of unknown dimensions."""


@functools.cache
def operators() -> Mapping[tuple[str, str], Callable[..., Any]]:
    """All operator functions by domain and name."""
    from convkit.converters.onnx_reading.calls import library

    return library(importlib.import_module(PACKAGE))


def computed(
    node: onnx.NodeProto, inputs: Sequence[Any], mode: str = "static"
) -> list[np.ndarray[Any, Any] | None]:
    """The outputs of a node for the inputs that it has, absent ones left out."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    function = operators()[domain, node.op_type]
    keywords = _attributes(node, function)
    rest = iter(inputs)
    given = [next(rest, None) if name else None for name in node.input]
    known: dict[int, Any] = {}
    if mode == "known":
        kinds = _host_kinds(function)
        known = {
            index: _python(kinds[index], value)
            for index, value in enumerate(given)
            if value is not None and index < len(kinds) and kinds[index]
        }
    places = [n for n, value in enumerate(given) if value is not None and n not in known]
    tensors = [_tensor(given[n]) for n in places]

    def call(*arguments: Any) -> Any:
        values: list[Any] = [known.get(n) for n in range(len(given))]
        for place, argument in zip(places, arguments, strict=True):
            values[place] = argument
        return function(*values, **keywords)

    specs = [_spec(tensor, mode, place) for tensor, place in zip(tensors, places, strict=True)]
    results = tf.function(call, input_signature=specs, autograph=False)(*tensors)
    results = results if isinstance(results, tuple) else (results,)
    return [_array(result) for name, result in zip(node.output, results, strict=False) if name]


def _array(result: Any) -> Any:
    if isinstance(result, list):
        return [part.numpy() for part in result]
    return None if result is None else np.asarray(result.numpy())


def _attributes(node: onnx.NodeProto, function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    keywords: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name not in parameters:
            raise TypeError(f"{node.op_type} does not take the attribute {attribute.name}")
        if "tf.DType" in str(parameters[attribute.name].annotation):
            value = tf.as_dtype(ir.DataType(value).numpy()) if value else None
        elif isinstance(value, onnx.TensorProto):
            value = tf.constant(numpy_helper.to_array(value))
        elif isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            value = [text.decode() for text in value]
        keywords[attribute.name] = value
    if "output_count" in parameters:
        keywords["output_count"] = max(n for n, name in enumerate(node.output, 1) if name)
    return keywords


def _host_kinds(function: Callable[..., Any]) -> list[str]:
    """Per positional parameter the alias that stands for Python values, or ""."""
    kinds = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            words = str(parameter.annotation).replace(" ", "").split("|")
            kinds.append(next((w for w in words if w in ("Ints", "Int", "Floats", "Number")), ""))
    return kinds


def _python(kind: str, value: np.ndarray[Any, Any]) -> Any:
    return value.reshape(-1).tolist() if kind in ("Ints", "Floats") else value.reshape(()).item()


def _tensor(value: Any) -> Any:
    return [_tensor(part) for part in value] if isinstance(value, list) else tf.constant(value)


def _spec(tensor: Any, mode: str, place: int) -> Any:
    """The first input without known dimensions in "dynamic" mode; the others as they are."""
    if isinstance(tensor, list):
        return [_spec(part, mode, place) for part in tensor]
    if mode != "dynamic" or place:
        return tf.TensorSpec(tensor.shape, tensor.dtype)
    return tf.TensorSpec([None] * tensor.shape.rank, tensor.dtype)
