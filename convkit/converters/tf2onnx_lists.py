"""Lists that loops fill: which of them tf2onnx translates rightly.

It makes every list that a loop writes to a scan output, whose n-th element is what iteration n
wrote. That is right where the index counts iterations from zero (and for Keras, which writes to
place 0 and takes the last). Other orders would end in a wrong file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from convkit.errors import UnsupportedError

_LOOPS = ("While", "StatelessWhile")
_SAME = ("Identity", "Cast")


def refuse_other_orders(graph: Any) -> None:
    """Looks at all loops of a GraphDef.

    Raises:
        UnsupportedError: a loop writes to a list in another order than it iterates.
    """
    functions = {function.signature.name: function for function in graph.library.function}
    found = []
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    for nodes in bodies:
        makers = {node.name: node for node in nodes}
        for node in nodes:
            if node.op in _LOOPS:
                body = functions.get(node.attr["body"].func.name)
                found += [] if body is None else list(_unordered(node, body, makers))
    if found:
        raise UnsupportedError(
            "A loop of this TensorFlow graph fills a list in another order than it iterates.",
            why=found[:5],
            hint="Write element i in iteration i, and reverse or gather the list afterwards.",
            nodes=found,
        )


def _unordered(loop: Any, body: Any, outside: Mapping[str, Any]) -> Iterator[str]:
    for node in body.node_def:
        if node.op == "TensorListSetItem" and not _counts(node.input[1], loop, body, outside):
            yield f"TensorListSetItem in {node.name}, in the body of {loop.name}"


def _counts(index: str, loop: Any, body: Any, outside: Mapping[str, Any]) -> bool:
    """Whether an index is zero, or counts iterations from zero."""
    makers = {node.name: node for node in body.node_def}
    index = _uncast(index, makers)
    arguments = [argument.name for argument in body.signature.input_arg]
    if index not in arguments:
        return _constant(makers.get(_node(index))) == 0
    position = arguments.index(index)
    start = _constant(outside.get(_node(loop.input[position])))
    given = _uncast(body.ret[body.signature.output_arg[position].name], makers)
    if given == index:  # handed through: a constant from outside
        return start == 0
    node = makers.get(_node(given))
    if node is None or node.op not in ("AddV2", "Add"):
        return False
    sides = [_uncast(name, makers) for name in node.input[:2]]
    step = next((side for side in sides if side != index), "")
    # A start that is no constant here may still be zero; verification then decides.
    return index in sides and _constant(makers.get(_node(step))) == 1 and start in (0, None)


def _uncast(name: str, makers: Mapping[str, Any]) -> str:
    while (node := makers.get(_node(name))) is not None and node.op in _SAME:
        name = node.input[0]
    return name


def _node(name: str) -> str:
    return name.partition(":")[0]


def _constant(node: Any) -> int | None:
    """The single number a Const node holds."""
    from tensorflow.python.framework.tensor_util import MakeNdarray

    if node is None or node.op != "Const":
        return None
    array = MakeNdarray(node.attr["value"].tensor)
    return int(array.reshape(())) if array.size == 1 else None
