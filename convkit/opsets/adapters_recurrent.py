"""Adapters for LSTM, GRU and RNN 14: a batch that comes first becomes one that comes second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convkit.opsets.adapters_attributes import Adapter
from convkit.opsets.scope import Scope, attribute, changed, input_of

_SWAPPED = (1, 0, 2)
_SEQUENCE_LAST = (2, 0, 1, 3)
"""Y (time, directions, batch, hidden) as layout 1 has it: (batch, time, directions, hidden)."""


def recurrent(node: Any, scope: Scope) -> list[Any]:
    """Swaps batch and time of the inputs, and back in the outputs, where `layout` is 1."""
    from onnx import helper

    plain = changed(node, drop=("layout",))
    if not attribute(node, "layout", 0):
        return [plain]
    inputs, before = list(node.input), []
    for index in (0, 5, 6):  # X, initial_h, initial_c
        name = input_of(node, index)
        if name:
            inputs[index] = scope.fresh(f"{name}_swapped")
            before.append(helper.make_node("Transpose", [name], [inputs[index]], perm=_SWAPPED))
    outputs, after = list(node.output), []
    for index, name in enumerate(node.output):
        if name:
            outputs[index] = scope.fresh(f"{name}_swapped")
            order = _SEQUENCE_LAST if index == 0 else _SWAPPED
            after.append(helper.make_node("Transpose", [outputs[index]], [name], perm=order))
    return [*before, changed(plain, inputs=inputs, outputs=outputs), *after]


ADAPTERS: Mapping[tuple[str, int], Adapter] = {
    ("LSTM", 14): recurrent,
    ("GRU", 14): recurrent,
    ("RNN", 14): recurrent,
}
