"""Norms, projections, activations and feed-forward networks as nodes.

Values are (tokens, width) where nothing else is said: batch and sequence are one axis, so that a
projection is one Gemm on the matrix as the checkpoint has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from convkit.converters.decoder_graph.blueprint import FeedForward, Linear, Norm
from convkit.converters.decoder_graph.graph import FLOAT, Graph
from convkit.converters.decoder_graph.matrices import Matrix, matrix_of
from convkit.converters.decoder_graph.weights import Weights, streamed
from convkit.errors import UnsupportedError

_GELU_OPSET = 20
"""Source: ONNX operator Gelu-20."""


@dataclass(frozen=True)
class Parts:
    """What parts of a network are made of.

    Attributes:
        graph: where nodes go.
        weights: the checkpoint.
        prefix: of the names of tensors.
    """

    graph: Graph
    weights: Weights
    prefix: str = ""

    def within(self, prefix: str) -> Parts:
        """The same, for names that begin with `prefix`."""
        return replace(self, prefix=prefix)

    def tensor(self, name: str, *shape: int) -> str:
        """A float tensor of the checkpoint as an initializer."""
        found, rows = self.weights.take(f"{self.prefix}{name}", shape)
        graph = self.graph
        weight, change = streamed(found, rows, graph.float_type, graph.rounded.add)
        return graph.weight(weight, found, change)

    def matrix(self, name: str, outputs: int, inputs: int, *, is_turned: bool = False) -> Matrix:
        """A matrix of the checkpoint, packed where it is block-quantized."""
        shape = (inputs, outputs) if is_turned else (outputs, inputs)
        found, rows = self.weights.take(f"{self.prefix}{name}", shape)
        return matrix_of(self.graph, found, rows, found, is_turned=is_turned)

    def project(self, value: str, linear: Linear, name: str) -> str:
        """The value times a matrix, plus the bias."""
        matrix = self.matrix(
            f"{linear.name}.weight", linear.outputs, linear.inputs, is_turned=linear.is_turned
        )
        return self.product(value, matrix, linear, name)

    def product(self, value: str, matrix: Matrix, linear: Linear, name: str) -> str:
        """As `project`, with the matrix given."""
        bias = self.tensor(f"{linear.name}.bias", linear.outputs) if linear.has_bias else ""
        return matrix.product(self.graph, value, bias, name)

    def normalize(self, value: str, norm: Norm, name: str) -> str:
        """The norm over the last axis; (..., heads, width) where each head has its own weight."""
        with self.graph.scope(name):
            if norm.is_centered:
                return self._layer_norm(value, norm)
            return self._scaled(self._root_mean_square(value, norm.epsilon), norm)

    def _layer_norm(self, value: str, norm: Norm) -> str:
        graph = self.graph
        settings: dict[str, Any] = {"axis": -1, "epsilon": norm.epsilon}
        if norm.head_count:
            ones = graph.floats([1.0] * norm.width, f"ones_{norm.width}")
            ones = graph.cast(ones, graph.float_type, of=FLOAT)
            even = graph.add("LayerNormalization", value, ones, name="even", **settings)
            return graph.add("Mul", even, self._head_weights(norm), name="scaled")
        inputs = [value, self.tensor(f"{norm.name}.weight", norm.width)]
        if norm.has_bias:
            inputs.append(self.tensor(f"{norm.name}.bias", norm.width))
        return graph.add("LayerNormalization", *inputs, name="normalized", **settings)

    def _head_weights(self, norm: Norm) -> str:
        """The weights of all heads: (heads, width)."""
        rows = [
            self.tensor(f"{norm.name}.norms.{head}.weight", norm.width)
            for head in range(norm.head_count)
        ]
        joined = self.graph.add("Concat", *rows, name="weights", axis=0)
        shape = self.graph.ints(norm.head_count, norm.width)
        return self.graph.add("Reshape", joined, shape, name="head_weights")

    def _root_mean_square(self, value: str, epsilon: float) -> str:
        """The value over its root mean square, in float32.

        The six nodes of a norm are those that ONNX Runtime knows as SimplifiedLayerNormalization.
        """
        graph = self.graph
        value = graph.cast(value, FLOAT)
        squares = graph.add("Pow", value, graph.real(2.0), name="squares")
        mean = graph.add("ReduceMean", squares, graph.ints(-1), name="mean", keepdims=1)
        safe = graph.add("Add", mean, graph.real(epsilon), name="safe")
        root = graph.add("Sqrt", safe, name="root")
        return graph.add("Div", value, root, name="even")

    def _scaled(self, even: str, norm: Norm) -> str:
        """Times the weight: in float32 where there is an offset, else in the model's own type."""
        graph = self.graph
        kind = FLOAT if norm.offset else graph.float_type
        even = graph.cast(even, kind, of=FLOAT)
        scaled = graph.add("Mul", even, self.norm_weight(norm, kind), name="normalized")
        return graph.cast(scaled, graph.float_type, of=kind)

    def norm_weight(self, norm: Norm, float_type: int) -> str:
        """What a norm multiplies by, its weight and the offset."""
        graph = self.graph
        weight = self.tensor(f"{norm.name}.weight", norm.width)
        if not norm.offset:
            return graph.cast(weight, float_type)
        weight = graph.cast(weight, FLOAT)
        weight = graph.add("Add", weight, graph.real(norm.offset), name="weight")
        return graph.cast(weight, float_type, of=FLOAT)

    def feed_forward(self, value: str, network: FeedForward) -> str:
        """A feed-forward network."""
        graph = self.graph
        inner = self.project(value, network.up, "up")
        if network.is_joint:
            half = network.up.outputs // 2
            gate, inner = graph.add_all(
                "Split", inner, graph.ints(half, half), names=("gate", "upper"), axis=-1
            )
            inner = graph.add("Mul", self.activate(gate, network.activation), inner, name="gated")
        elif network.gate is not None:
            gate = self.project(value, network.gate, "gate")
            inner = graph.add("Mul", self.activate(gate, network.activation), inner, name="gated")
        else:
            inner = self.activate(inner, network.activation)
        return self.project(inner, network.down, "down")

    def activate(self, value: str, activation: str) -> str:
        """An activation by its name in transformers.

        Raises:
            UnsupportedError: the name is not known.
        """
        if activation not in _ACTIVATIONS:
            raise UnsupportedError(
                f"The activation '{activation}' has no expression as a graph.",
                why=f"Known: {', '.join(sorted(_ACTIVATIONS))}",
            )
        with self.graph.scope(activation):
            return _ACTIVATIONS[activation](self.graph, value)

    def cap(self, value: str, limit: float, float_type: int) -> str:
        """The value bent to stay within a limit: limit x tanh(value / limit)."""
        graph = self.graph
        bound = graph.real(limit, float_type)
        share = graph.add("Div", value, bound, name="share")
        bent = graph.add("Tanh", share, name="bent")
        return graph.add("Mul", bent, bound, name="capped")


def _silu(graph: Graph, value: str) -> str:
    return graph.add("Mul", value, graph.add("Sigmoid", value, name="sigmoid"), name="activated")


def _quick_gelu(graph: Graph, value: str) -> str:
    """Source: https://github.com/hendrycks/GELUs, the sigmoid approximation."""
    steep = graph.add("Mul", value, graph.real(1.702, graph.float_type), name="steep")
    return graph.add("Mul", value, graph.add("Sigmoid", steep, name="sigmoid"), name="activated")


def _relu(graph: Graph, value: str) -> str:
    return graph.add("Relu", value, name="activated")


def _gelu(graph: Graph, value: str) -> str:
    """Source: Gaussian Error Linear Units, arXiv:1606.08415."""
    if graph.opset >= _GELU_OPSET:
        return graph.add("Gelu", value, name="activated")
    kind = graph.float_type
    root = graph.add("Div", value, graph.real(math.sqrt(2.0), kind), name="over_root")
    share = graph.add(
        "Add", graph.add("Erf", root, name="erf"), graph.real(1.0, kind), name="share"
    )
    doubled = graph.add("Mul", value, share, name="doubled")
    return graph.add("Mul", doubled, graph.real(0.5, kind), name="activated")


def _gelu_tanh(graph: Graph, value: str) -> str:
    """Source: as `_gelu`, section 2, the approximation with tanh."""
    if graph.opset >= _GELU_OPSET:
        return graph.add("Gelu", value, name="activated", approximate="tanh")
    kind = graph.float_type
    square = graph.add("Mul", value, value, name="square")
    cubic = graph.add("Mul", square, graph.real(0.044715, kind), name="cubic")
    bend = graph.add("Add", cubic, graph.real(1.0, kind), name="bend")
    linear = graph.add("Mul", value, graph.real(math.sqrt(2.0 / math.pi), kind), name="linear")
    bent = graph.add("Tanh", graph.add("Mul", linear, bend, name="argument"), name="tanh")
    share = graph.add("Add", bent, graph.real(1.0, kind), name="share")
    halved = graph.add("Mul", value, graph.real(0.5, kind), name="halved")
    return graph.add("Mul", halved, share, name="activated")


_ACTIVATIONS: Mapping[str, Callable[[Graph, str], str]] = {
    "silu": _silu,
    "swish": _silu,
    "relu": _relu,
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "quick_gelu": _quick_gelu,
}
"""Source: `transformers.activations.ACT2FN`."""
