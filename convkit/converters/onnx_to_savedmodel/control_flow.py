"""If, Loop, Scan and SequenceMap: branches and bodies traced into `tf.cond` and `tf.while_loop`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.converters.onnx_to_savedmodel.growing import Growing
from convkit.converters.onnx_to_savedmodel.held import Held
from convkit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir

    from convkit.converters.onnx_to_savedmodel.tracing import Scope, Tracer

_UNROLLED_NODES = 200
"""A loop of known length is written out where it gives no more nodes than this."""
_ENDLESS = np.iinfo(np.int64).max


def conditional(tracer: Tracer, node: ir.Node, scope: Scope) -> list[Any]:
    """ONNX If. A condition known before the run leaves its branch only.

    So does one that decides how many axes a result has (exporters of PyTorch write `squeeze` so):
    which branch that is, is assumed by the tracer and checked in every run.
    """
    import tensorflow as tf

    condition = _given(node, 0, scope)
    branches = {
        True: node.attributes["then_branch"].as_graph(),
        False: node.attributes["else_branch"].as_graph(),
    }
    known = condition.known()
    if known is not None:
        return tracer.run(branches[bool(known.reshape(-1)[0])], scope)

    def branch(graph: ir.Graph) -> Callable[[], list[Any]]:
        return lambda: [_plain(value, node) for value in tracer.run(graph, scope.inner())]

    decision = tf.reshape(condition.first, [])
    results = tf.cond(decision, branch(branches[True]), branch(branches[False]))
    if not _is_any_axis_open(node, results):
        return _typed(node, list(results))
    name = node.name or str(node.outputs[0].name)
    tracer.assumed[name] = tracer.branch
    check = tf.debugging.Assert(
        tf.equal(decision, tracer.branch), [f"The If '{name}' takes its other branch."]
    )
    with tf.control_dependencies([check]):
        return tracer.run(branches[tracer.branch], scope)


def _is_any_axis_open(node: ir.Node, results: Sequence[Any]) -> bool:
    """Whether neither TensorFlow nor ONNX knows how many axes one of the results has."""
    return any(
        not isinstance(result, list) and result.shape.rank is None and value.shape is None
        for result, value in zip(results, node.outputs, strict=True)
    )


def loop(tracer: Tracer, node: ir.Node, scope: Scope) -> list[Any]:
    """ONNX Loop: while a count is not reached and a condition holds."""
    body = node.attributes["body"].as_graph()
    trips = None if node.inputs[0] is None else scope[node.inputs[0].name or ""]
    condition = _given(node, 1, scope) if _has(node, 1) else Held(array=np.array(True))
    carried = [scope[value.name or ""] for value in node.inputs[2:] if value is not None]

    def step(number: Held, going: Held, values: Sequence[Any]) -> list[Any]:
        inner = scope.inner()
        for value, given in zip(body.inputs, (number, going, *values), strict=True):
            inner[value.name or ""] = given
        return tracer.run(body, inner)

    length = None if trips is None else trips.known()
    if length is not None:
        unrolled = _unrolled(step, int(length.reshape(-1)[0]), condition, carried, len(body))
        if unrolled is not None:
            return unrolled
    return _while(node, step, trips, condition, carried)


def _unrolled(
    step: Callable[..., list[Any]],
    length: int,
    condition: Held,
    carried: list[Any],
    node_count: int,
) -> list[Any] | None:
    """The loop written out; None where it is long, or may end early."""
    import tensorflow as tf

    if not condition.is_known or not 0 < length * max(node_count, 1) <= _UNROLLED_NODES:
        return None
    if not bool(np.all(condition.known())):
        return None
    rows: list[list[Any]] = []
    for number in range(length):
        going, *values = step(Held(array=np.array(number, np.int64)), condition, carried)
        if not going.is_known or not bool(np.all(going.known())):
            return None
        carried = values[: len(carried)]
        rows.append(values[len(carried) :])
    stacked = [
        Held(first=tf.stack([row.first for row in rows_of])) for rows_of in zip(*rows, strict=False)
    ]
    return [*carried, *stacked]


def _while(
    node: ir.Node,
    step: Callable[..., list[Any]],
    trips: Held | None,
    condition: Held,
    carried: Sequence[Any],
) -> list[Any]:
    import tensorflow as tf

    kinds = [_sequence_type(value) for value in node.inputs[len(node.inputs) - len(carried) :]]
    initial = [_carried(value, kind, node) for value, kind in zip(carried, kinds, strict=True)]

    def run(number: Any, going: Any, *values: Any) -> list[Any]:
        given = [Growing(*v) if isinstance(v, tuple) else Held(first=v) for v in values]
        going, *results = step(Held(first=number), Held(first=going), given)
        types = [*kinds, *(None for _ in results[len(kinds) :])]
        rest = [_carried(v, kind, node) for v, kind in zip(results, types, strict=True)]
        return [tf.reshape(going.first, []), *rest]

    start = [tf.constant(0, tf.int64), tf.reshape(condition.first, [])]
    limit = tf.constant(_ENDLESS, tf.int64) if trips is None else tf.reshape(trips.first, [])
    shapes, rows = _stable(run, initial)
    arrays = _arrays(rows)
    found = tf.while_loop(
        lambda number, going, *_: tf.logical_and(number < limit, going),
        _recording(run, len(initial)),
        [*start, *initial, *arrays],
        shape_invariants=[
            tf.TensorShape([]),
            tf.TensorShape([]),
            *shapes,
            *(tf.TensorShape(None) for _ in arrays),
        ],
    )
    count, _, *results = found
    carried_count = len(initial)
    stacked = [
        _stacked(array, count, row)
        for array, row in zip(results[carried_count:], rows, strict=True)
    ]
    return _typed(node, [*results[:carried_count], *stacked])


def _sequence_type(value: ir.Value | None) -> Any:
    """The type of a sequence's tensors; None for a tensor."""
    import onnx_ir as ir

    from convkit.converters.onnx_to_savedmodel.tracing import dtype_of

    kind = None if value is None else value.type
    return dtype_of(kind.dtype) if isinstance(kind, ir.SequenceType) else None


def _carried(value: Any, sequence_type: Any, node: ir.Node) -> Any:
    """A value as a TensorFlow loop carries it: a tensor, or the parts of a growing sequence."""
    if isinstance(value, list) and sequence_type is not None:
        value = Growing.of(value, sequence_type)
    return value.parts if isinstance(value, Growing) else _plain(value, node)


def _recording(run: Callable[..., list[Any]], carried_count: int) -> Callable[..., list[Any]]:
    """The body of the while loop: one step, whose further results go into arrays."""
    import tensorflow as tf

    def body(number: Any, going: Any, *values: Any) -> list[Any]:
        arrays = values[carried_count:]
        going, *results = run(number, going, *values[:carried_count])
        place = tf.cast(number, tf.int32)
        written = [
            array.write(place, row)
            for array, row in zip(arrays, results[carried_count:], strict=True)
        ]
        return [number + 1, going, *results[:carried_count], *written]

    return body


def _stable(run: Callable[..., list[Any]], initial: list[Any]) -> tuple[list[Any], list[Any]]:
    """Shapes of the carried values that hold in every step, and what the other results are.

    A size that one step changes is dynamic; the step is traced until no size changes.
    """
    import tensorflow as tf

    shapes = [_shape(value) for value in initial]
    head = [tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.bool)]
    while True:
        specs = [
            Growing(*value).spec()
            if isinstance(value, tuple)
            else tf.TensorSpec(shape, value.dtype)
            for shape, value in zip(shapes, initial, strict=True)
        ]
        traced = tf.function(run, autograph=False).get_concrete_function(*head, *specs)
        results = traced.structured_outputs[1:]
        merged = [
            shape if isinstance(shape, tuple) else _common(shape, result.shape)
            for shape, result in zip(shapes, results, strict=False)
        ]
        if [str(shape) for shape in merged] == [str(shape) for shape in shapes]:
            return shapes, results[len(initial) :]
        shapes = merged


def _shape(value: Any) -> Any:
    """The shape invariant of a carried value."""
    import tensorflow as tf

    if isinstance(value, tuple):
        return tf.TensorShape(None), tf.TensorShape([])
    return value.shape


def _common(one: Any, other: Any) -> Any:
    """The most special shape that both have."""
    import tensorflow as tf

    if one.rank is None or other.rank is None or one.rank != other.rank:
        return tf.TensorShape(None)
    return tf.TensorShape([a if a == b else None for a, b in zip(one, other, strict=True)])


def _arrays(rows: Sequence[Any]) -> list[Any]:
    import tensorflow as tf

    return [
        tf.TensorArray(row.dtype, 0, dynamic_size=True, element_shape=row.shape, infer_shape=False)
        for row in rows
    ]


def _stacked(array: Any, count: Any, row: Any) -> Any:
    """The rows as one tensor; a loop that never ran gives none of them."""
    import tensorflow as tf

    if row.shape.is_fully_defined():
        return array.stack()
    if row.shape.rank is None:
        return array.stack()
    none = [0, *(0 if size is None else size for size in row.shape)]
    stacked = tf.cond(count > 0, array.stack, lambda: tf.zeros(none, row.dtype))
    return tf.ensure_shape(stacked, [None, *row.shape])


def scan(tracer: Tracer, node: ir.Node, scope: Scope) -> list[Any]:
    """ONNX Scan: a loop over slices of its last inputs."""
    import tensorflow as tf

    body = node.attributes["body"].as_graph()
    scanned_count = int(node.attributes["num_scan_inputs"].value)
    inputs = [scope[value.name or ""] for value in node.inputs if value is not None]
    state_count = len(inputs) - scanned_count
    states, scanned = inputs[:state_count], [value.first for value in inputs[state_count:]]
    axes = _list(node, "scan_input_axes", scanned_count)
    backward = _list(node, "scan_input_directions", scanned_count)
    length = tf.shape(scanned[0], out_type=tf.int64)[axes[0]]

    def step(number: Held, going: Held, values: Sequence[Any]) -> list[Any]:
        inner = scope.inner()
        rows = [
            Held(first=tf.gather(x, length - 1 - number.first if back else number.first, axis=axis))
            for x, axis, back in zip(scanned, axes, backward, strict=True)
        ]
        for value, given in zip(body.inputs, (*values, *rows), strict=True):
            inner[value.name or ""] = given
        return [Held(array=np.array(True)), *tracer.run(body, inner)]

    results = _while(node, step, Held(first=length), Held(array=np.array(True)), states)
    return _placed(node, results, state_count, scanned[0].shape[axes[0]])


def _placed(node: ir.Node, results: list[Any], state_count: int, length: int | None) -> list[Any]:
    """The outputs of a scan with their rows along the axes and in the order that it names."""
    import tensorflow as tf

    rows = [value.first for value in results[state_count:]]
    axes = _list(node, "scan_output_axes", len(rows))
    backward = _list(node, "scan_output_directions", len(rows))
    placed = []
    for tensor, axis, back in zip(rows, axes, backward, strict=True):
        if length is not None and tensor.shape.rank is not None:
            tensor = tf.ensure_shape(tensor, [length, *tensor.shape[1:]])
        tensor = tf.reverse(tensor, [0]) if back else tensor
        rank = tensor.shape.rank
        if rank is not None and axis % rank:
            tensor = tf.transpose(tensor, _inserted(axis % rank, rank))
        placed.append(Held(first=tensor))
    return [*results[:state_count], *placed]


def _inserted(axis: int, rank: int) -> list[int]:
    """The order that moves the first axis to the place `axis`."""
    order = list(range(1, rank))
    order.insert(axis, 0)
    return order


def sequence_map(tracer: Tracer, node: ir.Node, scope: Scope) -> list[Any]:
    """ONNX SequenceMap: the body for each element of the first sequence."""
    body = node.attributes["body"].as_graph()
    inputs = [scope[value.name or ""] for value in node.inputs if value is not None]
    if not isinstance(inputs[0], list):
        raise UnsupportedError(f"SequenceMap '{node.name}' runs over a sequence of unknown length.")
    results: list[list[Any]] = [[] for _ in body.outputs]
    for index in range(len(inputs[0])):
        inner = scope.inner()
        for value, given in zip(body.inputs, inputs, strict=True):
            item = Held(first=given[index]) if isinstance(given, list) else given.forked()
            inner[value.name or ""] = item
        for into, result in zip(results, tracer.run(body, inner), strict=True):
            into.append(result.first)
    return list(results)


def _has(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _given(node: ir.Node, index: int, scope: Scope) -> Held:
    value = node.inputs[index]
    assert value is not None
    held: Held = scope[value.name or ""]
    return held


def _list(node: ir.Node, name: str, count: int) -> list[int]:
    attribute = node.attributes.get(name)
    return [0] * count if attribute is None else [int(number) for number in attribute.value]


def _plain(value: Any, node: ir.Node) -> Any:
    """The tensor that leaves a body; a sequence as its tensors."""
    if isinstance(value, Held):
        return value.first
    if isinstance(value, list):
        return list(value)
    raise UnsupportedError(
        f"{node.op_type} '{node.name}' gives an optional that may be absent.",
        hint="A SavedModel has no such value; give a tensor in every branch.",
    )


def _typed(node: ir.Node, results: list[Any]) -> list[Any]:
    """The results as values; a number of axes that TensorFlow lost is taken from the ONNX file."""
    typed: list[Any] = []
    for value, result in zip(node.outputs, results, strict=False):
        if isinstance(result, (list, tuple)):
            typed.append(Growing(*result) if isinstance(result, tuple) else result)
            continue
        if result.shape.rank is None and value.shape is not None:
            result.set_shape([None] * len(value.shape))
        typed.append(Held(first=result))
    return typed


SPECIAL: Mapping[str, Callable[..., list[Any]]] = {
    "If": conditional,
    "Loop": loop,
    "Scan": scan,
    "SequenceMap": sequence_map,
}
