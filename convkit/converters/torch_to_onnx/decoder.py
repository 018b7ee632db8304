"""The rung for causal language models: a graph from the config, weights from the checkpoint.

Neither PyTorch nor transformers is loaded, and memory holds a few rows of a tensor at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact
from convkit.converters.torch_to_onnx.language_folder import (
    copy_settings,
    external_over_bytes,
    graph_path,
)
from convkit.errors import RungSkipped, UnsupportedError, UsageError
from convkit.step import Package, Work, rung

if TYPE_CHECKING:
    from convkit.checkpoint.folder import Checkpoint
    from convkit.checkpoint.rows import Rows
    from convkit.converters.decoder_graph.blueprint import Blueprint
    from convkit.converters.decoder_graph.build import Built


@rung("decoder", needs=(Package("onnx", "onnx"),), is_eager=True)
def decoder(
    source: Artifact, out: Path, work: Work, *, opset: int = 20, attention: str = "plain"
) -> None:
    """Builds a causal language model with its cache; a folder unless `out` is called `.onnx`."""
    from convkit.checkpoint.folder import open_folder
    from convkit.converters.decoder_graph.build import DIALECTS, OLDEST_OPSET

    if attention not in DIALECTS:
        raise UsageError(
            f"attention is one of {', '.join(DIALECTS)}, not '{attention}'.",
            hint="--set torch-to-onnx.attention=plain",
        )
    if opset < OLDEST_OPSET:
        work.note(f"The graph is written at opset {OLDEST_OPSET}; --opset {opset} lowers it then.")
        opset = OLDEST_OPSET
    found = _blueprint(source)
    folder = source.path
    with open_folder(
        folder, adapter=source.opening.adapter, trust=source.opening.trust
    ) as checkpoint:
        work.progress("building the graph", 0, None)
        built = _built(found, checkpoint, source, attention, opset)
        total = sum(weight.byte_count for weight in built.weights)
        file = graph_path(out)
        built.write(
            file,
            external_over_bytes=external_over_bytes(out),
            progress=lambda done: work.progress("writing weights", done, total, "B"),
        )
        copy_settings(folder, out)
        if out.is_dir() and (checkpoint.quantization or source.opening.adapter):
            config = json.dumps(checkpoint.config, indent=2)
            (out / "config.json").write_text(config + "\n", encoding="utf-8")
        notes = (checkpoint.quantization, *checkpoint.notes, *built.notes)
    for note in filter(None, notes):
        work.note(note)


def _blueprint(source: Artifact) -> Blueprint:
    """What the folder's network computes, if it is one that blueprints describe."""
    from convkit.checkpoint.folder_files import architecture, continues_texts, read_config
    from convkit.converters.decoder_graph.families import blueprint

    if source.opening.factory is not None or not source.path.is_dir():
        raise RungSkipped("it serves Hugging Face folders only")
    config = read_config(source.path)
    name = architecture(config)
    if not continues_texts(name):
        raise RungSkipped(f"{name or 'a network without a name'} continues no texts")
    if {spec.name for spec in source.inputs} - {"input_ids", "attention_mask"}:
        raise RungSkipped("it serves language models that take token ids and their mask")
    try:
        return blueprint(config)
    except UnsupportedError as unknown:
        raise RungSkipped(unknown.what) from unknown


def _built(
    found: Blueprint, checkpoint: Checkpoint, source: Artifact, attention: str, opset: int
) -> Built:
    from convkit.converters.decoder_graph.build import build
    from convkit.converters.decoder_graph.families import blueprint

    config = checkpoint.config
    if source.opening.adapter is not None:
        found = blueprint(config)  # an adapter may untie or resize the embeddings
    try:
        return build(
            found,
            _tensors(checkpoint),
            config,
            others=checkpoint.other,
            precision=source.precision,
            attention=attention,
            opset=opset,
        )
    except UnsupportedError as unknown:
        raise RungSkipped(unknown.what) from unknown


def _tensors(checkpoint: Checkpoint) -> Mapping[str, Rows]:
    """Tensors under all their names."""
    tensors: dict[str, Any] = dict(checkpoint.tensors)
    tensors |= {alias: tensors[kept] for alias, kept in checkpoint.aliases.items()}
    return tensors
