"""GGUF models at eight bits a weight."""

from __future__ import annotations

from typing import Any

from convkit.ggml.streaming import opened, sink
from convkit.step import Package, Work
from convkit.streaming import streaming_pass


@streaming_pass(
    "gguf",
    "int8",
    open=opened,
    sink=sink,
    accepts=("fp32", "fp16", "bf16"),
    loses="what lies between 256 levels in each block of 32 weights",
    needs=(Package("libggml", "gguf", "libggml-python", instead=("llvmlite", "xllamacpp")),),
    schemes=("q8_0",),
)
def gguf_int8(
    model: Any,
    work: Work,
    *,
    scheme: str = "q8_0",
    pure: bool = False,
    tensor_types: tuple[str, ...] = (),
) -> Any:
    """Quantizes every matrix of weights.

    Args:
        model: from a file, or on its way into one.
        work: notes, and whether the user insists.
        scheme: there is one.
        pure: the scheme's own type for every tensor.
        tensor_types: `REGEX=TYPE`, types of one's own choosing.
    """
    from convkit.ggml.requantizing import requantized

    return requantized(model, work, scheme, is_pure=pure, tensor_types=tensor_types)
