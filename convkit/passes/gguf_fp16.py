"""GGUF models in fp16."""

from __future__ import annotations

from typing import Any

from convkit.ggml.streaming import opened, sink
from convkit.step import Work
from convkit.streaming import streaming_pass


@streaming_pass(
    "gguf",
    "fp16",
    open=opened,
    sink=sink,
    accepts=("fp32", "bf16"),
    loses="three of seven decimal digits of each weight, and values above 65504",
    schemes=("f16",),
    recasts=True,
)
def gguf_fp16(model: Any, work: Work) -> Any:
    """Gives every matrix of weights the type F16; norms stay in float32."""
    from convkit.ggml.requantizing import as_float

    return as_float(model, "f16")
