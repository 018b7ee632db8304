"""Hugging Face folders to GGUF, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from convkit.artifact import Artifact
from convkit.ggml.streaming import sink
from convkit.step import Work
from convkit.streaming import streaming_converter


def _is_of_a_family(source: Artifact) -> bool:
    """Whether a source is a Hugging Face folder that llama.cpp has a network for."""
    from convkit.checkpoint.folder_files import read_config
    from convkit.errors import ModelError
    from convkit.families.config import Config
    from convkit.families.family import families

    if source.opening.factory or not source.path.is_dir():
        return False
    try:
        model_type = Config(read_config(source.path)).model_type
    except ModelError:
        return False
    return any(model_type in family.model_types for family in families())


@streaming_converter(
    "torch",
    "gguf",
    sink=sink,
    carries=("fp32", "fp16", "bf16", "int8", "q4"),
    loses="training state; weights quantized by PyTorch's tools are unpacked",
    gives={"int8": "fp32", "q4": "fp32"},
    of_source=True,
    takes=_is_of_a_family,
)
@contextmanager
def torch_to_gguf(source: Artifact, work: Work) -> Iterator[Any]:
    """The model as llama.cpp has it: names, layouts, metadata, vocabulary."""
    from convkit.converters.gguf_writing import gguf_model

    with gguf_model(source) as model:
        yield model
