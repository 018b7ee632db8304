"""TensorFlow graphs frozen to constants: from SavedModels, Keras models, GraphDefs, checkpoints.

SavedModels are loaded by TensorFlow 1's loader in a session. It reads what both generations of
TensorFlow wrote and needs neither the classes a model was built from nor the optimizer's slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convkit.artifact import TensorSpec
from convkit.errors import SamplesError, StepError, UnsupportedError
from convkit.tensorflow_ends import graph_file, named_ends, with_spec
from convkit.tensorflow_feeds import arranged
from convkit.tensorflow_import import import_tensorflow
from convkit.tensorflow_inlining import check_size, frozen_graph_def, variable_bytes
from convkit.tensorflow_proto import node_of
from convkit.tensorflow_session import (
    SavedModelSession,
    checkpoint_session,
    cpu_config,
    first_line,
    load_errors,
)
from convkit.tensorflow_signature import Port

__all__ = [
    "FrozenGraph",
    "GraphRunner",
    "Port",
    "freeze_keras",
    "freeze_saved_model",
    "read_checkpoint",
    "read_frozen",
]


_END = "convkit_output"


@dataclass(frozen=True)
class FrozenGraph:
    """A `tf.compat.v1.GraphDef` without variables and function calls, and where it begins and ends.

    `If`, `While` and their kin keep their branches as functions of the library. Every input is a
    `Placeholder` node of the graph, also one that no output needs.
    """

    graph_def: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class GraphRunner:
    """Runs a frozen graph: arrays by input name in, arrays by output name out, in its order."""

    def __init__(self, frozen: FrozenGraph) -> None:
        tf = import_tensorflow()
        graph = tf.Graph()
        with graph.as_default():
            tf.graph_util.import_graph_def(frozen.graph_def, name="")
        self._session = tf.compat.v1.Session(graph=graph, config=cpu_config())
        self._inputs = frozen.inputs
        self._outputs = frozen.outputs
        self._call = self._session.make_callable(
            [port.tensor for port in frozen.outputs], feed_list=[p.tensor for p in frozen.inputs]
        )

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name.

        Raises:
            SamplesError: an input is missing, or TensorFlow refuses it.
            StepError: the graph fails.
        """
        values = arranged(feeds, self._inputs)
        names = (port.name for port in self._outputs)
        return dict(zip(names, run(self._call, values), strict=True))

    def close(self) -> None:
        """Gives the graph's memory back."""
        self._session.close()


def run(call: Any, values: Sequence[Any]) -> list[Any]:
    """Calls a session's callable; its errors become ours.

    Raises:
        SamplesError: an array has the wrong shape or type.
        StepError: an operator failed.
    """
    import numpy as np

    tf = import_tensorflow()
    try:
        return [np.asarray(array) for array in call(*values)]
    except (tf.errors.InvalidArgumentError, ValueError, TypeError) as cause:
        raise SamplesError("TensorFlow refuses the inputs.", why=first_line(cause)) from cause
    except tf.errors.OpError as cause:
        raise StepError("TensorFlow failed to run the model.", why=first_line(cause)) from cause


def freeze_saved_model(path: Path, signature: str | None = None) -> FrozenGraph:
    """One signature of the SavedModel in a folder, frozen.

    Args:
        path: the folder with `saved_model.pb`.
        signature: its name; None is `serving_default`, else the only one there is.

    Raises:
        ModelError: it is missing, damaged, or lacks its variables.
        UnknownNameError, UsageError: which signature is meant cannot be told.
        UnsupportedError: it changes variables while it runs, so they are no constants.
    """
    with SavedModelSession(path, signature) as opened:
        chosen = opened.signature
        with load_errors(path):
            return _frozen_session(opened.session, chosen.inputs, chosen.outputs)


def read_frozen(
    path: Path, input_names: Sequence[str] = (), output_names: Sequence[str] = ()
) -> FrozenGraph:
    """A GraphDef file between these tensors.

    Args:
        path: the `.pb` file.
        input_names: tensors (`x` or `x:0`); none: placeholders that the outputs need.
        output_names: tensors; none: nodes that nothing reads.

    Raises:
        ModelError: the file is missing, damaged, or holds no graph.
        UnknownNameError: the graph has no such tensor.
    """
    tf = import_tensorflow()
    with graph_file(path) as file:
        inputs, outputs = named_ends(file, input_names, output_names)
    graph = tf.Graph()
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    with graph.as_default(), load_errors(path):
        tf.graph_util.import_graph_def(graph_def, name="")
    with tf.compat.v1.Session(graph=graph, config=cpu_config()) as session, load_errors(path):
        return _frozen_session(session, inputs, outputs)


def read_checkpoint(
    meta: Path, input_names: Sequence[str] = (), output_names: Sequence[str] = ()
) -> FrozenGraph:
    """A TensorFlow 1 checkpoint with its graph (`model.ckpt.meta`), frozen between these tensors.

    Raises:
        ModelError: a file of the checkpoint is missing or damaged.
        UnknownNameError: the graph has no such tensor.
    """
    with graph_file(meta) as file:
        inputs, outputs = named_ends(file, input_names, output_names)
    with checkpoint_session(meta) as session:
        return _frozen_session(session, inputs, outputs)


def freeze_keras(model: Any, inputs: Sequence[TensorSpec] = ()) -> FrozenGraph:
    """A Keras 3 model on TensorFlow, in inference mode.

    Args:
        model: a `keras.Model`. Inputs and outputs are called as its input and output layers.
        inputs: what it takes, in order, where the model does not say (a subclass that was never
            called), or where dynamic dimensions are to have other names.

    Raises:
        InputsUnknownError: nothing says what the model takes.
        UnsupportedError: it looks values up in hash tables, which are no constants.
    """
    from convkit.tensorflow_keras import keras_function

    function, taken, given = keras_function(model, inputs)
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2_as_graph as convert,
    )

    check_size(model.name, sum(variable_bytes(v.dtype, v.shape) for v in model.weights))
    frozen, graph_def = convert(function, lower_control_flow=False, aggressive_inlining=True)
    if len(frozen.inputs) > len(taken):
        tables = {node_of(tensor.name) for tensor in frozen.inputs[len(taken) :]}
        raise _holds_tables(model.name, graph_def, tables)
    return FrozenGraph(graph_def, _ports(taken, frozen.inputs), _ports(given, frozen.outputs))


def _holds_tables(name: str, graph_def: Any, tables: set[str]) -> UnsupportedError:
    readers = [
        f"{node.op} in {node.name}"
        for node in graph_def.node
        if any(node_of(given) in tables for given in node.input)
    ]
    return UnsupportedError(
        f"The Keras model {name} looks values up in hash tables, which no frozen graph holds.",
        why=readers[:5],
        hint="Look them up before the model, and give it the numbers.",
        nodes=readers,
    )


def _ports(specs: Sequence[TensorSpec], tensors: Sequence[Any]) -> tuple[Port, ...]:
    return tuple(
        Port(spec.name, tensor.name, spec) for spec, tensor in zip(specs, tensors, strict=True)
    )


def _frozen_session(session: Any, inputs: Sequence[Port], outputs: Sequence[Port]) -> FrozenGraph:
    """What a session holds between these tensors, frozen."""
    tf = import_tensorflow()
    graph = session.graph
    inputs, outputs = known_specs(graph, inputs), known_specs(graph, outputs)
    with graph.as_default():
        ends = [tf.identity(graph.get_tensor_by_name(port.tensor), _END) for port in outputs]
    graph_def, taken = frozen_graph_def(
        session, [port.tensor for port in inputs], [end.op.name for end in ends]
    )
    return FrozenGraph(
        graph_def,
        tuple(replace(port, tensor=tensor) for port, tensor in zip(inputs, taken, strict=True)),
        tuple(replace(port, tensor=end.name) for port, end in zip(outputs, ends, strict=True)),
    )


def known_specs(graph: Any, ports: Sequence[Port]) -> tuple[Port, ...]:
    """Ports with the element types and shapes that TensorFlow's graph knows of."""
    found = []
    for port in ports:
        tensor = graph.get_tensor_by_name(port.tensor)
        sizes = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
        found.append(with_spec(port, tensor.dtype.base_dtype.name, sizes))
    return tuple(found)
