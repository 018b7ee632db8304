"""The rung on PyTorch's older exporter: the network is traced once; recurrent layers stay whole."""

from __future__ import annotations

import re
from pathlib import Path

from convkit.artifact import Artifact
from convkit.converters.onnx_stream import ir_version_for
from convkit.converters.torch_graph_log import graph_log_off
from convkit.converters.torch_to_onnx.callable import (
    best_sample,
    causes,
    first_line,
    prepare,
    quiet,
)
from convkit.converters.torch_to_onnx.language_folder import copy_settings, graph_place
from convkit.converters.torch_to_onnx.naming import drop_traces, output_names
from convkit.converters.torch_to_onnx.stream import write
from convkit.errors import ConvkitError, RungSkipped, StepError, UnsupportedError
from convkit.step import Package, Work, rung

LEAST_OPSET, GREATEST_OPSET = 9, 20
"""Opsets the older exporter writes. Source: `torch.onnx._constants` of PyTorch 2.13."""


@rung(
    "legacy",
    needs=(
        Package("torch", "torch"),
        Package("onnx", "onnx"),
        Package("onnx_ir", "onnx", "onnx-ir"),
    ),
)
def legacy(source: Artifact, out: Path, work: Work, *, opset: int = 20) -> None:
    """Exports by tracing; Python control flow is frozen as the example took it."""
    import onnx_ir
    import torch

    if opset < LEAST_OPSET:
        raise RungSkipped(f"it writes opset {LEAST_OPSET} and above, not {opset}")
    if opset > GREATEST_OPSET:
        work.note(
            f"the older exporter writes opset {GREATEST_OPSET} at most, so {opset} became that"
        )
        opset = GREATEST_OPSET
    network = work.load(source)
    if hasattr(network, "_in_spec"):
        raise RungSkipped("an exported program is a graph already")
    specs = source.inputs
    prepared = prepare(network, specs, best_sample(work.samples, specs))
    for name, value in prepared.constants.items():
        work.note(f"input '{name}' became the constant {value}")
    with quiet(), torch.no_grad():
        count = len(prepared.module(*prepared.arguments))
    names = output_names(source.outputs, count)
    axes = {
        spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in (*prepared.specs, *source.outputs)
    }
    draft = out.with_name(f"{out.name}.draft")
    work.progress("tracing the network", 0, None)
    try:
        with quiet(), graph_log_off(), torch.no_grad():
            torch.onnx.export(
                prepared.module,
                prepared.arguments,
                str(draft),
                dynamo=False,
                opset_version=opset,
                input_names=[spec.name for spec in prepared.specs],
                output_names=names,
                dynamic_axes={name: found for name, found in axes.items() if found},
                do_constant_folding=True,
            )
    except Exception as cause:
        draft.unlink(missing_ok=True)
        raise _error(cause) from cause
    try:
        model = onnx_ir.load(draft)
        drop_traces(model)
        write(model, graph_place(source, out), ir_version=ir_version_for(opset))
        copy_settings(source.path, out)
    finally:
        draft.unlink(missing_ok=True)


def _error(cause: Exception) -> ConvkitError:
    text = "\n".join(str(part) for part in causes(cause))
    found = re.search(r"(?:operator '|unrecognized namespace )(\w+::\w+)", text)
    if found is None:
        return StepError("PyTorch's older exporter failed.", why=first_line(cause))
    return UnsupportedError(
        f"The operator {found[1]} has no translation in PyTorch's older exporter.",
        why=[f"used in {_module_path(scope)}" for scope in _scopes(cause, found[1])][:3],
        hint="Replace it in the network by operators that ONNX has.",
        operator=found[1],
    )


def _scopes(cause: BaseException, operator: str) -> list[str]:
    """Scopes that use an operator, from the graph the exporter was at work on when it failed."""
    import torch

    trace = cause.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            if isinstance(value, torch._C.Graph):
                nodes = [node for node in value.nodes() if node.kind() == operator]
                return list(dict.fromkeys(node.scopeName() for node in nodes))
        trace = trace.tb_next
    return []


def _module_path(scope: str) -> str:
    """`a.Flat::/b.Net::network/b.Layer::blocks.1` as `blocks.1 (Layer)`."""
    parts = [part.partition("::") for part in scope.split("/")]
    names = [name for _, _, name in parts if name and name != "network"]
    return f"{'.'.join(names) or 'the network itself'} ({parts[-1][0].rsplit('.', 1)[-1]})"
