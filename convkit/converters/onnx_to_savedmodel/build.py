"""Writes the SavedModel of an ONNX file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_reading.calls import library
from convkit.converters.onnx_reading.reading import read_graph
from convkit.converters.onnx_to_savedmodel import signature
from convkit.converters.onnx_to_savedmodel.held import Held, permuted, to_last
from convkit.converters.onnx_to_savedmodel.quiet import quiet_tensorflow
from convkit.converters.onnx_to_savedmodel.tracing import Scope, Tracer, dtype_of
from convkit.converters.onnx_to_savedmodel.weights import Library, Weights
from convkit.errors import UnknownNameError, UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir

LAYOUTS = ("preserve", "nhwc-io")


def save(
    onnx_path: Path,
    out: Path,
    *,
    layout: str = "preserve",
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Writes `out`, a SavedModel folder that computes what the ONNX file does.

    The signature `serving_default` takes and gives tensors under the ONNX names; their order is in
    `assets.extra/convkit_signature.json`. Weights are variables in `weights`, named as in ONNX.

    Args:
        onnx_path: the model; its data files beside it.
        out: the folder.
        layout: `preserve`, or `nhwc-io` for image inputs and outputs with channels at the end.
        note: takes sentences for the report.

    Raises:
        ModelError: the file is no complete ONNX model.
        UnsupportedError: operators or types without a counterpart, by name.
        UnknownNameError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    with quiet_tensorflow():
        functions = operator_functions()
        model = read_graph(onnx_path, functions.keys())
        _refuse_types(model.graph)
        weights = Weights(model.graph, onnx_path.parent, functions)
        ends = _Ends(model.graph, frozenset(), frozenset())
        if layout == "nhwc-io":
            ends = _channels_last_ends(model.graph, functions, weights)
            _note_layout(ends, note)
        _write(_Build(model.graph, functions, weights, ends), out, note)


@functools.cache
def operator_functions() -> Library:
    """The operator functions, by domain and operator."""
    from convkit.converters.onnx_to_savedmodel import operators

    return library(operators)


class _Ends:
    """Inputs and outputs of the graph, and which of them are channels-last outside, by name."""

    def __init__(
        self, graph: ir.Graph, last_inputs: frozenset[str], last_outputs: frozenset[str]
    ) -> None:
        self.inputs = [value.name or "" for value in graph.inputs]
        self.outputs = list(dict.fromkeys(value.name or "" for value in graph.outputs))
        self.last_inputs = last_inputs
        self.last_outputs = last_outputs


class _Build:
    """The traced function of a graph."""

    def __init__(self, graph: ir.Graph, functions: Library, weights: Weights, ends: _Ends) -> None:
        self.graph = graph
        self.weights = weights
        self.ends = ends
        self.input_keys = signature.input_keys(ends.inputs)
        self.output_keys = signature.output_keys(ends.outputs)
        self.scope = Scope()
        self._functions = functions

    def specs(self) -> list[Any]:
        """What the function takes, in the order of the graph's inputs."""
        import tensorflow as tf

        specs = []
        for value in self.graph.inputs:
            name = value.name or ""
            shape = _static_shape(value)
            if shape is not None and name in self.ends.last_inputs:
                shape = list(permuted(shape, to_last(len(shape))))
            specs.append(
                tf.TensorSpec(shape, dtype_of(value.dtype or 1), name=self.input_keys[name])
            )
        return specs

    def compute(self, *tensors: Any) -> dict[str, Any]:
        """The outputs by key."""
        import tensorflow as tf

        self.scope = Scope()
        for name, tensor in zip(self.ends.inputs, tensors, strict=True):
            is_last = name in self.ends.last_inputs
            self.scope[name] = Held(last=tensor) if is_last else Held(first=tensor)
        results = Tracer(self._functions, self.weights).run(self.graph, self.scope)
        outputs = {}
        for value, result in zip(self.graph.outputs, results, strict=True):
            name = value.name or ""
            tensor = result.last if name in self.ends.last_outputs else result.first
            outputs[self.output_keys[name]] = tf.identity(tensor)
        return outputs


def _write(build: _Build, out: Path, note: Callable[[str], None]) -> None:
    import tensorflow as tf

    module = tf.Module()
    function = tf.function(build.compute, input_signature=build.specs(), autograph=False)
    traced = function.get_concrete_function()
    module.weights = dict(build.weights.variables)
    tf.saved_model.save(module, str(out), signatures={signature.KEY: traced})
    signature.rename(
        out,
        {key: name for name, key in build.input_keys.items()},
        {key: name for name, key in build.output_keys.items()},
    )
    signature.write_order(out, build.ends.inputs, build.ends.outputs)
    signature.write_extra(out, "convkit_values.json", _values(build.scope))
    same = signature.colliding(build.ends.inputs)
    if same:
        note(
            f"TensorFlow's Python loader cannot tell the inputs {', '.join(same)} apart; "
            "call the signature through a session."
        )


def _values(scope: Scope) -> dict[str, dict[str, str]]:
    """ONNX value -> its tensor in the function's graph, and whether channels stand last there."""
    found = {}
    for name, value in scope.values.items():
        if isinstance(value, Held):
            first, last = value.tensors()
            if first is not None:
                found[name] = {"tensor": first.name, "layout": "onnx"}
            elif last is not None:
                found[name] = {"tensor": last.name, "layout": "channels-last"}
    return found


def _channels_last_ends(graph: ir.Graph, functions: Library, weights: Weights) -> _Ends:
    """Inputs that are wanted channels-last only, and outputs that are made so, by a first trace."""
    import tensorflow as tf

    build = _Build(graph, functions, weights, _Ends(graph, frozenset(), frozenset()))
    inputs: set[str] = set()
    outputs: set[str] = set()

    tracer = Tracer(functions, weights)

    def compute(*tensors: Any) -> list[Any]:
        for name, tensor in zip(build.ends.inputs, tensors, strict=True):
            build.scope[name] = Held(first=tensor)
        results = tracer.run(graph, build.scope)
        for value, result in zip(graph.outputs, results, strict=True):
            if _is_image(value) and result.tensors()[0] is None and result.is_channels_last:
                outputs.add(value.name or "")
        return [result.first for result in results]

    tf.function(compute, input_signature=build.specs(), autograph=False).get_concrete_function()
    for value in graph.inputs:
        first, last = build.scope[value.name or ""].tensors()
        if _is_image(value) and last is not None and len(first.consumers()) == 1:
            inputs.add(value.name or "")
    return _Ends(graph, frozenset(inputs), frozenset(outputs))


def _is_image(value: ir.Value) -> bool:
    shape = value.shape
    floating = value.dtype is not None and value.dtype.is_floating_point()
    return bool(floating and shape is not None and 3 <= len(shape) <= 5)


def _note_layout(ends: _Ends, note: Callable[[str], None]) -> None:
    for kind, names in (("Input", ends.last_inputs), ("Output", ends.last_outputs)):
        for name in sorted(names):
            note(f"{kind} '{name}' is channels-last; in ONNX its channels are the second axis.")


def _static_shape(value: ir.Value) -> list[int | None] | None:
    if value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def _refuse_types(graph: ir.Graph) -> None:
    """Sequences, optionals and strings cannot cross a signature."""
    import onnx_ir as ir

    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            is_tensor = isinstance(value.type, ir.TensorType)
            if not is_tensor or value.dtype == ir.DataType.STRING:
                raise UnsupportedError(
                    f"The {kind} '{value.name}' is {value.type}, which a SavedModel's signature "
                    "has no counterpart for.",
                    hint="Give plain tensors of numbers.",
                )


__all__: Sequence[str] = ("LAYOUTS", "operator_functions", "save")
