"""Gemma 2: every other layer slides, scores and logits are capped, norms on both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convkit.errors import UnsupportedError
from convkit.families import rotary
from convkit.families.config import Config
from convkit.families.decoder import ATTENTION, FEED_FORWARD, RECOMPUTED, TIED
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
from convkit.families.keys import Key, config_of, metadata_of
from convkit.families.rotary_recovery import rope_of
from convkit.families.table import Table
from convkit.families.windows import kinds_of, period_of

_PERIOD, _LAYERS_27B = 2, 46
_KEYS = (
    replace(WINDOW, default=4096),
    replace(FINAL_CAP, default=30.0),
    Key("ARCH.attn_logit_softcapping", "attn_logit_softcapping", float, default=50.0),
)
"""With what llama.cpp takes where the file is silent."""


def _check(config: Config) -> None:
    rotary.check(config)
    check_query_scalar(config, _LAYERS_27B)
    for key in _KEYS:
        if not config.get(key.torch):
            raise UnsupportedError(
                f"llama.cpp's gemma2 cannot do without {key.torch}.",
                why=f"config.json has {key.torch} = {config.get(key.torch)!r}.",
                option=key.torch,
            )
    period_of(config, _PERIOD)


def _metadata(config: Config) -> dict[str, Any]:
    period = period_of(config, _PERIOD)
    return {
        **metadata(config),
        **metadata_of(config, _KEYS),
        **({PERIOD: period} if period != _PERIOD else {}),
    }


def _config(stored: Stored) -> dict[str, Any]:
    found = {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        **configuration(stored),
        **config_of(stored, _KEYS),
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": rope_of(stored),
    }
    config = Config(found)
    return {
        **found,
        "query_pre_attn_scalar": query_scalar(config, _LAYERS_27B),
        "layer_types": kinds_of(int(stored.get(PERIOD, _PERIOD)), config.layers),
    }


FAMILY = Family(
    architecture="gemma2",
    model_types=("gemma2",),
    classes=("Gemma2ForCausalLM",),
    entries=Table(OUTSIDE, around_one((*ATTENTION, *SANDWICH, *FEED_FORWARD))),
    metadata=_metadata,
    config=_config,
    demands={**DEMANDS, "hidden_activation": ("gelu_pytorch_tanh",)},
    check=_check,
    dropped=RECOMPUTED,
    tied=TIED,
)
