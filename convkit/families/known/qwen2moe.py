"""Qwen 1.5 and 2 as mixtures: experts whose shares are not made to sum to 1, and a shared one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convkit.families import rotary, windows
from convkit.families.config import Config
from convkit.families.decoder import (
    ATTENTION,
    BIASES,
    EMBEDDING,
    EXPERTS,
    FEED_FORWARD_NORM,
    FINAL_NORM,
    RECOMPUTED,
    REPEATED_HEAD,
    SILU,
    check_heads,
    config_of_shapes,
)
from convkit.families.family import Family, Stored
from convkit.families.keys import (
    DECODER,
    EXPERT_INNER,
    EXPERTS_ALL,
    EXPERTS_USED,
    RMS_EPSILON,
    Key,
    config_of,
    metadata_of,
)
from convkit.families.rotary_recovery import rope_of
from convkit.families.table import Line, Table

_KEYS = (
    *DECODER,
    RMS_EPSILON,
    EXPERTS_ALL,
    EXPERTS_USED,
    EXPERT_INNER,
    Key("ARCH.expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
)


def _has_bias(config: Config) -> bool:
    return bool(config["qkv_bias"])


_BIASES = tuple(replace(line, when=_has_bias) for line in BIASES)
_SHARED = (
    Line("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", "1 hidden"),
    Line("ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight", "shared_inner hidden"),
    Line("ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", "shared_inner hidden"),
    Line("ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight", "hidden shared_inner"),
)


def _check(config: Config) -> None:
    rotary.check(config)
    windows.check_none(config)
    check_heads(config)


def _metadata(config: Config) -> dict[str, Any]:
    return {**metadata_of(config, _KEYS), **rotary.metadata_of(config)}


def _config(stored: Stored) -> dict[str, Any]:
    return {
        "model_type": "qwen2_moe",
        "architectures": ["Qwen2MoeForCausalLM"],
        **config_of(stored, _KEYS),
        **config_of_shapes(stored),
        "hidden_act": "silu",
        "norm_topk_prob": False,
        "qkv_bias": "blk.0.attn_q.bias" in stored.shapes,
        "use_sliding_window": False,
        "rope_parameters": rope_of(stored),
    }


FAMILY = Family(
    architecture="qwen2moe",
    model_types=("qwen2_moe",),
    classes=("Qwen2MoeForCausalLM",),
    entries=Table(
        outside=(EMBEDDING, FINAL_NORM, REPEATED_HEAD),
        layer=(*ATTENTION, *_BIASES, FEED_FORWARD_NORM, *EXPERTS, *_SHARED),
    ),
    metadata=_metadata,
    config=_config,
    demands={
        "hidden_act": SILU,
        "norm_topk_prob": (False,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([], None),
    },
    check=_check,
    dropped=RECOMPUTED,
)
