"""Qwen 1.5, 2 and 2.5: Llama with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from convkit.families import rotary, windows
from convkit.families.config import Config
from convkit.families.decoder import (
    ATTENTION,
    BIASES,
    FEED_FORWARD,
    FEED_FORWARD_NORM,
    OUTSIDE,
    RECOMPUTED,
    SILU,
    TIED,
    check_heads,
    config_of_shapes,
)
from convkit.families.family import Family, Stored
from convkit.families.keys import DECODER, RMS_EPSILON, config_of, metadata_of
from convkit.families.rotary_recovery import rope_of
from convkit.families.table import Table

_KEYS = (*DECODER, RMS_EPSILON)


def _check(config: Config) -> None:
    rotary.check(config)
    windows.check_none(config)
    check_heads(config)


def _metadata(config: Config) -> dict[str, Any]:
    return {**metadata_of(config, _KEYS), **rotary.metadata_of(config)}


def _config(stored: Stored) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        **config_of(stored, _KEYS),
        **config_of_shapes(stored),
        "hidden_act": "silu",
        "use_sliding_window": False,
        "rope_parameters": rope_of(stored),
    }


FAMILY = Family(
    architecture="qwen2",
    model_types=("qwen2",),
    classes=("Qwen2ForCausalLM",),
    entries=Table(OUTSIDE, (*ATTENTION, *BIASES, FEED_FORWARD_NORM, *FEED_FORWARD)),
    metadata=_metadata,
    config=_config,
    demands={"hidden_act": SILU},
    check=_check,
    dropped=RECOMPUTED,
    tied=TIED,
)
