"""StableLM: layer norms with biases, heads turned in part; 12B in parallel, with norms per head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convkit.families import rotary
from convkit.families.changes import PILED
from convkit.families.config import Config
from convkit.families.decoder import (
    ATTENTION,
    BIASES,
    EMBEDDING,
    FEED_FORWARD,
    FINAL_NORM,
    RECOMPUTED,
    REPEATED_HEAD,
    SILU,
    check_heads,
    config_of_shapes,
)
from convkit.families.family import Family, Stored
from convkit.families.keys import DECODER, LAYER_NORM_EPSILON, config_of, metadata_of
from convkit.families.rotary_recovery import rope_of
from convkit.families.table import Line, Table

_KEYS = (*DECODER, LAYER_NORM_EPSILON)


def _has_bias(config: Config) -> bool:
    return bool(config["use_qkv_bias"])


def _has_query_norms(config: Config) -> bool:
    return bool(config["qk_layernorm"])


def _is_serial(config: Config) -> bool:
    return not config["use_parallel_residual"]


_OUTSIDE = (
    EMBEDDING,
    FINAL_NORM,
    Line("output_norm.bias", "model.norm.bias", "hidden"),
    REPEATED_HEAD,
)
_LAYER = (
    *ATTENTION,
    Line("attn_norm.bias", "input_layernorm.bias", "hidden"),
    *(replace(line, when=_has_bias) for line in BIASES),
    Line("attn_q_norm.weight", "self_attn.q_layernorm.norms.{head}.weight", "heads head", PILED,
         when=_has_query_norms),
    Line("attn_k_norm.weight", "self_attn.k_layernorm.norms.{kv_head}.weight", "kv_heads head",
         PILED, when=_has_query_norms),
    Line("ffn_norm.weight", "post_attention_layernorm.weight", "hidden", when=_is_serial),
    Line("ffn_norm.bias", "post_attention_layernorm.bias", "hidden", when=_is_serial),
    *FEED_FORWARD,
)  # fmt: skip


def _check(config: Config) -> None:
    rotary.check(config, is_partial=True)
    check_heads(config)


def _metadata(config: Config) -> dict[str, Any]:
    return {
        **metadata_of(config, _KEYS),
        "ARCH.use_parallel_residual": not _is_serial(config),
        "ARCH.rope.dimension_count": rotary.rotated(config),
        **rotary.metadata_of(config),
    }


def _config(stored: Stored) -> dict[str, Any]:
    shapes = stored.shapes
    return {
        "model_type": "stablelm",
        "architectures": ["StableLmForCausalLM"],
        **config_of(stored, _KEYS),
        **config_of_shapes(stored),
        "hidden_act": "silu",
        "use_qkv_bias": "blk.0.attn_q.bias" in shapes,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in shapes,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in shapes,
        "rope_parameters": rope_of(stored, is_partial=True),
    }


FAMILY = Family(
    architecture="stablelm",
    model_types=("stablelm",),
    classes=("StableLmForCausalLM",),
    entries=Table(_OUTSIDE, _LAYER),
    metadata=_metadata,
    config=_config,
    demands={"hidden_act": SILU},
    check=_check,
    dropped=RECOMPUTED,
)
