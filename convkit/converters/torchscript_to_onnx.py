"""TorchScript to ONNX: a ladder, because no single exporter of PyTorch takes all of TorchScript.

The script exporter (`torch.onnx.export(dynamo=False)`) keeps branches and loops as If and Loop; the
way over an exported program takes straight-line graphs that the script exporter has no symbols for.
Graphs with control flow try the first first, traced graphs the second.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from convkit.artifact import Artifact
from convkit.converters.torchscript_call import Call, call_of, private_copy, quiet_exporters
from convkit.converters.torchscript_graph import control_flow, make_functional, state_attributes
from convkit.converters.torchscript_onnx_finish import finish
from convkit.converters.torchscript_program import exported_program, note_rewrite
from convkit.errors import RungSkipped, UnsupportedError
from convkit.step import Package, Work, ladder, rung

_TORCH = Package("torch", "torch")
_ONNX = Package("onnx", "onnx")
_ONNXSCRIPT = Package("onnxscript", "onnx")

_SCRIPT_OPSETS = range(9, 21)
_PROGRAM_OPSETS = range(18, 24)
"""Source: PyTorch 2.13, torch/onnx/_constants.py."""


@rung("script-exporter", needs=(_TORCH, _ONNX))
def _with_control_flow(source: Artifact, out: Path, work: Work, *, opset: int = 20) -> None:
    """Exports graphs with branches and loops."""
    call = call_of(source, work)
    if not control_flow(call.module):
        raise RungSkipped("the graph has no control flow, so an exported program serves better")
    _script_export(call, out, work, opset)


@rung("exported-program", needs=(_TORCH, _ONNX, _ONNXSCRIPT))
def _over_program(source: Artifact, out: Path, work: Work, *, opset: int = 20) -> None:
    """Exports over `torch.export`."""
    import torch

    if opset not in _PROGRAM_OPSETS:
        raise RungSkipped(f"it writes opset 18 to 23, not {opset}")
    call = call_of(source, work)
    program = exported_program(call, work.note)
    with _scratch(out) as path:
        with quiet_exporters():
            torch.onnx.export(
                program,
                (),
                str(path),
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in call.specs],
                output_names=list(call.outputs),
                external_data=True,
                verbose=False,
            )
        finish(path, out, call, work)


@rung("script-exporter-straight", needs=(_TORCH, _ONNX))
def _without_control_flow(source: Artifact, out: Path, work: Work, *, opset: int = 20) -> None:
    """Exports straight-line graphs with the script exporter, after the exported program failed."""
    call = call_of(source, work)
    if control_flow(call.module):
        raise RungSkipped("the script exporter was tried already")
    _script_export(call, out, work, opset)


torchscript_to_onnx = ladder(
    "torchscript",
    "onnx",
    _with_control_flow,
    _over_program,
    _without_control_flow,
    carries=("fp32", "fp16", "bf16"),
    loses="state between calls, checks that refuse bad inputs",
)


def _script_export(call: Call, out: Path, work: Work, opset: int) -> None:
    """The script exporter on the module as it is; if that fails, or it keeps state, rewritten."""
    if opset not in _SCRIPT_OPSETS:
        raise RungSkipped(f"it writes opset 9 to 20, not {opset}")
    with _scratch(out) as path:
        first: Exception | None = None
        if not state_attributes(call.module):
            try:
                _run_script_exporter(call, path, opset)
                return finish(path, out, call, work)
            except Exception as cause:  # torch.onnx raises a dozen types
                first = cause
        call = private_copy(call)
        rewrite = make_functional(call.module)
        try:
            _run_script_exporter(call, path, opset)
        except Exception as cause:
            raise _not_exportable(first or cause) from cause
        note_rewrite(rewrite.state, rewrite.refusals, work.note)
        return finish(path, out, call, work)


def _run_script_exporter(call: Call, path: Path, opset: int) -> None:
    import torch

    example = call.example
    with quiet_exporters(), torch.no_grad():
        torch.onnx.export(
            call.module,
            call.arguments(example, numbers=False),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=[spec.name for spec in call.specs],
            output_names=list(call.outputs) or None,
            dynamic_axes=call.dynamic_axes(),
        )


def _not_exportable(cause: Exception) -> UnsupportedError:
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return UnsupportedError(
        "PyTorch's script exporter cannot express this TorchScript graph in ONNX.",
        why=(lines[0] if lines else type(cause).__name__)[:300],
        hint="Trace the network instead of scripting it:  torch.jit.trace(module, inputs)",
    )


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A path of its own to write to: the exporter scatters big weights over many files."""
    folder = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
    try:
        yield folder / out.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
