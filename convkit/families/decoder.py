"""Metadata that all decoders have, from a configuration and back."""

from __future__ import annotations

from typing import Any

from convkit.families.config import Config
from convkit.families.family import Stored


def metadata_of(config: Config) -> dict[str, Any]:
    """`ARCH.*` that every decoder with separate heads has.

    Source: `TextModel.set_gguf_parameters` in llama.cpp's conversion/base.py.
    """
    keys: dict[str, Any] = {
        "ARCH.block_count": config.layers,
        "ARCH.context_length": config.context,
        "ARCH.embedding_length": config.hidden,
        "ARCH.feed_forward_length": config.feed_forward,
        "ARCH.attention.head_count": config.heads,
        "ARCH.attention.head_count_kv": config.kv_heads,
    }
    if config.get("head_dim"):
        keys["ARCH.attention.key_length"] = config.head_size
        keys["ARCH.attention.value_length"] = config.head_size
    if config.experts:
        keys["ARCH.expert_count"] = config.experts
        keys["ARCH.expert_used_count"] = config.experts_used
    return keys


def config_of(stored: Stored) -> dict[str, Any]:
    """What `metadata_of` wrote, and what the tensors themselves tell, under transformers' names."""
    get, shapes = stored.get, stored.shapes
    vocabulary, hidden = shapes["token_embd.weight"]
    heads = int(get("ARCH.attention.head_count"))
    found: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": int(get("ARCH.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(get("ARCH.attention.head_count_kv", heads)),
        "head_dim": head_sizes(stored)[0],
        "intermediate_size": int(get("ARCH.feed_forward_length")),
        "max_position_embeddings": int(get("ARCH.context_length")),
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    epsilon = get("ARCH.attention.layer_norm_rms_epsilon")
    if epsilon is not None:
        found["rms_norm_eps"] = shortest(epsilon)
    return found


def head_sizes(stored: Stored) -> tuple[int, int]:
    """Width of a head, of keys and of values."""
    get = stored.get
    plain = stored.shapes["token_embd.weight"][1] // int(get("ARCH.attention.head_count"))
    return (
        int(get("ARCH.attention.key_length", plain)),
        int(get("ARCH.attention.value_length", plain)),
    )


def shortest(value: float) -> float:
    """The shortest number that float32 holds as this one: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
