"""Hugging Face folders to GGUF, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from convkit.artifact import Artifact
from convkit.ggml.streaming import sink
from convkit.step import Work
from convkit.streaming import streaming_converter


@streaming_converter(
    "torch",
    "gguf",
    sink=sink,
    carries=("fp32", "fp16", "bf16", "int8", "q4"),
    loses="training state; weights quantized by PyTorch's tools are unpacked",
    gives={"int8": "fp32", "q4": "fp32"},
)
@contextmanager
def torch_to_gguf(source: Artifact, work: Work) -> Iterator[Any]:
    """The model as llama.cpp has it: names, layouts, metadata, vocabulary."""
    from convkit.converters.gguf_writing import gguf_model

    with gguf_model(source, work) as model:
        yield model
