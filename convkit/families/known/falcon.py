"""Falcon: attention beside the feed-forward network, queries, keys and values fused by groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from convkit.checkpoint.rows import Array
from convkit.families import rotary
from convkit.families.changes import Change, Permuted
from convkit.families.config import Config
from convkit.families.decoder import RECOMPUTED, check_heads, config_of_shapes
from convkit.families.family import Family, Stored
from convkit.families.keys import (
    CONTEXT,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYER_NORM_EPSILON,
    LAYERS,
    config_of,
    metadata_of,
    named,
)
from convkit.families.rotary_recovery import rope_of
from convkit.families.table import Line, Table, is_untied

_KEYS = (LAYERS, CONTEXT, HIDDEN, HEADS, named(LAYER_NORM_EPSILON, "layer_norm_epsilon"))
_INNER = named(INNER, "ffn_hidden_size")
_KV_HEADS = named(KV_HEADS, "num_kv_heads")


def _has_two_norms(config: Config) -> bool:
    """Whether attention and the feed-forward network have a norm each (40B and 180B)."""
    count = config.get("num_ln_in_parallel_attn") or 2
    return bool(config.get("new_decoder_architecture")) and count == 2


def _has_one_norm(config: Config) -> bool:
    return not _has_two_norms(config)


def _kv_heads(config: Config) -> int:
    """Heads of keys and values; `num_kv_heads` counts in the newer architecture only."""
    if config.get("new_decoder_architecture"):
        return int(config.number("num_kv_heads", config.heads))
    return 1 if config.get("multi_query") else config.heads


def _apart(config: Config) -> Change:
    """Rows of a fused projection: all queries, all keys, all values, instead of group by group."""
    groups, size = _kv_heads(config), config.head_size

    def order() -> Array:
        rows = np.arange((config.heads + 2 * groups) * size).reshape(groups, -1, size)
        parts = (rows[:, :-2], rows[:, -2], rows[:, -1])
        return np.concatenate([part.reshape(-1) for part in parts])

    return Permuted(order)


def _inner(config: Config) -> int:
    return int(config.get("ffn_hidden_size") or 4 * config.hidden)


def _fused(config: Config) -> int:
    return (config.heads + 2 * _kv_heads(config)) * config.head_size


_OUTSIDE = (
    Line("token_embd.weight", "transformer.word_embeddings.weight", "vocabulary hidden"),
    Line("output_norm.weight", "transformer.ln_f.weight", "hidden"),
    Line("output_norm.bias", "transformer.ln_f.bias", "hidden"),
    Line("output.weight", "lm_head.weight", "vocabulary hidden", when=is_untied),
)
_LAYER = (
    Line("attn_norm.weight", "ln_mlp.weight", "hidden", when=_has_two_norms),
    Line("attn_norm.bias", "ln_mlp.bias", "hidden", when=_has_two_norms),
    Line("attn_norm_2.weight", "ln_attn.weight", "hidden", when=_has_two_norms),
    Line("attn_norm_2.bias", "ln_attn.bias", "hidden", when=_has_two_norms),
    Line("attn_norm.weight", "input_layernorm.weight", "hidden", when=_has_one_norm),
    Line("attn_norm.bias", "input_layernorm.bias", "hidden", when=_has_one_norm),
    Line("attn_qkv.weight", "self_attention.query_key_value.weight", "fused hidden", _apart),
    Line("attn_output.weight", "self_attention.dense.weight", "hidden hidden"),
    Line("ffn_up.weight", "mlp.dense_h_to_4h.weight", "inner hidden"),
    Line("ffn_down.weight", "mlp.dense_4h_to_h.weight", "hidden inner"),
)


def _check(config: Config) -> None:
    rotary.check(config)
    check_heads(config)


def _metadata(config: Config) -> dict[str, Any]:
    return {
        **metadata_of(config, _KEYS),
        _INNER.gguf: _inner(config),
        _KV_HEADS.gguf: _kv_heads(config),
        "ARCH.tensor_data_layout": "jploski",  # queries, keys and values apart
        **rotary.metadata_of(config),
    }


def _config(stored: Stored) -> dict[str, Any]:
    found = config_of(stored, (*_KEYS, _INNER, _KV_HEADS))
    has_two_norms = "blk.0.attn_norm_2.weight" in stored.shapes
    is_newer = has_two_norms or found["num_kv_heads"] > 1
    return {
        "model_type": "falcon",
        "architectures": ["FalconForCausalLM"],
        **found,
        **config_of_shapes(stored),
        "activation": "gelu",
        "alibi": False,
        "bias": False,
        "parallel_attn": True,
        "multi_query": True,
        "new_decoder_architecture": is_newer,
        "num_ln_in_parallel_attn": 2 if has_two_norms else 1 if is_newer else None,
        "rope_parameters": rope_of(stored),
    }


def _notes(config: Config) -> tuple[str, ...]:
    return ("llama.cpp computes gelu by its approximation with tanh",)


FAMILY = Family(
    architecture="falcon",
    model_types=("falcon",),
    classes=("FalconForCausalLM",),
    entries=Table(
        _OUTSIDE, _LAYER, layers="transformer.h", sizes={"inner": _inner, "fused": _fused}
    ),
    metadata=_metadata,
    config=_config,
    demands={
        "activation": ("gelu",),
        "alibi": (False,),
        "bias": (False,),
        "parallel_attn": (True,),
    },
    check=_check,
    notes=_notes,
    dropped=RECOMPUTED,
    tied={"lm_head.weight": "transformer.word_embeddings.weight"},
)
