"""The rung on mobius-onnx: a graph from the config, weights from safetensors, no tracing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, Precision
from convkit.converters.onnx_stream import ir_version_for
from convkit.converters.torch_to_onnx.callable import first_line, quiet
from convkit.converters.torch_to_onnx.deferred import deferred
from convkit.converters.torch_to_onnx.folder_weights import FolderWeights, Rename, fill
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

    from convkit.checkpoint.rows import Rows

_DTYPES = {Precision.FP32: "FLOAT", Precision.FP16: "FLOAT16", Precision.BF16: "BFLOAT16"}
_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
"""What a config.json may leave out. Source: transformers.models.bert.configuration_bert."""

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
    model = _build(source, config)
    graph = model.graph
    _inline(model)
    source = work.recorded() if work.recorded else source
    _drop_inputs(graph, {spec.name for spec in source.inputs})
    wanted = [spec.name for spec in source.outputs] or ["last_hidden_state"]
    has_pooler = wanted == ["last_hidden_state", "pooler_output"]
    if not has_pooler and wanted != ["last_hidden_state"]:
        raise RungSkipped(f"mobius gives last_hidden_state, the model gives {', '.join(wanted)}")
    with FolderWeights(source.path, _renaming(config["model_type"])) as weights:
        fill(graph, weights)
        if has_pooler:
            add_pooler(graph, weights)
        _finish(model, source, wanted, opset, work)
        work.progress("writing", 0, None)
        write(model, out, ir_version=ir_version_for(opset))


def _finish(
    model: onnx_ir.Model, source: Artifact, wanted: list[str], opset: int, work: Work
) -> None:
    """Mends the graph, brings it to `opset`, and names inputs and outputs as the network does."""
    graph = model.graph
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
    graph.name = source.path.name


def _config(source: Artifact) -> dict[str, Any]:
    """The folder's config, if mobius serves its kind."""
    opening = source.opening
    if opening.factory is not None or opening.adapter is not None or not source.path.is_dir():
        raise RungSkipped("it serves Hugging Face folders only, without adapters")
    if not any(source.path.glob("*.safetensors")):
        raise RungSkipped("it reads safetensors only")
    config: dict[str, Any] = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if kind not in CHECKED or config.get("auto_map") or config.get("quantization_config"):
        raise RungSkipped(f"its graph for '{kind}' is not one that was checked")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise RungSkipped("it knows absolute positions and encoders only")
    return config


def _build(source: Artifact, config: dict[str, Any]) -> onnx_ir.Model:
    """The graph without weights. mobius imports PyTorch for weights only: it is not loaded here."""
    try:
        with quiet(), deferred("torch", "safetensors.torch"):
            import mobius as builder
            import onnx_ir

            dtype = onnx_ir.DataType[_DTYPES[source.precision]]
            settings = builder.ArchitectureConfig.from_transformers(
                SimpleNamespace(**_DEFAULTS | config)
            )
            settings = dataclasses.replace(settings, dtype=dtype)
            network = builder.registry.get(config["model_type"])(settings)
            package = builder.build_from_module(network, settings, "feature-extraction")
        (model,) = package.values()
    except Exception as cause:  # whatever it raises, the next rung does not depend on it
        raise RungSkipped(f"mobius cannot build it: {first_line(cause)}") from cause
    found: onnx_ir.Model = model
    return found


def _renaming(model_type: str) -> Rename:
    """Mobius' own renaming of a checkpoint's tensors, which only looks at their names."""

    def rename(stored: dict[str, Rows]) -> Mapping[str, Rows]:
        import mobius as builder

        kind = builder.registry.get(model_type)
        bare = {name.removeprefix(f"{model_type}."): tensor for name, tensor in stored.items()}
        renamed: Mapping[str, Rows] = kind.preprocess_weights(None, bare)
        return {**bare, **renamed}

    return rename


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
