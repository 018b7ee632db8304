"""GGUF to ONNX: a graph with a cache, block-quantized weights as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from convkit.artifact import Artifact
from convkit.step import Package, Work, ladder, rung


@rung("gguf-to-onnx", needs=(Package("onnx", "onnx"),), is_eager=True)
def _built(
    source: Artifact,
    out: Path,
    work: Work,
    *,
    opset: int = 20,
    attention: str = "fused",
    accuracy_level: int = 4,
) -> None:
    """Builds the network of a GGUF file; a folder unless `out` is called `.onnx`.

    Args:
        source: the file.
        out: the folder, or the graph alone.
        work: notes and progress.
        opset: of the standard operators.
        attention: `fused` for ONNX Runtime's own operators, `plain` for those of ONNX.
        accuracy_level: of products with quantized weights: 4 rounds activations to eight bits as
            llama.cpp does, which is fastest on CPUs; 1 computes in float32.
    """
    from convkit.converters.gguf_graph import write_graph

    write_graph(source, out, work, opset=opset, attention=attention, accuracy_level=accuracy_level)


def _ending(source: Artifact) -> str:
    return "-onnx"


def _continues_texts(source: Artifact) -> bool:
    """Whether a file holds a model of which graphs are built; the others go over PyTorch."""
    return any(spec.name == "logits" for spec in source.outputs)


gguf_to_onnx = replace(
    ladder(
        "gguf",
        "onnx",
        _built,
        carries=("fp32", "fp16", "bf16", "int8", "q4"),
        loses="nothing; types that ONNX Runtime has no product for become float",
        cost=1.0,
    ),
    ending=_ending,
    takes=_continues_texts,
)
