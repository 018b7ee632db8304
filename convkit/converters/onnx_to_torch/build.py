"""Makes a module of a program: its source run, its weights filled in."""

from __future__ import annotations

import functools
import inspect
import itertools
import linecache
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch.dtypes import tensor_of
from convkit.converters.onnx_to_torch.generate import program_of
from convkit.converters.onnx_to_torch.program import Program
from convkit.converters.onnx_to_torch.releasing import without_release

if TYPE_CHECKING:
    import torch

_numbers = itertools.count()


def module_of(path: Path, *, note: Callable[[str], None] | None = None) -> torch.nn.Module:
    """The ONNX file at `path` as a PyTorch module in evaluation mode.

    `forward` takes the graph's inputs by position and gives a tuple of its outputs. The module's
    `program` says where each came from; `exposing` gives a variant with inner values.

    Args:
        path: the file.
        note: takes sentences for a report.

    Raises:
        ModelError, UnsupportedError, UnsafeError: see `program_of`.
    """
    program = program_of(path)
    for text in program.notes if note is not None else ():
        note(text)  # type: ignore[misc]
    return filled(program, tuple)


def filled(program: Program, result: type = object) -> torch.nn.Module:
    """The module of a program with its weights in memory.

    Args:
        program: what `program_of` gave.
        result: `tuple` or `dict` (by ONNX name) for what `forward` gives; else as written: one
            output bare, several in a tuple.
    """
    state = {key: tensor_of(weight.make()) for key, weight in program.stored.items()}
    return _filled(program, state, result)


def filled_from(program: Program, weights: Path, result: type = object) -> torch.nn.Module:
    """The module of a program with weights mapped from the file they were written to."""
    from safetensors.torch import load_file

    return _filled(program, load_file(weights), result)


def _filled(program: Program, state: Mapping[str, Any], result: type) -> torch.nn.Module:
    import torch

    code = run_source(program)
    with torch.device("meta"):
        module: torch.nn.Module = code.Model()
    module.load_state_dict(state, assign=True)
    module.eval()
    module.program = program  # type: ignore[assignment]
    return shaped(module, program, result)


def shaped(module: torch.nn.Module, program: Program, result: type) -> torch.nn.Module:
    """Changes what `forward` of a generated module gives, in place."""
    names = [port.name for port in program.outputs]
    if result not in (tuple, dict):
        return module
    kind = type(module)

    def forward(self: Any, *inputs: Any) -> Any:
        made = kind.forward(self, *inputs)
        values = made if len(names) != 1 else (made,)
        return tuple(values) if result is tuple else dict(zip(names, values, strict=True))

    parameters = [port.variable for port in program.inputs]
    module.__class__ = type("Model", (kind,), {"forward": with_parameters(forward, parameters)})
    return module


def with_parameters(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """The function, with these parameters in its signature and takable by name."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        return function(*signature.bind(*given, **named).args)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def exposing(program: Program, names: list[str]) -> torch.nn.Module:
    """A module that also gives inner values, by ONNX name; those it does not have are left out.

    `forward` gives a dictionary: the outputs, then the values asked for.
    """
    variables = {onnx: variable for variable, onnx in program.values.items() if onnx in set(names)}
    outputs = {port.name: port.variable for port in program.outputs}
    asked = {**outputs, **variables}
    items = ", ".join(f"{name!r}: {code}" for name, code in asked.items())
    lines = [without_release(line) for line in program.source.splitlines()]
    place = next(i for i, line in enumerate(lines) if line.startswith("        return "))
    lines[place] = f"        return {{{items}}}"
    return filled(replace(program, source="\n".join(lines) + "\n"))


def run_source(program: Program) -> ModuleType:
    """The module that the program's sources are, run; tracebacks show their lines."""
    number = next(_numbers)
    package = f"convkit_generated_{number}"
    modules = {}
    for name, source in (("operators", program.operators), ("model", program.source)):
        if not source:
            continue
        file = f"<{package}/{name}.py>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        made = ModuleType(f"{package}.{name}")
        made.__file__, made.__package__ = file, package
        modules[name] = made
        sys.modules[made.__name__] = made
        if name == "operators":
            parent = ModuleType(package)
            parent.__path__ = []
            parent.operators = made  # type: ignore[attr-defined]
            sys.modules[package] = parent
        exec(compile(source, file, "exec"), made.__dict__)
    return modules["model"]
