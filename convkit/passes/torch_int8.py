"""Hugging Face folders at eight bits a weight, tensor by tensor; other networks as programs."""

from __future__ import annotations

from typing import Any

from convkit.passes.torch_quantizing import opened, sink, skipped
from convkit.step import Work
from convkit.streaming import streaming_pass


@streaming_pass(
    "torch",
    "int8",
    open=opened,
    sink=sink,
    accepts=("fp32", "fp16", "bf16"),
    loses="what lies between 255 levels in each row of the weights of linear layers",
    schemes=("llm_int8",),
    of_source=True,
)
def torch_int8(
    model: Any,
    work: Work,
    *,
    scheme: str = "llm_int8",
    skip: str | tuple[str, ...] = (),
    threshold: float = 6.0,
) -> Any:
    """Quantizes linear layers as bitsandbytes does (LLM.int8), bit for bit the same.

    transformers loads the result with bitsandbytes. Networks that are no Hugging Face folder become
    an exported program, `.pt2`, that needs nothing but PyTorch; linear layers multiply integers.

    Args:
        model: from a folder, or on its way into one.
        work: notes.
        scheme: `llm_int8`.
        skip: layers that stay as they are, beside output embeddings and what else transformers
            leaves out: names, how names end, or regular expressions of how they begin.
        threshold: inputs of layers beyond it are multiplied in half precision.
    """
    from convkit.quantization.bitsandbytes_folder import Settings, quantized
    from convkit.quantization.torch_program_quantizing import Program

    settings = Settings(scheme, skipped(skip), threshold=threshold)
    if isinstance(model, Program):
        return model.quantized(scheme, settings.skip)
    return quantized(model, settings)
