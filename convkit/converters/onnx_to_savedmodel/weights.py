"""Initializers: weights become variables named as in ONNX, small constants stay in the graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.converters.onnx_to_savedmodel.held import Held
from convkit.converters.onnx_to_savedmodel.parameters import READERS, keyword_names, kinds
from convkit.errors import UnsupportedError
from convkit.onnx_structure import array_of
from convkit.onnx_typing import graphs_of

if TYPE_CHECKING:
    import onnx_ir as ir

_CONSTANT_BYTES = 4096
"""Integers up to here stay in the graph; larger tables would bloat it."""

Library = Mapping[tuple[str, str], Callable[..., Any]]


class Weights:
    """The variables of the module.

    They are made before the graph is traced, because TensorFlow traces a function that makes
    variables twice.

    Args:
        graph: the model's graph; bodies inside it may hold weights of their own.
        folder: where the model's files lie.
        library: the operator functions, which tell how a weight is used.
    """

    def __init__(self, graph: ir.Graph, folder: Path, library: Library) -> None:
        self.variables: dict[str, Any] = {}
        self._folder = folder
        self._kernels: set[str] = set()
        for part in graphs_of(graph):
            for value in part.initializers.values():
                self._take(value, library)

    def _take(self, value: ir.Value, library: Library) -> None:
        import tensorflow as tf

        tensor, name = value.const_value, value.name or ""
        if tensor is None or not is_weight(tensor) or not _is_computed_with(value, library):
            return
        elements = array_of(tensor, self._folder)
        if kernels := _kernels(value, library):
            self._kernels.update(kernels)
            # (output, input, spatial...) becomes (spatial..., input, output).
            elements = elements.transpose([*range(2, elements.ndim), 1, 0])
        is_float = tf.as_dtype(elements.dtype).is_floating
        self.variables[name] = tf.Variable(
            np.ascontiguousarray(elements), trainable=is_float, name=plain_name(name)
        )

    def hold(self, value: ir.Value) -> Held:
        """The value of an initializer."""
        tensor, name = value.const_value, value.name or ""
        assert tensor is not None
        if tensor.dtype.name == "STRING":
            raise UnsupportedError(
                f"The constant '{name}' holds strings, which have no translation."
            )
        if name not in self.variables:
            return Held(array=array_of(tensor, self._folder))
        sizes = tuple(int(size) for size in tensor.shape.numpy())
        return Held(
            load=lambda: array_of(tensor, self._folder), read=lambda: self.read(name), sizes=sizes
        )

    def read(self, name: str) -> Any:
        """The tensor of a variable, in the graph that is being traced."""
        import tensorflow as tf

        return tf.convert_to_tensor(self.variables[name])

    def is_kernel(self, value: ir.Value | None) -> bool:
        """Whether a variable, or what it is dequantized to, is in TensorFlow's order."""
        return value is not None and self.is_turned(value.name or "")

    def is_turned(self, name: str) -> bool:
        """Whether the value of that name is a weight of convolutions in TensorFlow's order."""
        return name in self._kernels


def plain_name(name: str) -> str:
    """A name as TensorFlow allows it for scopes and variables."""
    plain = re.sub(r"[^A-Za-z0-9_./>-]", "_", name).strip("/")
    return plain if re.match(r"[A-Za-z0-9.]", plain) else f"n{plain}"


def is_weight(tensor: Any) -> bool:
    """Whether an initializer is a weight: floats other than a single number, or many integers."""
    if tensor.dtype.name == "STRING":
        return False
    if tensor.dtype.is_floating_point():
        return int(tensor.size) > 1
    return int(tensor.nbytes) > _CONSTANT_BYTES


def _uses(value: ir.Value) -> Iterable[tuple[ir.Node, int]]:
    return ((use.node, use.idx) for use in value.uses())


def _is_computed_with(value: ir.Value, library: Library) -> bool:
    """Whether it is needed as a tensor; not where functions take it as Python numbers."""
    if value.is_graph_output():
        return True
    for node, index in _uses(value):
        function = library.get((node.domain, node.op_type))
        if function is None:
            return True
        known = kinds(function)
        if known and known[min(index, len(known) - 1)] not in READERS:
            return True
    return False


def kernel_axis(axis: int, rank: int) -> int:
    """Where an axis of an ONNX convolution's weight stands in TensorFlow's order."""
    return [*range(2, rank), 1, 0].index(axis % rank)


def _kernels(value: ir.Value, library: Library) -> list[str]:
    """Names of a weight that only convolutions use, and of what it is dequantized to for them."""
    if _is_kernel(value, library):
        return [value.name or ""]
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or readers[0].op_type != "DequantizeLinear" or readers[0].domain:
        return []
    node, plain = readers[0], readers[0].outputs[0]
    block = node.attributes.get("block_size")
    if node.inputs[0] is not value or value.is_graph_output() or (block and block.value):
        return []
    is_used = bool(plain.uses()) and _is_kernel(plain, library)
    return [value.name or "", plain.name or ""] if is_used else []


def _is_kernel(value: ir.Value, library: Library) -> bool:
    """Whether only convolutions use it, as their weight."""
    if value.is_graph_output():
        return False
    for node, index in _uses(value):
        function = library.get((node.domain, node.op_type))
        if index != 1 or function is None or "weight_layout" not in keyword_names(function):
            return False
    return True
