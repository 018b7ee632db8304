"""The one function of the module: a graph traced from its signature's inputs to its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_savedmodel import signature
from convkit.converters.onnx_to_savedmodel.held import Held, permuted, to_last
from convkit.converters.onnx_to_savedmodel.tracing import Scope, Tracer, dtype_of
from convkit.converters.onnx_to_savedmodel.weights import Library, Weights
from convkit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Ends:
    """Names of inputs and outputs in order, and which are channels-last outside."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_inputs: frozenset[str] = frozenset()
    last_outputs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, graph: ir.Graph) -> Ends:
        """All in the ONNX order; an output that is listed twice is one."""
        inputs = tuple(value.name or "" for value in graph.inputs)
        return cls(inputs, tuple(dict.fromkeys(value.name or "" for value in graph.outputs)))


class Function:
    """A graph as a TensorFlow function.

    Args:
        graph: the model's graph.
        library: the operator functions.
        weights: its variables.
        ends: its inputs and outputs.

    Attributes:
        scope: the values of the last trace.
        assumed: If nodes of which the last trace kept one branch, because the branches' results
            have different numbers of axes; and which one, True being `then_branch`.
    """

    def __init__(self, graph: ir.Graph, library: Library, weights: Weights, ends: Ends) -> None:
        self.graph = graph
        self.library = library
        self.weights = weights
        self.ends = ends
        self.input_keys = signature.input_keys(ends.inputs)
        self.output_keys = signature.output_keys(ends.outputs)
        self.scope = Scope()
        self.assumed: dict[str, bool] = {}

    def traced(self) -> Any:
        """The concrete function.

        Where a condition decides how many axes a value has, the then branches are taken, and if the
        rest of the graph cannot follow, the else branches.

        Raises:
            UnsupportedError: an operator that has no counterpart for these values; names the node.
        """
        try:
            return self._traced(True)
        except UnsupportedError as cause:
            if not self.assumed:
                raise
            try:
                return self._traced(False)
            except UnsupportedError:
                raise cause from None

    def _traced(self, branch: bool) -> Any:
        import tensorflow as tf

        def compute(*tensors: Any) -> dict[str, Any]:
            return self._compute(Tracer(self.library, self.weights, branch), tensors)

        function = tf.function(compute, input_signature=self._specs(), autograph=False)
        return function.get_concrete_function()

    def _specs(self) -> list[Any]:
        """What the function takes, in the order of the graph's inputs."""
        import tensorflow as tf

        specs = []
        for value in self.graph.inputs:
            name = value.name or ""
            shape = _static_shape(value)
            if shape is not None and name in self.ends.last_inputs:
                shape = list(permuted(shape, to_last(len(shape))))
            dtype = dtype_of(value.dtype or 1)
            specs.append(tf.TensorSpec(shape, dtype, name=self.input_keys[name]))
        return specs

    def _compute(self, tracer: Tracer, tensors: tuple[Any, ...]) -> dict[str, Any]:
        """The outputs by key."""
        import tensorflow as tf

        self.scope, self.assumed = Scope(), tracer.assumed
        for name, tensor in zip(self.ends.inputs, tensors, strict=True):
            is_last = name in self.ends.last_inputs
            self.scope[name] = Held(last=tensor) if is_last else Held(first=tensor)
        results = tracer.run(self.graph, self.scope)
        self._last_outputs = {
            value.name or ""
            for value, result in zip(self.graph.outputs, results, strict=True)
            if result.tensors()[0] is None and result.is_channels_last
        }
        outputs = {}
        for value, result in zip(self.graph.outputs, results, strict=True):
            name = value.name or ""
            _check_axes(value, result, tracer)
            tensor = result.last if name in self.ends.last_outputs else result.first
            outputs[self.output_keys[name]] = tf.identity(tensor)
        return outputs

    def channels_last_ends(self) -> Ends:
        """Image inputs that the last trace wanted channels-last only, outputs that it made so."""
        images = [value for value in (*self.graph.inputs, *self.graph.outputs) if _is_image(value)]
        names = {value.name or "" for value in images}
        inputs = frozenset(
            name for name in self.ends.inputs if name in names and self._is_wanted_last(name)
        )
        outputs = frozenset(self._last_outputs & names)
        return Ends(self.ends.inputs, self.ends.outputs, inputs, outputs)

    def _is_wanted_last(self, name: str) -> bool:
        """Whether nothing but the move of its channels, and questions for its size, read it."""
        first, last = self.scope[name].tensors()
        if last is None:
            return False
        return len([reader for reader in first.consumers() if reader.type != "Shape"]) == 1

    def values(self) -> dict[str, dict[str, str]]:
        """ONNX value -> its tensor in the traced graph, and whether channels stand last there."""
        found = {}
        for name, value in self.scope.values.items():
            if not isinstance(value, Held) or name in self.weights.variables:
                continue
            if self.weights.is_turned(name):
                continue
            first, last = value.tensors()
            if first is not None:
                found[name] = {"tensor": first.name, "layout": "onnx"}
            elif last is not None:
                found[name] = {"tensor": last.name, "layout": "channels-last"}
        return found


def _check_axes(value: ir.Value, result: Held, tracer: Tracer) -> None:
    """An assumed branch must lead to what the file says of its outputs."""
    if not tracer.assumed or value.shape is None or result.rank is None:
        return
    if result.rank != len(value.shape):
        raise UnsupportedError(
            f"The output '{value.name}' has {len(value.shape)} axes, and {result.rank} here.",
            why=f"Conditions decide on its shape: {', '.join(tracer.assumed)}.",
        )


def _is_image(value: ir.Value) -> bool:
    """Whether it is a float tensor with channels and one to three spatial axes."""
    shape = value.shape
    floating = value.dtype is not None and value.dtype.is_floating_point()
    return bool(floating and shape is not None and 3 <= len(shape) <= 5)


def _static_shape(value: ir.Value) -> list[int | None] | None:
    if value.shape is None:
        return None
    # Some exporters write a dynamic size as -1.
    return [size if isinstance(size, int) and size >= 0 else None for size in value.shape]
