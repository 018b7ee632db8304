"""GGUF to Hugging Face folders, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convkit.artifact import Artifact
from convkit.step import Work
from convkit.streaming import streaming_converter


def _sink(model: Any, out: Path, work: Work) -> None:
    from convkit.checkpoint.writing import write_folder

    def progress(done: int, total: int) -> None:
        work.progress("writing tensors", done, total, "B")

    write_folder(model, out, progress)
    for finish in model.finish:
        finish(out, work.note)


@streaming_converter(
    "gguf",
    "torch",
    sink=_sink,
    carries=("fp32", "fp16", "bf16", "int8", "q4"),
    loses="nothing; quantized weights are unpacked to the numbers they stand for",
    gives={"int8": "fp32", "q4": "fp32"},
    ending="-hf",
    makes_folder=True,
)
@contextmanager
def gguf_to_torch(source: Artifact, work: Work) -> Iterator[Any]:
    """The model as transformers loads it: weights, configuration, tokenizer."""
    from convkit.converters.gguf_reading import folder_model
    from convkit.ggml.file import GgufFile

    with GgufFile(source.path) as file:
        yield folder_model(file, source.precision)
