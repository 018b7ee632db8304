"""The rung on `torch.export`: a graph with symbolic sizes, translated operator by operator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact
from convkit.converters.onnx_stream import ir_version_for
from convkit.converters.torch_to_onnx.callable import (
    Prepared,
    best_sample,
    causes,
    first_line,
    prepare,
    quiet,
)
from convkit.converters.torch_to_onnx.language_folder import copy_settings, graph_place
from convkit.converters.torch_to_onnx.naming import (
    drop_traces,
    name_inputs,
    name_outputs,
    output_names,
)
from convkit.converters.torch_to_onnx.stream import write
from convkit.errors import ConvkitError, RungSkipped, StepError, UnsupportedError
from convkit.step import Package, Work, rung

if TYPE_CHECKING:
    import torch

NEEDS = (
    Package("torch", "torch"),
    Package("onnxscript", "onnx"),
    Package("onnx_ir", "onnx", "onnx-ir"),
    Package("onnx", "onnx"),
)
LEAST_OPSET, GREATEST_OPSET = 18, 23
"""Opsets that PyTorch's exporter writes. Source: `torch.onnx._constants` of PyTorch 2.13."""


@rung("export", needs=NEEDS)
def exported(source: Artifact, out: Path, work: Work, *, opset: int = 20) -> None:
    """Exports with `torch.export`: sizes stay dynamic, `torch.cond` becomes If, a loop Loop."""
    if opset < LEAST_OPSET:
        raise RungSkipped(f"it writes opset {LEAST_OPSET} and above, not {opset}")
    network = None if _is_program(source) else work.load(source)
    if network is not None and _would_unroll(network, source):
        raise RungSkipped("torch.export unrolls LSTM, GRU and RNN over one fixed length")
    _export(source, out, work, network, opset)


@rung("unrolled", needs=NEEDS)
def unrolled(source: Artifact, out: Path, work: Work, *, opset: int = 20) -> None:
    """The same with recurrent layers unrolled over the length of the example."""
    if opset < LEAST_OPSET or _is_program(source):
        raise RungSkipped("nothing to unroll")
    network = work.load(source)
    if not _would_unroll(network, source):
        raise RungSkipped("there are no recurrent layers to unroll")
    _export(source, out, work, network, opset)


@rung("export-newer", needs=NEEDS)
def newer(source: Artifact, out: Path, work: Work, *, opset: int = 20) -> None:
    """Exports at the oldest opset there is here, for `--opset` to lower the result afterwards."""
    if opset >= LEAST_OPSET:
        raise RungSkipped("it is for older opsets")
    work.note(f"PyTorch's exporter begins at opset {LEAST_OPSET}")
    network = None if _is_program(source) else work.load(source)
    _export(source, out, work, network, LEAST_OPSET)


def _export(
    source: Artifact, out: Path, work: Work, network: torch.nn.Module | None, opset: int
) -> None:
    import torch

    if opset > GREATEST_OPSET:
        work.note(f"PyTorch writes opset {GREATEST_OPSET} at most, so {opset} became that")
        opset = GREATEST_OPSET
    specs = source.inputs
    if network is None:
        # What it may hold besides a program was checked when the source was opened.
        program: Any = torch.export.load(source.path)
    else:
        prepared = prepare(network, specs, best_sample(work.samples, specs))
        specs = prepared.specs
        for name, value in prepared.constants.items():
            work.note(f"input '{name}' became the constant {value}")
        work.progress("tracing the network", 0, None)
        program = _capture(prepared, work)
    work.progress("translating operators", 0, None)
    model = translate(program, opset)
    for lost in name_inputs(model.graph, specs):
        work.note(f"dynamic dimension lost by torch.export: {lost}")
    name_outputs(model.graph, output_names(source.outputs, len(model.graph.outputs)))
    drop_traces(model)
    work.progress("writing", 0, None)
    write(model, graph_place(source, out), ir_version=ir_version_for(opset))
    copy_settings(source.path, out)


def _capture(prepared: Prepared, work: Work) -> torch.export.ExportedProgram:
    """The program with symbolic sizes, else with fixed ones."""
    import torch

    automatic = tuple(
        {
            axis: torch.export.Dim.AUTO
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str)
        }
        for spec in prepared.specs
    )

    def capture(shapes: Any) -> torch.export.ExportedProgram:
        with quiet(), torch.no_grad():
            return torch.export.export(
                prepared.module, prepared.arguments, dynamic_shapes=shapes, strict=False
            )

    try:
        return capture((automatic,))  # a tuple of one: `forward` takes *tensors
    except Exception as failure:
        if not any(automatic):
            raise capture_error(failure) from failure
        try:
            program = capture(None)
        except Exception:
            raise capture_error(failure) from failure
        work.note(f"fixed sizes only, since with dynamic ones: {first_line(failure)}")
        return program


def capture_error(failure: Exception) -> ConvkitError:
    """What a failure of `torch.export` means, with the line of the network it comes from."""
    text = "\n".join(str(cause) for cause in causes(failure))
    place = re.search(r"File \"([^\"]+)\", line (\d+), in (\w+)\n\s+(.*)", text)
    where = [f"{place[1]}:{place[2]} in {place[3]}: {place[4].strip()}"] if place else []
    if re.search(r"data.dependent|GuardOnDataDependent|Dynamo failed.*bool|is_nonzero", text):
        return UnsupportedError(
            "The network decides by its data which way to go, which a graph cannot hold.",
            why=where or [first_line(failure)],
            hint="Write the decision with torch.cond, or the loop with torch.while_loop.",
        )
    return StepError(
        "torch.export cannot capture the network.",
        why=[first_line(failure), *where],
    )


def translate(program: torch.export.ExportedProgram, opset: int) -> Any:
    """The ONNX model of a program, as onnx-ir, optimized.

    Raises:
        UnsupportedError: an operator has no translation.
        StepError: the exporter fails in another way.
    """
    import torch

    try:
        with quiet(), torch.no_grad():
            made = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    except Exception as cause:
        raise _translation_error(program, cause) from cause
    if made is None:
        raise StepError("PyTorch's exporter gave no model.")
    return made.model


def _translation_error(program: torch.export.ExportedProgram, cause: Exception) -> ConvkitError:
    text = "\n".join(str(part) for part in causes(cause))
    found = re.search(r"No ONNX function found for <?(?:OpOverload\(op=')?([\w.:]+)", text)
    if found is None:
        return StepError("Translating the exported graph to ONNX failed.", why=first_line(cause))
    operator = found[1].rstrip("'")
    return UnsupportedError(
        f"The operator {operator} has no translation to ONNX.",
        why=[f"used in {path}" for path in _users(program, operator)[:3]],
        hint="Replace it in the network by operators that ONNX has.",
        operator=operator,
    )


def _users(program: torch.export.ExportedProgram, operator: str) -> list[str]:
    """Module paths that call an operator, as `encoder.layer.0 (BertLayer)`."""
    paths = []
    # A decomposition may have renamed its namespace: prims.bessel_j0 was aten.special_bessel_j0.
    name = re.split(r"::|\.", operator)[1] if re.search(r"::|\.", operator) else operator
    for node in program.graph.nodes:
        if name in str(node.target):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            path, kind = stack[-1] if stack else ("", "")
            kind = kind if isinstance(kind, str) else kind.__name__
            place = path.removeprefix("network").strip(".") or "the network itself"
            paths.append(f"{place} ({kind.rsplit('.', 1)[-1]})")
    return list(dict.fromkeys(paths))


def _is_program(source: Artifact) -> bool:
    is_built = source.opening.factory is not None or source.path.is_dir()
    return not is_built and source.path.suffix == ".pt2"


def _would_unroll(network: torch.nn.Module, source: Artifact) -> bool:
    import torch

    has_length = any(
        isinstance(size, str) and size != "batch" for spec in source.inputs for size in spec.shape
    )
    return has_length and any(isinstance(m, torch.nn.RNNBase) for m in network.modules())
