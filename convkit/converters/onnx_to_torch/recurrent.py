"""LSTM, GRU and RNN with constant weights as layers of `torch.nn`.

ONNX stacks the gates of an LSTM as input, output, forget, cell and PyTorch as input, forget, cell,
output; of a GRU ONNX as update, reset, hidden and PyTorch as reset, update, hidden. PyTorch's GRU
is ONNX's with `linear_before_reset`.

Source: LSTM, GRU and RNN in docs/Operators.md of ONNX; `torch.nn.LSTM`, `GRU`, `RNN`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch.dtypes import is_float
from convkit.converters.onnx_to_torch.names import module_name
from convkit.converters.onnx_to_torch.scope import Scope, is_used
from convkit.converters.onnx_to_torch.weights import Weight

if TYPE_CHECKING:
    import onnx_ir as ir

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""PyTorch's gates by their place in ONNX."""

_ACTIVATIONS = {
    "LSTM": (["sigmoid", "tanh", "tanh"],),
    "GRU": (["sigmoid", "tanh"],),
    "RNN": (["tanh"], ["relu"]),
}


def emit_recurrent(scope: Scope, node: ir.Node) -> bool:
    """Writes a recurrent node as a layer; False where PyTorch's layers mean something else.

    Not in a branch or a loop either: `torch.cond` refuses a layer that arranges its weights anew.
    """
    if scope.is_inner:
        return False
    inputs = [*node.inputs, *[None] * 8][:8]
    data, lengths, peepholes = inputs[0], inputs[4], inputs[7]
    found = [scope.weight(value) for value in inputs[1:4]]
    if data is None or lengths is not None or peepholes is not None:
        return False
    if found[0] is None or found[1] is None or (inputs[3] is not None and found[2] is None):
        return False
    plan = _settings(node, found[0])
    if plan is None or not is_float(found[0].dtype):
        return False
    constructor, directions, hidden = plan
    parameters = _parameters(node.op_type, found[0], found[1], found[2], directions, hidden)
    if found[2] is None:
        constructor = f"{constructor[:-1]}, bias=False)"
    hint = module_name(found[0].origin or found[0].name, node.name or "")
    layer = scope.context.table.layer(hint, constructor, parameters, found[0].dtype)
    _call(scope, node, layer, directions)
    return True


def _settings(node: ir.Node, weight: Weight) -> tuple[str, int, int] | None:
    """The constructor, the number of directions and the hidden size; None for no such layer."""

    def attribute(name: str, default: Any = None) -> Any:
        found = node.attributes.get(name)
        return default if found is None else found.value

    direction = attribute("direction", "forward")
    if direction == "reverse" or attribute("clip") or attribute("input_forget", 0):
        return None
    directions = 2 if direction == "bidirectional" else 1
    if node.op_type == "GRU" and not attribute("linear_before_reset", 0):
        return None
    if attribute("activation_alpha") or attribute("activation_beta"):
        return None
    named = [name.lower() for name in attribute("activations") or []]
    first = list(_ACTIVATIONS[node.op_type][0])
    if named and named not in [list(a) * directions for a in _ACTIVATIONS[node.op_type]]:
        return None
    hidden = weight.shape[1] // len(_GATES[node.op_type])
    options = [
        f'nonlinearity="{named[0]}"' if named and named != first * directions else "",
        "batch_first=True" if attribute("layout", 0) else "",
        "bidirectional=True" if directions == 2 else "",
    ]
    arguments = ", ".join([f"{weight.shape[2]}, {hidden}", *filter(None, options)])
    return f"{node.op_type}({arguments})", directions, hidden


def _parameters(
    op_type: str, w: Weight, r: Weight, b: Weight | None, directions: int, hidden: int
) -> dict[str, Weight]:
    """PyTorch's parameters, cut out of ONNX's, gates in PyTorch's order."""
    gates = _GATES[op_type]
    found: dict[str, Weight] = {}
    for direction in range(directions):
        tail = "_reverse" if direction else ""
        for name, weight in (("weight_ih", w), ("weight_hh", r)):
            found[f"{name}_l0{tail}"] = _rows(weight, direction, gates, hidden, 0)
        if b is not None:
            half = len(gates) * hidden
            found[f"bias_ih_l0{tail}"] = _rows(b, direction, gates, hidden, 0)
            found[f"bias_hh_l0{tail}"] = _rows(b, direction, gates, hidden, half)
    return found


def _rows(
    weight: Weight, direction: int, gates: tuple[int, ...], hidden: int, first: int
) -> Weight:
    def change(array: Any) -> Any:
        import numpy as np

        starts = [first + gate * hidden for gate in gates]
        return np.concatenate([array[direction][s : s + hidden] for s in starts])

    return weight.mapped(change, (len(gates) * hidden, *weight.shape[2:]))


def _call(scope: Scope, node: ir.Node, layer: str, directions: int) -> None:
    """Calls the layer and gives its results ONNX's shapes.

    ONNX keeps directions as an axis of their own: (steps, directions, batch, hidden), or with
    `layout` 1 (batch, steps, directions, hidden) and states (batch, directions, hidden).
    """
    layout = node.attributes.get("layout")
    batch_first = bool(layout.value) if layout is not None else False
    inputs = [*node.inputs, *[None] * 8][:8]
    data, state = scope.tensor(inputs[0]), _state(scope, node, inputs, batch_first)
    names = [scope.names.claim(v.name or "") if is_used(v) else "_" for v in node.outputs]
    names = [*names, "_", "_", "_"][:3]
    for value, name in zip(node.outputs, names, strict=False):
        if name != "_":
            scope.rename(value, name)
    final = f"({names[1]}, {names[2]})" if node.op_type == "LSTM" else names[1]
    final = "_" if names[1] == names[2] == "_" else final
    scope.statement(f"{names[0]}, {final} = {layer}({data}{state})")
    if names[0] != "_":
        scope.statement(f"{names[0]} = {_sequence(names[0], directions, batch_first)}")
    if batch_first:
        for name in (name for name in names[1:] if name != "_"):
            scope.statement(f"{name} = {name}.transpose(0, 1)")
    scope.note_made(node)


def _state(scope: Scope, node: ir.Node, inputs: list[ir.Value | None], batch_first: bool) -> str:
    """The initial states as a further argument; a missing one of two is zero."""
    given = [inputs[5], inputs[6]] if node.op_type == "LSTM" else [inputs[5]]
    if all(value is None for value in given):
        return ""
    tail = ".transpose(0, 1)" if batch_first else ""
    codes = [None if value is None else f"{scope.tensor(value)}{tail}" for value in given]
    known = next(code for code in codes if code is not None)
    filled = [code if code is not None else f"torch.zeros_like({known})" for code in codes]
    return f", ({', '.join(filled)})" if node.op_type == "LSTM" else f", {filled[0]}"


def _sequence(name: str, directions: int, batch_first: bool) -> str:
    """The layer's sequence with an axis for directions."""
    if directions == 1:
        return f"{name}.unsqueeze({2 if batch_first else 1})"
    split = f"{name}.unflatten(2, (2, -1))"
    return split if batch_first else f"{split}.transpose(1, 2)"
