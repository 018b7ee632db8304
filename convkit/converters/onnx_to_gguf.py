"""ONNX graphs of language models that convkit built, back to GGUF."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from convkit.artifact import Artifact
from convkit.ggml.streaming import sink
from convkit.step import Package, Work
from convkit.streaming import streaming_converter


def _is_ours(source: Artifact) -> bool:
    """Whether a graph says which tensors of a Hugging Face checkpoint its weights are."""
    from convkit.onnx_folder import graph_file
    from convkit.onnx_metadata import CONFIG_KEY, read_metadata

    return CONFIG_KEY in read_metadata(graph_file(source.path))


@streaming_converter(
    "onnx",
    "gguf",
    sink=sink,
    carries=("fp32", "fp16", "bf16", "int8", "q4"),
    loses="the graph, which llama.cpp has itself; quantized weights are unpacked",
    needs=(Package("onnx", "onnx"), Package("onnx_ir", "onnx", "onnx-ir")),
    gives={"int8": "fp32", "q4": "fp32"},
    of_source=True,
    takes=_is_ours,
)
@contextmanager
def onnx_to_gguf(source: Artifact, work: Work) -> Iterator[Any]:
    """The model as llama.cpp has it, from the weights, configuration and tokenizer of a folder."""
    from convkit.converters.gguf_writing import built
    from convkit.converters.onnx_checkpoint import open_graph

    with open_graph(source) as checkpoint:
        yield built(checkpoint, source)
