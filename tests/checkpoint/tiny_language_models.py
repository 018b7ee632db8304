"""Tiny seeded language models of transformers, and the files people keep them in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers makes the models")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}


def llama(**changes: Any) -> Any:
    """A Llama of two layers, with weights large enough that each layer shows in the logits."""
    return _filled(transformers.LlamaForCausalLM, transformers.LlamaConfig(**{**SIZES, **changes}))


def gpt2() -> Any:
    """A GPT-2 of two layers: its weights are (inputs, outputs), its embeddings tied."""
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=99, n_positions=16)
    return _filled(transformers.GPT2LMHeadModel, config)


def _filled(kind: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = kind(config).eval()
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.05)
    return network


def logits(network: Any) -> torch.Tensor:
    """What a network says to twelve tokens."""
    with torch.inference_mode():
        found: torch.Tensor = network(torch.arange(3, 15)[None], use_cache=False).logits.float()
    return found


def folder_of(
    path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None
) -> Path:
    """A folder with these tensors in one safetensors file."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    words = {"model_type": "llama", **(config or {})}
    words["architectures"] = words.get("architectures") or ["LlamaForCausalLM"]
    (path / "config.json").write_text(json.dumps(words))
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors")
    return path


def in_torch(rows: Any) -> torch.Tensor:
    """A tensor read by rows, in the dtype it is stored in."""
    kind = {
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F64": torch.float64,
    }
    stored = np.ascontiguousarray(rows.stored(0, rows.row_count)).copy()
    return torch.from_numpy(stored).view(kind[rows.dtype]).reshape(rows.shape)
