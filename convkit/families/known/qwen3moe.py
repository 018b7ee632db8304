"""Qwen 3 as a mixture: experts whose shares sum to 1."""

from __future__ import annotations

from typing import Any

from convkit.families import rotary, windows
from convkit.families.config import Config
from convkit.families.decoder import (
    ATTENTION,
    EXPERTS,
    FEED_FORWARD_NORM,
    OUTSIDE,
    QUERY_NORMS,
    RECOMPUTED,
    SILU,
    TIED,
    config_of_shapes,
    head_metadata_of,
    head_size_of,
)
from convkit.families.family import Family, Stored
from convkit.families.keys import (
    DECODER,
    EXPERT_INNER,
    EXPERTS_ALL,
    EXPERTS_USED,
    RMS_EPSILON,
    config_of,
    metadata_of,
)
from convkit.families.rotary_recovery import rope_of
from convkit.families.table import Table

_KEYS = (
    *DECODER,
    RMS_EPSILON,
    EXPERTS_ALL,
    EXPERTS_USED,
    EXPERT_INNER,
)


def _check(config: Config) -> None:
    rotary.check(config)
    windows.check_none(config)


def _metadata(config: Config) -> dict[str, Any]:
    return {
        **metadata_of(config, _KEYS),
        **head_metadata_of(config),
        **rotary.metadata_of(config),
    }


def _config(stored: Stored) -> dict[str, Any]:
    return {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        **config_of(stored, _KEYS),
        **config_of_shapes(stored),
        "head_dim": head_size_of(stored),
        "hidden_act": "silu",
        "attention_bias": False,
        "norm_topk_prob": True,
        "use_sliding_window": False,
        "rope_parameters": rope_of(stored),
    }


FAMILY = Family(
    architecture="qwen3moe",
    model_types=("qwen3_moe",),
    classes=("Qwen3MoeForCausalLM",),
    entries=Table(OUTSIDE, (*ATTENTION, *QUERY_NORMS, FEED_FORWARD_NORM, *EXPERTS)),
    metadata=_metadata,
    config=_config,
    demands={
        "hidden_act": SILU,
        "attention_bias": (False, None),
        "norm_topk_prob": (True,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([], None),
    },
    check=_check,
    dropped=RECOMPUTED,
    tied=TIED,
)
