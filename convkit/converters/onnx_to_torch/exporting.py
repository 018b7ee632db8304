"""Captures a generated module as an exported program with dynamic dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch.program import Program
from convkit.converters.onnx_to_torch.recurrent_export import recurrent_kept
from convkit.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

_FIX: tuple[Any, bool] = (None, False)

Axes = Mapping[str, Sequence[int]]
"""Input -> its dynamic axes."""


def dynamic_axes(program: Program) -> dict[str, tuple[int, ...]]:
    """The axes that the graph leaves open, by argument of `forward`."""
    return {
        port.variable: tuple(a for a, size in enumerate(port.shape) if isinstance(size, str))
        for port in program.inputs
        if port.shape is not None
    }


def exported(
    module: torch.nn.Module,
    feeds: Sequence[torch.Tensor],
    dynamic: Axes | None = None,
    note: Callable[[str], None] | None = None,
) -> torch.export.ExportedProgram:
    """The module as an exported program; nodes carry the ONNX names of their values.

    Dimensions are declared dynamic; where the network fixes some, PyTorch finds out which.

    Args:
        module: what `module_of` or `filled` gave.
        feeds: example inputs by position; dynamic sizes are best at least 2 and all different.
        dynamic: argument -> dynamic axes; those of the graph where not given.
        note: takes sentences for a report.

    Raises:
        UnsupportedError: PyTorch cannot capture the module.
    """
    import torch
    from torch.export import Dim

    program: Program = module.program  # type: ignore[assignment]
    axes = dynamic_axes(program) if dynamic is None else dynamic
    names = [port.variable for port in program.inputs]
    first: Exception | None = None
    for mark, is_oblivious in ((Dim.DYNAMIC, True), (Dim.DYNAMIC, False), (Dim.AUTO, False), _FIX):
        shapes = {
            name: dict.fromkeys(axes.get(name, ()), mark)
            if mark is not None and isinstance(feed, torch.Tensor)
            else None
            for name, feed in zip(names, feeds, strict=True)
        }
        try:
            with torch.no_grad(), recurrent_kept(), _sizes(is_oblivious):
                made = torch.export.export(
                    module, tuple(feeds), dynamic_shapes=shapes if shapes else None, strict=False
                )
        except Exception as cause:  # torch.export has dozens of exception types
            first = first or cause
            continue
        if mark is None and note is not None and any(axes.values()):
            note(f"All dimensions became fixed: {_first_line(first)}")
        _name_nodes(made, program)
        return made
    assert first is not None
    raise UnsupportedError(
        "PyTorch cannot capture this network as an exported program.",
        why=_first_line(first),
        hint="Take the module as source instead:  -o FOLDER/",
    ) from first


@contextmanager
def _sizes(is_oblivious: bool) -> Iterator[None]:
    """Within, PyTorch does not ask whether a size is 1, so that a result serves both cases.

    It would: a quarter of a batch of 8 differs from 1, which a batch of 4 would then break.
    Source: `backed_size_oblivious` in torch/fx/experimental/_config.py of PyTorch 2.13.
    """
    from torch.fx.experimental import _config as config

    settings: Any = config  # installs `patch` when it is imported
    if not is_oblivious or not hasattr(settings, "backed_size_oblivious"):
        yield
        return
    with settings.patch(backed_size_oblivious=True):
        yield


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[0][:300]}"


def _name_nodes(made: torch.export.ExportedProgram, program: Program) -> None:
    """Writes ONNX names into the nodes: the last one of a source line makes that line's values."""
    import re

    found: dict[int, Any] = {}
    for node in made.graph.nodes:
        lines = re.findall(r'model\.py>?", line (\d+), in forward', node.stack_trace or "")
        if lines and node.op == "call_function":
            found[int(lines[-1])] = node
    for line, node in found.items():
        names = program.lines.get(line)
        if names:
            node.meta["custom"] = {**(node.meta.get("custom") or {}), "onnx": names[0]}
