"""The rung on mobius-onnx: a graph from the config, weights from safetensors, no tracing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, Precision
from convkit.converters.torch_to_onnx.callable import first_line, quiet
from convkit.converters.torch_to_onnx.exported import ir_version_for
from convkit.converters.torch_to_onnx.mobius_graph import (
    add_pooler,
    check_operators,
    drop_unused_outputs,
    lower_attention,
    mask_padding,
)
from convkit.converters.torch_to_onnx.naming import name_inputs, name_outputs
from convkit.converters.torch_to_onnx.stream import write
from convkit.errors import RungSkipped
from convkit.step import Package, Work, rung

if TYPE_CHECKING:
    import onnx_ir

_DTYPES = {Precision.FP32: "f32", Precision.FP16: "f16", Precision.BF16: "bf16"}
CHECKED = frozenset({"bert"})
"""Model types whose graph was compared with transformers, padding and all. mobius 0.1.0 lists many
more, but builds RoBERTa, DeBERTa and others as plain BERT; those go to the next rung at once."""


@rung(
    "mobius",
    needs=(
        Package("mobius", "torch", "mobius-onnx"),
        Package("onnx_ir", "onnx", "onnx-ir"),
        Package("onnx", "onnx"),
    ),
    is_eager=True,
)
def mobius(source: Artifact, out: Path, work: Work, *, opset: int = 20) -> None:
    """Builds the graph of a Hugging Face folder by name, its weights streamed from safetensors."""
    config = _config(source)
    work.progress("building the graph", 0, None)
    model = _build(source)
    graph = model.graph
    _inline(model)
    source = work.recorded() if work.recorded else source
    _drop_inputs(graph, {spec.name for spec in source.inputs})
    wanted = [spec.name for spec in source.outputs] or ["last_hidden_state"]
    if wanted == ["last_hidden_state", "pooler_output"]:
        add_pooler(graph, *_pooler_weights(source.path))
    if len(graph.outputs) != len(wanted) or wanted[0] != "last_hidden_state":
        raise RungSkipped(f"mobius gives last_hidden_state, the model gives {', '.join(wanted)}")
    mask_padding(graph)
    lower_attention(graph)
    drop_unused_outputs(graph)
    check_operators(model, opset)
    model.opset_imports.clear()
    model.opset_imports[""] = opset
    by_name = {value.name: value for value in graph.inputs}
    graph.inputs[:] = [by_name[spec.name] for spec in source.inputs]
    for lost in name_inputs(graph, source.inputs):
        work.note(f"dynamic dimension lost by mobius: {lost}")
    name_outputs(graph, wanted)
    model.graph.name = str(config.get("model_type"))
    work.progress("writing", 0, None)
    write(model, out, ir_version=ir_version_for(opset))


def _config(source: Artifact) -> dict[str, Any]:
    """The folder's config, if mobius serves its kind."""
    if source.opening.factory is not None or not source.path.is_dir():
        raise RungSkipped("it serves Hugging Face folders only")
    if not any(source.path.glob("*.safetensors")):
        raise RungSkipped("it reads safetensors only")
    config: dict[str, Any] = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if kind not in CHECKED or config.get("auto_map") or config.get("quantization_config"):
        raise RungSkipped(f"its graph for '{kind}' is not one that was checked")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise RungSkipped("it knows absolute positions and encoders only")
    return config


def _build(source: Artifact) -> onnx_ir.Model:
    try:
        with quiet():
            import mobius as builder

            package = builder.build(
                str(source.path), task="feature-extraction", dtype=_DTYPES[source.precision]
            )
        (model,) = package.values()
    except Exception as cause:  # whatever it raises, the next rung does not depend on it
        raise RungSkipped(f"mobius cannot build it: {first_line(cause)}") from cause
    empty = [name for name, v in model.graph.initializers.items() if v.const_value is None]
    if empty:
        raise RungSkipped(f"mobius found no weights for {empty[0]}")
    found: onnx_ir.Model = model
    return found


def _inline(model: onnx_ir.Model) -> None:
    from onnx_ir.passes.common import InlinePass

    InlinePass()(model)
    model.functions.clear()


def _drop_inputs(graph: onnx_ir.Graph, wanted: set[str]) -> None:
    found = {str(value.name) for value in graph.inputs}
    if not wanted <= found:
        raise RungSkipped(
            f"mobius takes {', '.join(sorted(found))}, not {', '.join(sorted(wanted))}"
        )
    if found - wanted:
        raise RungSkipped(f"mobius also needs {', '.join(sorted(found - wanted))}")


def _pooler_weights(folder: Path) -> tuple[Any, Any]:
    """Weight and bias of the pooler, as numpy arrays."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                for part in ("weight", "bias"):
                    if key in (f"pooler.dense.{part}", f"bert.pooler.dense.{part}"):
                        found[part] = tensors.get_tensor(key)
    return _pair(found)


def _pair(found: Mapping[str, Any]) -> tuple[Any, Any]:
    if set(found) != {"weight", "bias"}:
        raise RungSkipped("the folder has no weights for the pooler")
    return found["weight"], found["bias"]
