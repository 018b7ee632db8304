"""Hugging Face folders whose linear layers are quantized as bitsandbytes does, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convkit.checkpoint.dequantized import is_turned
from convkit.checkpoint.folder import HELD_BYTES
from convkit.checkpoint.quantization import quantization_of
from convkit.checkpoint.rows import Rows
from convkit.checkpoint.stored import RecentArrays, TurnedAround
from convkit.checkpoint.writing import FolderModel, Target, Writable
from convkit.errors import UnsupportedError, UsageError
from convkit.naming import listed
from convkit.quantization.bitsandbytes_blocks import BLOCK_SIZES
from convkit.quantization.bitsandbytes_layers import chosen, layers_of
from convkit.quantization.bitsandbytes_tensors import EightBits, FourBits, Rounded, state_dtype

_CONFIG = "config.json"
_COMPUTE_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """How weights are quantized.

    Attributes:
        scheme: `nf4`, `fp4` or `llm_int8`.
        skip: names or patterns of layers that stay as they are, beside those that transformers
            leaves out.
        block_size: of 4-bit codes: weights that share a scale.
        is_nested: whether the scales of 4-bit codes are quantized too.
        compute_dtype: what 4-bit layers compute in.
        threshold: of LLM.int8: inputs beyond it are multiplied in half precision.
    """

    scheme: str
    skip: tuple[str, ...] = ()
    block_size: int = 64
    is_nested: bool = False
    compute_dtype: str = "float32"
    threshold: float = 6.0

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(
                f"A block of {self.block_size} weights is not one that bitsandbytes knows.",
                why=f"It knows {', '.join(map(str, BLOCK_SIZES))}.",
                hint="--set torch-q4.block_size=64",
            )
        if self.compute_dtype not in _COMPUTE_DTYPES:
            raise UsageError(
                f"Layers do not compute in {self.compute_dtype}.",
                hint=f"--set torch-q4.compute_dtype={_COMPUTE_DTYPES[-1]}",
            )


def quantized(model: FolderModel, settings: Settings) -> FolderModel:
    """The folder with its linear layers quantized; everything else stays as it is.

    Raises:
        UnsupportedError: transformers has no network for it, or no layer can be quantized.
        UsageError: a layer to be left as it is does not exist.
    """
    config = json.loads(model.files[_CONFIG])
    layers = layers_of(config, model.tensors)
    weights = chosen(layers, settings.skip)
    recent = RecentArrays(HELD_BYTES)
    tensors: dict[str, Writable] = {}
    for name, tensor in model.tensors.items():
        rows = _matrix(name, tensor, config, recent) if name in weights else None
        if rows is None:
            tensors[name] = tensor
            weights.pop(name, None)
        else:
            assert isinstance(tensor, Target)
            tensors[name] = _as(settings, rows, state_dtype(_dtype(config), tensor))
    kept = [module for name, module in layers.modules.items() if name not in weights]
    left_out = sorted({*layers.left_out, *settings.skip, *layers.strange, *kept})
    config["quantization_config"] = _quantization_config(settings, left_out)
    files = {**model.files, _CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
    split = [weights[n] for n, t in tensors.items() if isinstance(t, FourBits) and t.splits_blocks]
    notes = (*model.notes, *_notes(settings, weights, kept, split))
    return replace(model, tensors=tensors, files=files, notes=notes)


def refuse_quantized(config: Mapping[str, Any], folder: Path) -> None:
    """Sees to it that weights are not quantized yet.

    Raises:
        UnsupportedError: they are.
    """
    found = quantization_of(config, folder)
    if found is not None:
        raise UnsupportedError(
            f"The weights of {folder} are quantized already: {found.words}.",
            why="Quantized twice, they would lose more than either way takes.",
            hint="Quantize the model that it was made from.",
        )


def _matrix(
    name: str, tensor: Writable, config: Mapping[str, Any], recent: RecentArrays
) -> Rows | None:
    """A weight as (outputs, inputs); None where it is no matrix of floats with something in it."""
    if not isinstance(tensor, Target) or len(tensor.rows.shape) != 2:
        return None
    if not tensor.rows.element_count:
        return None
    rows = Rounded(tensor)
    model_type = str(config.get("model_type"))
    return TurnedAround(rows, recent) if is_turned(name, model_type) else rows


def _as(settings: Settings, rows: Rows, dtype: str) -> Writable:
    if settings.scheme == "llm_int8":
        return EightBits(rows)
    return FourBits(rows, settings.scheme, dtype, settings.block_size, settings.is_nested)


def _dtype(config: Mapping[str, Any]) -> object:
    """The dtype that a configuration says weights are loaded in."""
    return config.get("dtype") or config.get("torch_dtype")


def _quantization_config(settings: Settings, left_out: Sequence[str]) -> dict[str, Any]:
    """As transformers writes it. Source: transformers, `BitsAndBytesConfig.to_dict`."""
    is_eight = settings.scheme == "llm_int8"
    return {
        "_load_in_4bit": not is_eight,
        "_load_in_8bit": is_eight,
        "bnb_4bit_compute_dtype": settings.compute_dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4" if is_eight else settings.scheme,
        "bnb_4bit_use_double_quant": settings.is_nested,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(left_out),
        "llm_int8_threshold": settings.threshold,
        "load_in_4bit": not is_eight,
        "load_in_8bit": is_eight,
        "quant_method": "bitsandbytes",
    }


def _notes(
    settings: Settings, weights: Mapping[str, str], kept: Sequence[str], split: Sequence[str]
) -> list[str]:
    way = "LLM.int8" if settings.scheme == "llm_int8" else settings.scheme.upper()
    count = len(weights)
    text = f"{count} linear layer{'s' if count > 1 else ''} quantized to {way}"
    if kept:
        text += f"; left as they are: {listed(list(kept), 4)}"
    if not split:
        return [text]
    return [
        text,
        f"rows that are no whole blocks of {settings.block_size} weights: {listed(split, 2)}; "
        "bitsandbytes' kernels for CPUs fail on them, those for GPUs do not",
    ]
