"""Blueprints from configurations: one small file per kinship of architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from convkit.converters.decoder_graph.blueprint import Blueprint
from convkit.converters.decoder_graph.families.falcon import falcon
from convkit.converters.decoder_graph.families.gemma import gemma, gemma2, gemma3
from convkit.converters.decoder_graph.families.gpt2 import gpt2
from convkit.converters.decoder_graph.families.llama import llama, mistral, qwen2, qwen3
from convkit.converters.decoder_graph.families.mixtures import mixtral, qwen2_moe, qwen3_moe
from convkit.converters.decoder_graph.families.phi3 import phi3
from convkit.converters.decoder_graph.families.stablelm import stablelm
from convkit.converters.decoder_graph.settings import Settings
from convkit.errors import UnsupportedError

FAMILIES: Mapping[str, Callable[[Settings], Blueprint]] = {
    "falcon": falcon,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "stablelm": stablelm,
}
"""Model type -> what reads its configuration."""


def blueprint(config: Mapping[str, Any]) -> Blueprint:
    """What a network of this `config.json` computes.

    Raises:
        UnsupportedError: the family is none of `FAMILIES`, or an option has no expression.
        ModelError: a number is missing or makes no sense.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise UnsupportedError(
            f"No blueprint for language models of type '{family}'.",
            why=f"Known: {', '.join(FAMILIES)}",
        )
    settings = Settings(config)
    found = FAMILIES[family](settings)
    return replace(found, unread=settings.unread)
