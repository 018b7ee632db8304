"""Gemma 3, text: five of six layers slide, with frequencies of their own; queries are normed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convkit.errors import UnsupportedError
from convkit.families import rotary
from convkit.families.config import Config
from convkit.families.decoder import ATTENTION, FEED_FORWARD, QUERY_NORMS, RECOMPUTED, TIED
from convkit.families.family import Family, Stored
from convkit.families.gemma import (
    DEMANDS,
    FINAL_CAP,
    OUTSIDE,
    PERIOD,
    SANDWICH,
    WINDOW,
    around_one,
    check_query_scalar,
    configuration,
    metadata,
    query_scalar,
)
from convkit.families.keys import config_of, metadata_of, shortest
from convkit.families.rotary_recovery import rope_of
from convkit.families.table import Table
from convkit.families.windows import FULL, SLIDING, kinds_of, period_of

_PERIOD, _LAYERS_27B = 6, 62
_LOCAL_BASE = "ARCH.rope.freq_base_swa"


def _check(config: Config) -> None:
    rotary.check(config, ("default", "linear"))
    check_query_scalar(config, _LAYERS_27B)
    period_of(config, _PERIOD)
    local, nested = config.rope(SLIDING), config.get("rope_parameters")
    if local.kind != "default":
        raise UnsupportedError(
            f"Sliding layers of this gemma3 have rotary positions of kind '{local.kind}'.",
            why="llama.cpp scales those of the other layers only.",
            option="rope_parameters",
        )
    if nested and not isinstance(nested.get(FULL), Mapping):
        raise UnsupportedError(
            "rope_parameters in config.json are not told by the kind of layer.",
            why="transformers looks for them under full_attention and sliding_attention.",
            option="rope_parameters",
        )


def _slides(config: Config) -> bool:
    return SLIDING in kinds_of(period_of(config, _PERIOD), config.layers)


def _metadata(config: Config) -> dict[str, Any]:
    keys = metadata(config)
    if config.get(FINAL_CAP.torch):
        keys |= metadata_of(config, (FINAL_CAP,))
    if _slides(config):
        period = period_of(config, _PERIOD)
        keys |= metadata_of(config, (WINDOW,))
        keys[_LOCAL_BASE] = config.rope(SLIDING).theta
        if period != _PERIOD:
            keys[PERIOD] = period
    return keys


def _config(stored: Stored) -> dict[str, Any]:
    found = {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        **configuration(stored),
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {
            FULL: rope_of(stored),
            SLIDING: {
                "rope_type": "default",
                "rope_theta": shortest(stored.get(_LOCAL_BASE, 10_000.0)),
            },
        },
    }
    if stored.get(FINAL_CAP.gguf):
        found |= config_of(stored, (FINAL_CAP,))
    config = Config(found)
    period = 1
    if stored.get(WINDOW.gguf):
        found |= config_of(stored, (WINDOW,))
        period = int(stored.get(PERIOD, _PERIOD))
    return {
        **found,
        "query_pre_attn_scalar": query_scalar(config, _LAYERS_27B),
        "layer_types": kinds_of(period, config.layers),
    }


FAMILY = Family(
    architecture="gemma3",
    model_types=("gemma3_text", "gemma3"),
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    entries=Table(OUTSIDE, around_one((*ATTENTION, *QUERY_NORMS, *SANDWICH, *FEED_FORWARD))),
    metadata=_metadata,
    config=_config,
    demands={
        **DEMANDS,
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attn_logit_softcapping": (None,),
    },
    check=_check,
    aliases=(
        ("", "language_model."),
        ("model.", "model.language_model."),
    ),
    dropped={
        **RECOMPUTED,
        r"^(model\.)?(vision_tower|multi_modal_projector)\.": "it is the part that sees images, "
        "which llama.cpp keeps in a file of its own",
    },
    tied=TIED,
)
