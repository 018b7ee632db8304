"""Gemma 1."""

from __future__ import annotations

from typing import Any

from convkit.families import rotary
from convkit.families.decoder import ATTENTION, FEED_FORWARD, FEED_FORWARD_NORM, RECOMPUTED, TIED
from convkit.families.family import Family, Stored
from convkit.families.gemma import DEMANDS, OUTSIDE, around_one, configuration, metadata
from convkit.families.rotary_recovery import rope_of
from convkit.families.table import Table

_TANH = ("gelu_pytorch_tanh", "gelu")
"""Its first configurations say `gelu`, which transformers takes for the approximation as well."""


def _config(stored: Stored) -> dict[str, Any]:
    return {
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        **configuration(stored),
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": rope_of(stored),
    }


FAMILY = Family(
    architecture="gemma",
    model_types=("gemma",),
    classes=("GemmaForCausalLM",),
    entries=Table(OUTSIDE, around_one((*ATTENTION, FEED_FORWARD_NORM, *FEED_FORWARD))),
    metadata=metadata,
    config=_config,
    demands={**DEMANDS, "hidden_act": _TANH},
    check=rotary.check,
    dropped=RECOMPUTED,
    tied=TIED,
)
