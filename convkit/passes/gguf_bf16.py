"""GGUF models in bf16."""

from __future__ import annotations

from typing import Any

from convkit.ggml.streaming import opened, sink
from convkit.step import Work
from convkit.streaming import streaming_pass


@streaming_pass(
    "gguf",
    "bf16",
    open=opened,
    sink=sink,
    accepts=("fp32", "fp16"),
    loses="five of seven decimal digits of each weight; the range stays",
    schemes=("bf16",),
    recasts=True,
)
def gguf_bf16(model: Any, work: Work) -> Any:
    """Gives every matrix of weights the type BF16; norms stay in float32."""
    from convkit.ggml.requantizing import as_float

    return as_float(model, "bf16")
