"""What an exported program demands of its inputs' sizes, and whether given inputs meet it.

While PyTorch captures a network it writes down what it assumed of symbolic sizes, and an exported
program refuses inputs that do not fit. Most of that must hold (a window fits into its image); some
was only convenient, such as a batch other than 1.

Source: `ExportedProgram._guards_code` and `_get_input_guards_for_graph` in
torch/export/_unlift.py of PyTorch 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convkit.torch_values import named_tensors

if TYPE_CHECKING:
    import torch

_LEAST_CHECKED = 2
"""PyTorch checks lower bounds above this only: up to it, they mean "a size"."""
_TOLERANCE = 1e-3
"""Relative to the largest element: kernels differ by shape, a wrong graph by far more."""


def refusing(
    made: torch.export.ExportedProgram, names: Sequence[str], inputs: Sequence[torch.Tensor]
) -> list[str]:
    """The demands that inputs do not meet, as Python expressions over `L[name].size()[axis]`."""
    given = dict(zip(names, inputs, strict=True))
    scope = {"L": given, "math": math, "max": max, "min": min}
    demands = [*made._guards_code, *_declared(made, names)]
    # SECURITY: these expressions were printed by PyTorch in this process, from sizes alone.
    return [demand for demand in demands if not eval(demand, dict(scope))]


def loosened(
    made: torch.export.ExportedProgram,
    module: torch.nn.Module,
    names: Sequence[str],
    samples: Sequence[Sequence[torch.Tensor]],
) -> bool:
    """Strikes demands that inputs do not meet where the program computes the same without them.

    Args:
        made: changed in place.
        module: what it was made of; says what is right.
        names: of the inputs, in order.
        samples: inputs that the network accepts.

    Returns:
        Whether the program now takes every sample; else it is as it was.
    """
    import torch

    struck: set[str] = set()
    free = made.module(check_guards=False)
    for inputs in samples:
        refused = refusing(made, names, inputs)
        if not refused:
            continue
        if not set(refused) <= set(made._guards_code):
            return False
        try:
            with torch.no_grad():
                expected, got = module(*inputs), free(*inputs)
        except Exception:  # whatever a kernel says to sizes it was not made for
            return False
        if not _agree(expected, got):
            return False
        struck.update(refused)
    made._guards_code = [demand for demand in made._guards_code if demand not in struck]
    return True


def refused_axes(demands: Sequence[str]) -> dict[str, set[int]]:
    """Input -> axes that demands are about."""
    import re

    found: dict[str, set[int]] = {}
    for name, axis in re.findall(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]", " ".join(demands)):
        found.setdefault(name, set()).add(int(axis))
    return found


def _declared(made: torch.export.ExportedProgram, names: Sequence[str]) -> list[str]:
    """Sizes that became fixed, and bounds of others."""
    wanted = dict(zip(made.graph_signature.user_inputs, names, strict=True))
    ranges: Mapping[Any, Any] = made.range_constraints
    demands = []
    for node in made.graph.nodes:
        sizes = getattr(node.meta.get("val"), "shape", None)
        if node.op != "placeholder" or node.name not in wanted or sizes is None:
            continue
        for axis, size in enumerate(sizes):
            word = f"L['{wanted[node.name]}'].size()[{axis}]"
            if isinstance(size, int):
                demands.append(f"{word} == {size}")
            elif size.node.expr in ranges:
                bounds = ranges[size.node.expr]
                if bounds.lower > _LEAST_CHECKED:
                    demands.append(f"{word} >= {int(bounds.lower)}")
                if bounds.upper < 1 << 62:
                    demands.append(f"{word} <= {int(bounds.upper)}")
    return demands


def _agree(expected: Any, got: Any) -> bool:
    import torch

    pairs = list(zip(named_tensors(expected), named_tensors(got), strict=False))
    for (_, left), (_, right) in pairs:
        if left.shape != right.shape or left.dtype != right.dtype:
            return False
        if not left.is_floating_point():
            if not torch.equal(left, right):
                return False
            continue
        scale = float(left.abs().nan_to_num(0, 0, 0).max()) if left.numel() else 0.0
        if not torch.allclose(left, right, rtol=0, atol=_TOLERANCE * scale, equal_nan=True):
            return False
    return True
