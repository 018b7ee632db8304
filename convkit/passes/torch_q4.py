"""Hugging Face folders at four bits a weight, tensor by tensor; other networks as programs."""

from __future__ import annotations

from typing import Any

from convkit.passes.torch_quantizing import opened, sink, skipped
from convkit.step import Work
from convkit.streaming import streaming_pass


@streaming_pass(
    "torch",
    "q4",
    open=opened,
    sink=sink,
    accepts=("fp32", "fp16", "bf16"),
    loses="what lies between sixteen levels in each block of weights of linear layers",
    schemes=("nf4", "fp4"),
    of_source=True,
)
def torch_q4(
    model: Any,
    work: Work,
    *,
    scheme: str = "nf4",
    skip: str | tuple[str, ...] = (),
    block_size: int = 64,
    double_quant: bool = False,
    compute_dtype: str = "float32",
) -> Any:
    """Quantizes linear layers as bitsandbytes does, codes and scales bit for bit the same.

    transformers loads the result with bitsandbytes. Defaults are those of its configuration, but
    for the scheme. Networks that are no Hugging Face folder become an exported program, `.pt2`,
    that needs nothing but PyTorch and unpacks weights as it runs.

    Args:
        model: from a folder, or on its way into one.
        work: notes.
        scheme: `nf4`, made for weights as they are distributed, or `fp4`.
        skip: layers that stay as they are, beside output embeddings and what else transformers
            leaves out: names, how names end, or regular expressions of how they begin.
        block_size: weights that share a scale.
        double_quant: quantizes the scales too: 0.4 bits a weight less, in blocks of 64.
        compute_dtype: what layers compute in once they are loaded.
    """
    from convkit.quantization.bitsandbytes_folder import Settings, quantized
    from convkit.quantization.torch_program_quantizing import Program

    settings = Settings(scheme, skipped(skip), block_size, double_quant, compute_dtype)
    if isinstance(model, Program):
        return model.quantized(scheme, settings.skip, block_size)
    return quantized(model, settings)
