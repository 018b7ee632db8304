"""Calls a graph's operators one after another while TensorFlow records them.

What is known before the run is computed at once and becomes part of the graph as a constant; sizes
are followed one by one; the rest are calls of the operator functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.converters.onnx_reading.calls import Call, call_of
from convkit.converters.onnx_to_savedmodel import control_flow, growing, shape_arithmetic
from convkit.converters.onnx_to_savedmodel.growing import Growing
from convkit.converters.onnx_to_savedmodel.held import Held, to_first
from convkit.converters.onnx_to_savedmodel.layouts import LastCall, last_call
from convkit.converters.onnx_to_savedmodel.parameters import arguments, keyword_names
from convkit.converters.onnx_to_savedmodel.weights import Library, Weights, kernel_axis, plain_name
from convkit.errors import ConvkitError, UnsupportedError

if TYPE_CHECKING:
    import onnx_ir as ir

_FOLDED_BYTES = 1 << 16
"""Results up to here become constants; larger ones are computed in every run."""
_STATIC_ELEMENTS = 64
_RANDOM = ("Random", "Bernoulli", "Multinomial")

Value = Any
"""Held, a list of tensors or Growing (a sequence), or None (an absent optional)."""


class Scope:
    """The values of a graph by name; a body sees those around it and keeps what it makes."""

    def __init__(self, outer: Scope | None = None) -> None:
        self.values: dict[str, Value] = {}
        self.outer = outer

    def __getitem__(self, name: str) -> Value:
        if name not in self.values:
            if self.outer is None:
                raise KeyError(name)
            value = self.outer[name]
            self.values[name] = value.forked() if isinstance(value, Held) else value
        return self.values[name]

    def inner(self) -> Scope:
        """The scope of a body inside this graph."""
        return Scope(self)

    def __setitem__(self, name: str, value: Value) -> None:
        self.values[name] = value


class Tracer:
    """Traces graphs with the functions of a library.

    Args:
        library: the functions.
        weights: the variables.
        branch: the branch of an If to assume where the two give different numbers of axes.

    Attributes:
        assumed: the If nodes of which a branch was assumed, by name.
    """

    def __init__(self, library: Library, weights: Weights, branch: bool) -> None:
        self.library = library
        self.weights = weights
        self.branch = branch
        self.assumed: dict[str, bool] = {}

    def run(self, graph: ir.Graph, scope: Scope) -> list[Value]:
        """The outputs of a graph whose inputs `scope` holds."""
        for value in graph.initializers.values():
            if value.name not in scope.values:
                scope[value.name or ""] = self.weights.hold(value)
        for node in graph:
            try:
                results = self._node(node, scope)
            except ConvkitError:
                raise
            except Exception as cause:  # whatever TensorFlow raises for this operator
                raise _refused(node, cause) from cause
            for value, result in zip(node.outputs, results, strict=False):
                if value.name:
                    scope[value.name] = result
        return [scope[value.name or ""] for value in graph.outputs]

    def _node(self, node: ir.Node, scope: Scope) -> list[Value]:
        import tensorflow as tf

        special = _SPECIAL.get(node.op_type) if node.domain == "" else None
        with tf.name_scope(_scope_name(node)):
            if special is not None:
                return special(self, node, scope)
            return self._operator(node, scope)

    def _operator(self, node: ir.Node, scope: Scope) -> list[Value]:
        function = self.library[node.domain, node.op_type]
        call = call_of(node, function)
        keywords = _decoded(call)
        inputs = [None if x is None else scope[x.name or ""] for x in call.inputs]
        if node.domain == "":
            known = _passed_on(node, inputs, keywords)
            if known is not None:
                return [known]
        if node.op_type == "SplitToSequence" and node.domain == "":
            sequence = growing.slices(inputs, keywords)
            if sequence is not None:
                return [sequence]
        if any(isinstance(x, Growing) for x in inputs):
            return [growing.compute(node, inputs, keywords)]
        if _can_fold(node, inputs):
            folded = _folded(function, call, inputs, keywords)
            if folded is not None:
                return folded
        return self._called(node, function, call, inputs, keywords)

    def _called(
        self,
        node: ir.Node,
        function: Callable[..., Any],
        call: Call,
        inputs: list[Value],
        keywords: dict[str, Any],
    ) -> list[Value]:
        plan = _last_plan(node, function, call, inputs, keywords)
        given: Sequence[Any] = inputs if plan is None else plan.inputs
        if plan is not None:
            keywords = {**keywords, **plan.keywords}
        if len(call.inputs) > 1:
            keywords |= self._kernel_keywords(node, call, inputs, keywords)
        results = _results(function, given, keywords)
        is_last = plan is not None and plan.is_last
        _give_ranks(node, results)
        return [_held(result, is_last) for result in results]

    def _kernel_keywords(
        self, node: ir.Node, call: Call, inputs: list[Value], keywords: dict[str, Any]
    ) -> dict[str, Any]:
        """What tells a function that a weight is in TensorFlow's order already."""
        if node.op_type == "DequantizeLinear" and self.weights.is_kernel(call.inputs[0]):
            return {"axis": kernel_axis(keywords.get("axis", 1), inputs[0].rank)}
        return {"weight_layout": "TF"} if self.weights.is_kernel(call.inputs[1]) else {}


def _give_ranks(node: ir.Node, results: Sequence[Any]) -> None:
    """Takes a number of axes that TensorFlow could not tell from ONNX's inference."""
    import tensorflow as tf

    for value, result in zip(node.outputs, results, strict=False):
        if tf.is_tensor(result) and result.shape.rank is None and value.shape is not None:
            result.set_shape([None] * len(value.shape))


def _last_plan(
    node: ir.Node,
    function: Callable[..., Any],
    call: Call,
    inputs: Sequence[Value],
    keywords: dict[str, Any],
) -> LastCall | None:
    if node.domain != "" or any(x is not None and not isinstance(x, Held) for x in inputs):
        return None
    has_layout = "layout" in keyword_names(function)
    if has_layout and call.output_count > 1:
        return None
    return last_call(node.op_type, inputs, keywords, has_layout)


def _passed_on(node: ir.Node, inputs: Sequence[Value], keywords: dict[str, Any]) -> Value | None:
    """The result of an operator that computes nothing: on sizes, identities, changes of order."""
    if not inputs or any(x is not None and not isinstance(x, Held) for x in inputs):
        return inputs[0] if node.op_type == "Identity" and inputs else None
    data = inputs[0]
    if node.op_type == "Identity" and data is not None:
        return data
    if node.op_type == "Transpose" and data is not None and not data.is_known:
        order = keywords.get("perm") or list(range(data.rank or 0))[::-1]
        rank = len(order)
        if rank > 2 and order == [0, *range(2, rank), 1] and data.is_channels_last:
            return Held(first=data.last)
        if rank > 2 and order == to_first(rank) and not data.is_channels_last:
            return Held(last=data.first)
    return shape_arithmetic.computed(node.op_type, inputs, keywords)


def _can_fold(node: ir.Node, inputs: Sequence[Value]) -> bool:
    if node.op_type.startswith(_RANDOM):
        return False
    return all(x is None or (isinstance(x, Held) and x.is_known) for x in inputs)


def _folded(
    function: Callable[..., Any], call: Call, inputs: Sequence[Value], keywords: dict[str, Any]
) -> list[Value] | None:
    """The results as constants; None where they are too large for the graph, or no arrays."""
    import tensorflow as tf

    with tf.init_scope(), tf.device("CPU"):
        fresh = [None if x is None else Held(array=x.array) for x in inputs]
        results = _results(function, fresh, keywords)
        if not all(tf.is_tensor(result) for result in results):
            return None
        arrays = [result.numpy() for result in results]
    if sum(array.nbytes for array in arrays) > _FOLDED_BYTES:
        return None
    return [Held(array=np.asarray(array)) for array in arrays]


def _decoded(call: Call) -> dict[str, Any]:
    """The attributes as the functions of the library take them; tensors as arrays."""
    import onnx_ir as ir

    keywords = dict(call.keywords)
    for name, attribute in keywords.items():
        if name in call.dtypes:
            keywords[name] = dtype_of(attribute) if attribute else None
        elif isinstance(attribute, ir.TensorProtocol):
            keywords[name] = np.asarray(attribute.numpy())
    if call.counts:
        keywords["output_count"] = call.output_count
    return keywords


def constant(tracer: Tracer, node: ir.Node, scope: Scope) -> list[Value]:
    """ONNX Constant, where the reader could not make it an initializer: a result of a body."""
    name, attribute = next(iter(node.attributes.items()))
    if "string" in name or name == "sparse_value":
        raise UnsupportedError(f"Constant '{node.name}' holds a {name}, which has no translation.")
    if name == "value":
        array = np.asarray(attribute.value.numpy())
    else:
        array = np.array(attribute.value, np.float32 if "float" in name else np.int64)
    return [Held(array=array)]


def dtype_of(code: int) -> Any:
    """The TensorFlow data type of an ONNX one."""
    import onnx_ir as ir
    import tensorflow as tf

    kind = ir.DataType(code)
    if kind == ir.DataType.STRING:
        raise UnsupportedError("Strings have no translation to a SavedModel.")
    return tf.as_dtype(kind.numpy())


def _results(
    function: Callable[..., Any], given: Sequence[Any], keywords: dict[str, Any]
) -> list[Any]:
    """What the function gives, as a list; arrays among the attributes become tensors here."""
    import tensorflow as tf

    named = {
        name: tf.constant(value) if isinstance(value, np.ndarray) else value
        for name, value in keywords.items()
    }
    results = function(*arguments(function, given), **named)
    return list(results) if isinstance(results, tuple) else [results]


def _held(result: Any, is_last: bool) -> Value:
    """What a function gave, as a value; a known small integer is kept as such."""
    import tensorflow as tf

    if result is None or isinstance(result, list):
        return result
    if is_last and result.shape.rank is not None and result.shape.rank > 2:
        return Held(last=result)
    if result.dtype in (tf.int64, tf.int32, tf.bool):
        known = _static(result)
        if known is not None:
            return Held(array=known)
    return Held(first=result)


def _static(result: Any) -> np.ndarray[Any, Any] | None:
    import tensorflow as tf

    count = result.shape.num_elements()
    if count is None or count > _STATIC_ELEMENTS or result.shape.rank > 1:
        return None
    known = tf.get_static_value(result)
    return None if known is None else np.asarray(known)


def _scope_name(node: ir.Node) -> str:
    """The name of the node's first result, as far as TensorFlow allows it."""
    return plain_name(next((value.name for value in node.outputs if value.name), node.op_type))


def _refused(node: ir.Node, cause: Exception) -> UnsupportedError:
    where = node.name or next((value.name for value in node.outputs if value.name), "")
    lines = str(cause).splitlines() or [type(cause).__name__]
    return UnsupportedError(
        f"{node.op_type} '{where}' cannot be expressed in TensorFlow.",
        why=f"{type(cause).__name__}: {lines[0][:300]}",
    )


_SPECIAL = {**control_flow.SPECIAL, "Constant": constant}
"""Operators that the tracer computes itself."""
