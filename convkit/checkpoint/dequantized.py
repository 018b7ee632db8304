"""Quantized tensors of a checkpoint as rows of floats, in the shapes they had before."""

from __future__ import annotations

import math
from collections.abc import Mapping

from convkit.checkpoint.awq import AwqRows
from convkit.checkpoint.bitsandbytes_weights import EightBitRows, FourBitRows
from convkit.checkpoint.fp8 import Fp8Rows
from convkit.checkpoint.gptq import GptqRows
from convkit.checkpoint.quantization import Quantization, Quantized
from convkit.checkpoint.rows import Rows
from convkit.checkpoint.stored import RecentArrays, TurnedAround
from convkit.errors import ModelError
from convkit.safetensors_file import StoredTensor

_TURNED_TYPES = frozenset(("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"))
_TURNED_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")
"""Layers of transformers' class Conv1D, whose weights are (inputs, outputs).

Quantizers store them as (outputs, inputs), like those of any linear layer.
"""


def is_turned(name: str, model_type: str) -> bool:
    """Whether a weight is that of a Conv1D: (inputs, outputs)."""
    layer = name.rpartition(".")[0].rpartition(".")[2]
    return model_type in _TURNED_TYPES and layer in _TURNED_LAYERS


def dequantized(
    tensor: Quantized,
    stored: Mapping[str, StoredTensor],
    quantization: Quantization,
    model_type: str,
    recent: RecentArrays,
) -> Rows:
    """A quantized tensor as rows of floats.

    Args:
        tensor: which one.
        stored: the tensors of the checkpoint.
        quantization: how it is quantized.
        model_type: of the configuration.
        recent: holds what has to be turned around.

    Raises:
        ModelError: its parts do not fit each other.
        UnsupportedError: it is quantized in an unknown way.
    """
    parts = {role: stored[name] for role, name in tensor.parts.items()}
    settings = quantization.settings
    if quantization.method in ("gptq", "awq"):
        _require_words(tensor.name, parts)
    rows: Rows
    if quantization.method == "gptq":
        rows = GptqRows(tensor.name, parts, settings, recent)
    elif quantization.method == "awq":
        rows = AwqRows(tensor.name, parts, recent)
    elif quantization.method == "fp8":
        rows = Fp8Rows(tensor.name, parts, settings.get("weight_block_size"))
    elif tensor.layout.bits == 4:
        rows = FourBitRows(tensor.name, parts)
    else:
        rows = EightBitRows(tensor.name, parts)
    return TurnedAround(rows, recent) if is_turned(tensor.name, model_type) else rows


def _require_words(name: str, parts: Mapping[str, StoredTensor]) -> None:
    """Sees to it that packed parts are matrices of words, none of them empty."""
    for role in ("qweight", "qzeros", "scales"):
        part = parts[role]
        is_words = part.dtype == "I32" if role != "scales" else part.dtype in ("F16", "BF16", "F32")
        if len(part.shape) != 2 or not math.prod(part.shape) or not is_words:
            raise ModelError(
                f"The quantized tensor '{name}' is damaged.",
                why=f"{role} is {part.dtype}{list(part.shape)}.",
            )
