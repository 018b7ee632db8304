"""TorchScript to an exported program, by PyTorch's own graph converter and a second export.

`torch._export.converter.TS2EPConverter` is private; it is used here only. Its own result fixes
shapes into guards, so its module is exported once more with dynamic dimensions.
Source: PyTorch 2.13, torch/_export/converter.py.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from convkit.converters.torchscript_call import Call, quiet_exporters
from convkit.converters.torchscript_graph import control_flow, state_attributes
from convkit.errors import UnsupportedError
from convkit.naming import named_leaves
from convkit.torch_values import to_tensor
from convkit.torchscript_module import has_reset


def exported_program(call: Call, note: Callable[[str], None]) -> Any:
    """A `torch.export.ExportedProgram` with the call's dynamic dimensions, as far as they hold.

    Arguments that are Python numbers are fixed to the example's values.

    Raises:
        UnsupportedError: the graph has a construct that exported programs do not.
    """
    from convkit.converters.torchscript_interpreter import interpreted

    if has_reset(call.module):
        call.module.reset_states()
    failures: list[Exception] = []
    for build in (interpreted, _converted(call)):
        try:
            with quiet_exporters():
                inner = build(call.module)
            program = _export(inner, call)
        except Exception as cause:  # torch.export and its converters have dozens of types
            failures.append(cause)
            continue
        for name in call.number_names:
            value = call.example[name].item()
            note(f"Input '{name}' must be {value} from now on: an exported program fixes numbers.")
        state = [".".join(path) for path in state_attributes(call.module)]
        note_rewrite(state, 0, note)
        return program
    raise unsupported(failures[0], call) from failures[0]


def _converted(call: Call) -> Callable[[Any], Any]:
    """PyTorch's own converter; it turns branches on data into `torch.cond`."""

    def build(module: Any) -> Any:
        from torch._export.converter import TS2EPConverter

        example = call.arguments(call.example, numbers=True)
        return TS2EPConverter(module, example).convert().module()

    return build


def note_rewrite(state: list[str], refusals: int, note: Callable[[str], None]) -> None:
    """Says for the report what `make_functional` took away."""
    if state:
        note(
            f"The source keeps state between calls ({', '.join(state)}); the result does not: "
            "every call starts from the reset state."
        )
    if refusals:
        checks = "1 check" if refusals == 1 else f"{refusals} checks"
        verb = "is" if refusals == 1 else "are"
        note(f"{checks} by which the source refuses bad inputs {verb} not in the result.")


def unsupported(cause: Exception, call: Call) -> UnsupportedError:
    """An error that names the construct a converter stumbled over."""
    if isinstance(cause, UnsupportedError):
        return cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    construct = re.search(r"\b(?:prim|aten)::\w+", str(cause))
    present = ", ".join(control_flow(call.module)) or "none"
    named = construct[0] if construct else "the graph"
    return UnsupportedError(
        f"TorchScript's {named} has no counterpart in an exported program here.",
        why=[(lines[0] if lines else type(cause).__name__)[:300], f"Control flow: {present}."],
        hint="Traced modules have no control flow:  torch.jit.trace(module, inputs)",
        construct=named,
    )


def _export(inner: Any, call: Call) -> Any:
    """Exports with dimensions declared dynamic; then as PyTorch finds them; then fixed."""
    import torch
    from torch.export import Dim

    names = [spec.name for spec in call.specs]
    example = tuple(to_tensor(call.example[name]) for name in names)
    module = _named(inner, call)
    axes = call.dynamic_axes()
    first: Exception | None = None
    for mark in (Dim.DYNAMIC, Dim.AUTO, Dim.STATIC):
        shapes = [dict.fromkeys(axes.get(name, {}), mark) for name in names]
        try:
            with quiet_exporters(), torch.no_grad():
                return torch.export.export(module, example, dynamic_shapes=tuple(shapes))
        except Exception as cause:  # torch.export has dozens of exception types
            first = first or cause
    assert first is not None
    raise first


def _named(inner: Any, call: Call) -> Any:
    """A module with the ScriptModule's argument names around `inner`.

    Number arguments come as 0-d tensors, since programs take nothing else, and must have the value
    of the example.
    """
    import torch

    example = call.arguments(call.example, numbers=True)
    order = [a.name for a in call.module.forward.schema.arguments[1:]]
    names = [spec.name for spec in call.specs]
    fixed = {name: call.example[name].item() for name in call.number_names}
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]

    class Named(torch.nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *tensors: Any) -> Any:
            fed = dict(zip(names, tensors, strict=True))
            for name, value in fixed.items():
                torch._check(fed[name].item() == value)
            values = zip(order, example, strict=False)
            return _shaped(
                self.inner(*({**fed, **fixed}.get(name, value) for name, value in values)), call
            )

    function: Any = Named.forward
    function.__signature__ = inspect.Signature(
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *parameters]
    )
    return Named()


def _shaped(result: Any, call: Call) -> Any:
    """Results in plain containers: a named tuple, which graphs forget, becomes a dictionary."""
    if isinstance(result, Mapping):
        return dict(result)
    if call.outputs and not call.outputs[0].startswith("output"):
        leaves = [leaf for _, leaf in named_leaves(result)]
        return dict(zip(call.outputs, leaves, strict=True))
    return result
