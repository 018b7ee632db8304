"""Phi-3, 3.5 and 4-mini: fused projections, heads turned in part, longrope."""

from __future__ import annotations

from typing import Any

from convkit.families import rotary, windows
from convkit.families.config import Config
from convkit.families.decoder import (
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
from convkit.families.table import Line, Table

_KEYS = (*DECODER, RMS_EPSILON)
_ORIGINAL = "ARCH.rope.scaling.original_context_length"
_ROTATED = "ARCH.rope.dimension_count"
_WINDOW = "ARCH.attention.sliding_window"
"""0 where there is none; llama.cpp reads it and leaves it off."""

_LAYER = (
    Line("attn_norm.weight", "input_layernorm.weight", "hidden"),
    Line("attn_qkv.weight", "self_attn.qkv_proj.weight", "fused hidden"),
    Line("attn_output.weight", "self_attn.o_proj.weight", "hidden hidden"),
    FEED_FORWARD_NORM,
    Line("ffn_up.weight", "mlp.gate_up_proj.weight", "gate+up hidden"),
    Line("ffn_down.weight", "mlp.down_proj.weight", "hidden inner"),
)


def _check(config: Config) -> None:
    rotary.check(config, ("default", "longrope"), is_partial=True)
    check_heads(config)


def _metadata(config: Config) -> dict[str, Any]:
    return {
        **metadata_of(config, _KEYS),
        _WINDOW: int(config.get("sliding_window") or 0),
        _ROTATED: rotary.rotated(config),
        _ORIGINAL: int(config.number("original_max_position_embeddings")),
        **rotary.metadata_of(config),
    }


def _config(stored: Stored) -> dict[str, Any]:
    found = config_of(stored, _KEYS)
    original = stored.get(_ORIGINAL, found["max_position_embeddings"])
    return {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        **found,
        **config_of_shapes(stored),
        "hidden_act": "silu",
        "pad_token_id": None,  # transformers' default is beyond small vocabularies
        "original_max_position_embeddings": original,
        "sliding_window": stored.get(_WINDOW) or None,
        "rope_parameters": rope_of(stored, is_partial=True),
    }


def _notes(config: Config) -> tuple[str, ...]:
    return (*windows.notes_of(config), *rotary.notes_of(config))


FAMILY = Family(
    architecture="phi3",
    model_types=("phi3",),
    classes=("Phi3ForCausalLM",),
    entries=Table(OUTSIDE, _LAYER),
    metadata=_metadata,
    config=_config,
    demands={"hidden_act": SILU},
    check=_check,
    notes=_notes,
    dropped=RECOMPUTED,
    tied=TIED,
    derived=rotary.tensors_of,
)
