"""What no ONNX graph can hold, found in a TensorFlow graph before it is translated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from convkit.artifact import TensorSpec
from convkit.errors import UnsupportedError
from convkit.tensorflow_graph import FrozenGraph

_TEXT = re.compile(
    r"String|Regex|AsString|Substr|Base64|UnicodeDe|UnicodeTr|UnicodeEn|DecodeCSV|DecodeRaw"
    r"|ParseExample|ParseSingle|ParseTensor|ParseSequence|Decode(Jpeg|Png|Image|Bmp|Gif|Wav)"
    r"|Encode(Jpeg|Png|Wav)|ReadFile|WriteFile|Tokeniz|Sentencepiece"
)
_TABLE = re.compile(r"HashTable|LookupTable|InitializeTable|DenseHashTable|MutableHash")
_ASSIGNMENT = re.compile(r"^(Resource)?(Assign|Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update))")
_VARIABLE = re.compile(r"^(VarHandleOp|VariableV2|Variable|TemporaryVariable|ReadVariableOp)$")
_PYTHON = re.compile(r"^(PyFunc|PyFuncStateless|EagerPyFunc|NumpyFunction|Py_?[Cc]all)$")
_CASE = re.compile(r"^((Stateless)?Case|_SwitchN)$")
"""Source: the second is what TensorFlow's optimizer makes of the first."""
_SETS = re.compile(r"^(Dense|Sparse)To(Dense|Sparse)SetOperation$")
_OPENED = re.compile(r"^(Iterator|OneShotIterator|QueueDequeue|FIFOQueue|ReaderRead)")

_NO_TEXT = "This TensorFlow graph works on strings, which ONNX runtimes and TensorRT do not."
_TEXT_HINT = (
    "Cut the text processing off and convert the network behind it:  "
    "save it with a signature that takes numbers."
)

_STATEFUL_FUNCTIONAL = ("ScatterNd", "ScatterNdNonAliasingAdd")


def refuse_untranslatable(frozen: FrozenGraph) -> None:
    """Refuses graphs on text, tables, state that is written, and Python code, by name.

    Raises:
        UnsupportedError: with the operators and the nodes where they are.
    """
    refuse_text([port.spec for port in frozen.inputs])
    nodes = list(_needed(frozen))
    tables = _named(nodes, _TABLE)
    texts = _named(nodes, _TEXT)
    _refuse(texts + tables if texts else [], _NO_TEXT, _TEXT_HINT)
    _refuse(
        tables,
        "This TensorFlow graph looks values up in hash tables, which ONNX does not have.",
        "Look them up before the model, and give it the numbers.",
    )
    _refuse(
        _named(nodes, _PYTHON),
        "This TensorFlow graph calls Python functions, which no file holds.",
        "Write tf.py_function's code with TensorFlow operators.",
    )
    _refuse(
        _written(frozen, nodes),
        "This TensorFlow graph changes variables while it runs; an ONNX graph keeps no state.",
        "Give the state as an input and return its new value as an output.",
    )
    _refuse(
        _named(nodes, _CASE),
        "This TensorFlow graph chooses among functions by a number (tf.switch_case), which tf2onnx "
        "cannot express.",
        "Write the choice with tf.cond.",
    )
    _refuse(
        [
            f"{node.op} in {node.name}"
            for node in nodes
            if _SETS.match(node.op) and node.attr["set_operation"].s != b"union"
        ],
        "This TensorFlow graph takes differences or intersections of sets; what tf2onnx makes of "
        "them fails where the result is empty.",
        "Compare the elements with tf.equal and tf.reduce_any.",
    )
    _refuse(
        _named(nodes, _OPENED),
        "This TensorFlow graph reads its inputs from files or queues.",
        "Save it with a signature that takes tensors.",
    )


def refuse_text(inputs: Sequence[TensorSpec]) -> None:
    """Refuses a model that takes strings.

    Raises:
        UnsupportedError: with the inputs' names.
    """
    texts = [spec.name for spec in inputs if spec.dtype in ("string", "object", "str")]
    _refuse([f"input '{name}' holds strings" for name in texts], _NO_TEXT, _TEXT_HINT)


def _refuse(found: list[str], what: str, hint: str) -> None:
    if found:
        raise UnsupportedError(what, why=_shown(found), hint=hint, nodes=found)


def _shown(found: list[str]) -> list[str]:
    more = [f"... and {len(found) - 5} more"] if len(found) > 5 else []
    return found[:5] + more


def _named(nodes: Iterable[Any], pattern: re.Pattern[str]) -> list[str]:
    return [f"{node.op} in {node.name}" for node in nodes if pattern.search(node.op)]


def _written(frozen: FrozenGraph, nodes: list[Any]) -> list[str]:
    """Assignments with the variable they change, and variables that could not be frozen."""
    by_name = {node.name: node for node in nodes}
    found = []
    for node in nodes:
        is_written = _ASSIGNMENT.match(node.op) and node.op not in _STATEFUL_FUNCTIONAL
        if is_written:
            found.append(f"{node.op} in {node.name} changes {_variable(node, by_name)}")
    return found or [f"{node.op} in {node.name}" for node in nodes if _VARIABLE.match(node.op)]


def _variable(node: Any, nodes: Mapping[str, Any]) -> str:
    """The name of the variable that an assignment writes."""
    handle = node.input[0] if node.input else ""
    for _ in range(8):
        source = nodes.get(handle.partition(":")[0])
        if source is None:
            break
        shared = source.attr["shared_name"].s.decode() if "shared_name" in source.attr else ""
        if source.op in ("VarHandleOp", "VariableV2", "Variable"):
            return f"variable '{shared or source.name}'"
        if not source.input:
            break
        handle = source.input[0]
    return f"variable '{handle.partition(':')[0]}'"


def _needed(frozen: FrozenGraph) -> Iterator[Any]:
    """Nodes that outputs need by their data, and all nodes of functions they call."""
    graph = frozen.graph_def
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    waiting = [port.tensor.partition(":")[0] for port in frozen.outputs]
    seen: set[str] = set()
    called: set[str] = set()
    while waiting:
        name = waiting.pop()
        node = nodes.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        yield node
        called.update(_functions_of(node))
        is_assertion = node.op in ("Assert", "Print", "PrintV2")
        inputs = () if is_assertion else node.input
        waiting += [text.partition(":")[0] for text in inputs if not text.startswith("^")]
    done: set[str] = set()
    while called - done:
        function = functions.get(current := (called - done).pop())
        done.add(current)
        if function is None:
            continue
        for node in function.node_def:
            yield node
            called.update(_functions_of(node))


def _functions_of(node: Any) -> set[str]:
    single = {value.func.name for value in node.attr.values() if value.HasField("func")}
    listed = {
        function.name
        for value in node.attr.values()
        if value.HasField("list")
        for function in value.list.func
    }
    return single | listed
