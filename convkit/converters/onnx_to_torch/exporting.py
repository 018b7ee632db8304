"""Captures a generated module as an exported program with dynamic dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from convkit.converters.onnx_to_torch.guards import loosened, refused_axes, refusing
from convkit.converters.onnx_to_torch.program import Program
from convkit.converters.onnx_to_torch.recurrent_export import recurrent_kept
from convkit.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

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
    samples: Sequence[Sequence[torch.Tensor]] = (),
) -> torch.export.ExportedProgram:
    """The module as an exported program; nodes carry the ONNX names of their values.

    Dimensions are declared dynamic; where the network fixes some, PyTorch finds out which. The
    first program wins that takes every sample; if none does, the first one whose demands can be
    struck; else what the demands are about becomes fixed.

    Args:
        module: what `module_of` or `filled` gave.
        feeds: example inputs by position; dynamic sizes are best at least 2 and all different.
        dynamic: argument -> dynamic axes; those of the graph where not given.
        note: takes sentences for a report.
        samples: further inputs that the network accepts.

    Raises:
        UnsupportedError: PyTorch cannot capture the module.
    """
    program: Program = module.program  # type: ignore[assignment]
    tensors = [isinstance(feed, torch_tensor()) for feed in feeds]
    names = [port.variable for port in program.inputs]
    open_axes = dynamic_axes(program) if dynamic is None else dynamic
    axes = {
        name: tuple(open_axes.get(name, ())) if is_tensor else ()
        for name, is_tensor in zip(names, tensors, strict=True)
    }
    made, first = _captured(module, feeds, axes, samples, names)
    if made is None and any(axes.values()):
        made, second = _attempt(module, feeds, dict.fromkeys(names, ()), "fixed")
        first = first or second
        if made is not None and note is not None:
            note(f"All dimensions became fixed: {_first_line(first)}")
    if made is None:
        assert first is not None
        raise UnsupportedError(
            "PyTorch cannot capture this network as an exported program.",
            why=[*_place(first, program), _first_line(first)],
            hint="Take the module as source instead:  -o FOLDER/",
        ) from first
    refused = _refused(made, names, samples)
    if refused:
        made = _without(module, feeds, axes, refused, note) or made
    _name_nodes(made, program)
    return made


def _captured(
    module: torch.nn.Module,
    feeds: Sequence[torch.Tensor],
    axes: Axes,
    samples: Sequence[Sequence[torch.Tensor]],
    names: Sequence[str],
) -> tuple[torch.export.ExportedProgram | None, Exception | None]:
    """The best program with dynamic dimensions; None with the first failure if there is none."""
    import torch

    found: list[torch.export.ExportedProgram] = []
    first: Exception | None = None
    for way in ("oblivious", "dynamic", "automatic") if any(axes.values()) else ("fixed",):
        if way == "automatic" and found:
            break  # it differs where PyTorch refuses what is declared, not in what it assumes
        made, failure = _attempt(module, feeds, axes, way)
        first = first or failure
        if made is None:
            continue
        if not _refused(made, names, samples):
            return made, None
        found.append(made)
    with torch.no_grad():
        loose = (made for made in found if loosened(made, module, names, samples))
        return next(loose, found[0] if found else None), first


def _attempt(
    module: torch.nn.Module, feeds: Sequence[torch.Tensor], axes: Axes, way: str
) -> tuple[torch.export.ExportedProgram | None, Exception | None]:
    import torch
    from torch.export import Dim

    mark = Dim.AUTO if way == "automatic" else Dim.DYNAMIC
    shapes = {name: dict.fromkeys(found, mark) or None for name, found in axes.items()}
    try:
        with torch.no_grad(), recurrent_kept(), _sizes(way == "oblivious"):
            made = torch.export.export(
                module, tuple(feeds), dynamic_shapes=shapes or None, strict=False
            )
    except Exception as cause:  # torch.export has dozens of exception types
        return None, cause
    return made, None


def _refused(
    made: torch.export.ExportedProgram,
    names: Sequence[str],
    samples: Sequence[Sequence[torch.Tensor]],
) -> list[str]:
    found = (demand for inputs in samples for demand in refusing(made, names, inputs))
    return list(dict.fromkeys(found))


def _without(
    module: torch.nn.Module,
    feeds: Sequence[torch.Tensor],
    axes: Axes,
    refused: Sequence[str],
    note: Callable[[str], None] | None,
) -> torch.export.ExportedProgram | None:
    """A program in which the sizes that demands are about are those of the example."""
    about = refused_axes(refused)
    fewer = {
        name: tuple(axis for axis in found if axis not in about.get(name, set()))
        for name, found in axes.items()
    }
    made, _ = _attempt(module, feeds, fewer, "automatic" if any(fewer.values()) else "fixed")
    if made is None or note is None:
        return made
    for name, feed in zip(axes, feeds, strict=True):
        for axis in sorted(set(axes[name]) - set(fewer[name])):
            note(f"Dimension {axis} of '{name}' became {feed.shape[axis]}: {refused[0]}")
    return made


def torch_tensor() -> type:
    """The class of tensors."""
    import torch

    return torch.Tensor


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


def _place(error: BaseException, program: Program) -> list[str]:
    """Which ONNX value was being computed when the module failed."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename.endswith("model.py>") and f.lineno]
    names = next((program.lines[line] for line in lines if line in program.lines), ())
    return [f"While computing '{names[0]}'."] if names else []


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
