"""GGUF models in fp32."""

from __future__ import annotations

from typing import Any

from convkit.ggml.streaming import opened, sink
from convkit.step import Work
from convkit.streaming import streaming_pass


@streaming_pass(
    "gguf",
    "fp32",
    open=opened,
    sink=sink,
    accepts=("bf16", "fp16", "int8", "q4"),
    loses="nothing; quantized weights take up to eight times the room",
    schemes=("f32",),
    recasts=True,
)
def gguf_fp32(model: Any, work: Work) -> Any:
    """Gives every matrix of weights the type F32; norms stay in float32."""
    from convkit.ggml.requantizing import as_float

    return as_float(model, "f32")
