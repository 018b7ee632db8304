"""Transposes in front of matrix products that ONNX Runtime cannot load in half precision.

On its CPU provider ONNX Runtime 1.31.1 fuses a Transpose that moves the first axis next to the
last (or behind it) into a MatMul with a constant matrix. Where the Transpose is half, that ends
the process with a segmentation fault while the session is made (`MatmulTransposeFusion`, then
`FuseFp16InitializerToFp32NodeTransformer`, both on by default). A recurrent layer in front of a
linear one is such a pair in most exports.

A Transpose that leaves the last axis in place moves behind the product, which gives the same
numbers. The other pairs stay in fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from convkit.onnx_typing import nodes_of
from convkit.passes.onnx_half_constants import tensor_of

if TYPE_CHECKING:
    import onnx_ir as ir

WHY = "ONNX Runtime stops while it loads this Transpose and MatMul in half"


def move_transposes(model: ir.Model) -> None:
    """Turns MatMul(Transpose(x), w) into Transpose(MatMul(x, w)) where that avoids the fault.

    Changes `model` in place; every value that is left keeps its name.
    """
    changed = True
    while changed:  # behind one product, a Transpose may stand before the next
        changed = False
        for node in list(nodes_of(model.graph)):
            if _can_move(node):
                _move(node)
                changed = True


def stops_loading(node: ir.Node) -> bool:
    """Whether a Transpose or MatMul is half of a pair that must stay in fp32."""
    if node.op_type == "MatMul" and node.domain == "":
        return any(_transpose_before(node, index) is not None for index in (0, 1))
    if not _rotates(node):
        return False
    uses = [use for use in node.outputs[0].uses() if use.node.op_type == "MatMul"]
    return any(_transpose_before(use.node, use.idx) is node for use in uses)


def _rotates(node: ir.Node) -> bool:
    """Whether a Transpose moves the first axis to one of the last two places, others in order."""
    if node.op_type != "Transpose" or node.domain != "" or "perm" not in node.attributes:
        return False
    perm = list(node.attributes["perm"].as_ints())
    rank = len(perm)
    return rank >= 3 and perm in (
        [*range(1, rank - 1), 0, rank - 1],
        [*range(1, rank), 0],
    )


def _transpose_before(node: ir.Node, index: int) -> ir.Node | None:
    """The Transpose that a MatMul with a constant matrix reads at `index`, if it is such a one."""
    value, other = node.inputs[index], node.inputs[1 - index]
    made = value.producer() if value is not None else None
    tensor = tensor_of(other) if other is not None else None
    is_pair = made is not None and _rotates(made) and tensor is not None and len(tensor.shape) == 2
    return made if is_pair else None


def _can_move(node: ir.Node) -> bool:
    if node.op_type != "MatMul" or node.domain != "":
        return False
    transpose = _transpose_before(node, 0)
    if transpose is None or transpose.graph is not node.graph:
        return False
    perm = transpose.attributes["perm"].as_ints()
    return perm[-1] == len(perm) - 1


def _move(node: ir.Node) -> None:
    import onnx_ir as ir

    transpose = _transpose_before(node, 0)
    assert transpose is not None
    source, result = transpose.inputs[0], node.outputs[0]
    perm = list(transpose.attributes["perm"].as_ints())
    name = f"{node.name or result.name}_order"
    behind = ir.node("Transpose", [result], {"perm": perm}, name=name)
    moved = behind.outputs[0]
    moved.type, moved.shape = result.type, result.shape
    result.replace_all_uses_with(moved, replace_graph_outputs=True)
    behind.replace_input_with(0, result)
    moved.name, result.name = result.name, f"{result.name}_unordered"
    if moved.shape is not None:
        sizes = [moved.shape[perm.index(axis)] for axis in range(len(perm))]
        result.shape = ir.Shape(sizes)
    node.replace_input_with(0, source)
    node.append(behind)
    unread = transpose.outputs[0]
    if not unread.uses() and not unread.is_graph_output() and transpose.graph is not None:
        transpose.graph.remove(transpose, safe=True)
