"""Writes the SavedModel of an ONNX file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_reading.calls import library
from convkit.converters.onnx_reading.reading import read_graph
from convkit.converters.onnx_to_savedmodel import signature
from convkit.converters.onnx_to_savedmodel.folding import fold_weights
from convkit.converters.onnx_to_savedmodel.module import Ends, Function
from convkit.converters.onnx_to_savedmodel.quiet import quiet_tensorflow
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
    `assets.extra/convkit_signature.json`. Weights are variables in `weights`, named as in ONNX;
    those of convolutions have their axes in TensorFlow's order. Where every value of the graph is
    to be found in the function that the signature calls is in `assets.extra/convkit_values.json`.

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
        model = read_graph(onnx_path, functions.keys(), note)
        _refuse_types(model.graph)
        fold_weights(model.graph, onnx_path.parent)
        weights = Weights(model.graph, onnx_path.parent, functions)
        function = Function(model.graph, functions, weights, Ends.of(model.graph))
        traced = function.traced()
        if layout == "nhwc-io":
            function = Function(model.graph, functions, weights, function.channels_last_ends())
            traced = function.traced()
        _write(function, traced, out)
    _report(function, note)


@functools.cache
def operator_functions() -> Library:
    """The operator functions, by domain and operator."""
    from convkit.converters.onnx_to_savedmodel import operators

    return library(operators)


def _write(function: Function, traced: Any, out: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.weights = dict(function.weights.variables)
    tf.saved_model.save(module, str(out), signatures={signature.KEY: traced})
    signature.rename(
        out,
        {key: name for name, key in function.input_keys.items()},
        {key: name for name, key in function.output_keys.items()},
    )
    ends = function.ends
    last = sorted({*ends.last_inputs, *ends.last_outputs})
    signature.write_order(out, ends.inputs, ends.outputs, last)
    signature.write_extra(out, "convkit_values.json", function.values())


def _report(function: Function, note: Callable[[str], None]) -> None:
    ends = function.ends
    for kind, names in (("Input", ends.last_inputs), ("Output", ends.last_outputs)):
        for name in sorted(names):
            note(f"{kind} '{name}' is channels-last; in ONNX its channels are the second axis.")
    for name, branch in function.assumed.items():
        note(
            f"The If '{name}' decides how many axes its result has; the SavedModel takes its "
            f"{'then' if branch else 'else'} branch, and fails where the condition says otherwise."
        )
    same = signature.colliding(ends.inputs)
    if same:
        note(
            f"TensorFlow's Python loader cannot tell the inputs {', '.join(same)} apart; "
            "call the signature through a session."
        )


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
