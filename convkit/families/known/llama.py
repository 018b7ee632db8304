"""Llama 1 to 3, SmolLM, TinyLlama, Mistral and Mixtral: llama.cpp's `llama`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from convkit.families import rotary, windows
from convkit.families.changes import PILED, SAME, Change, PartOfEach, interleaved
from convkit.families.config import Config
from convkit.families.decoder import (
    FEED_FORWARD,
    FEED_FORWARD_NORM,
    OUTSIDE,
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
    EXPERTS_ALL,
    EXPERTS_USED,
    RMS_EPSILON,
    config_of,
    metadata_of,
    named,
)
from convkit.families.rotary_recovery import rope_of
from convkit.families.table import Line, Table


def _queries(config: Config) -> Change:
    return interleaved(config.heads, config.head_size)


def _keys(config: Config) -> Change:
    return interleaved(config.kv_heads, config.head_size)


def _has_bias(config: Config) -> bool:
    return config.model_type == "llama" and bool(config.get("attention_bias"))


def _has_inner_bias(config: Config) -> bool:
    return config.model_type == "llama" and bool(config.get("mlp_bias"))


def _is_plain(config: Config) -> bool:
    return not _is_mixture(config)


def _is_mixture(config: Config) -> bool:
    return config.model_type == "mixtral"


_ATTENTION = (
    Line("attn_norm.weight", "input_layernorm.weight", "hidden"),
    Line("attn_q.weight", "self_attn.q_proj.weight", "queries hidden", _queries),
    Line("attn_k.weight", "self_attn.k_proj.weight", "keys hidden", _keys),
    Line("attn_v.weight", "self_attn.v_proj.weight", "keys hidden"),
    Line("attn_output.weight", "self_attn.o_proj.weight", "hidden queries"),
    Line("attn_q.bias", "self_attn.q_proj.bias", "queries", _queries, when=_has_bias),
    Line("attn_k.bias", "self_attn.k_proj.bias", "keys", _keys, when=_has_bias),
    Line("attn_v.bias", "self_attn.v_proj.bias", "keys", when=_has_bias),
    Line("attn_output.bias", "self_attn.o_proj.bias", "hidden", when=_has_bias),
    FEED_FORWARD_NORM,
)
_PLAIN = (
    *(replace(line, when=_is_plain) for line in FEED_FORWARD),
    Line("ffn_gate.bias", "mlp.gate_proj.bias", "inner", when=_has_inner_bias),
    Line("ffn_up.bias", "mlp.up_proj.bias", "inner", when=_has_inner_bias),
    Line("ffn_down.bias", "mlp.down_proj.bias", "hidden", when=_has_inner_bias),
)
_FUSED = "mlp.experts.gate_up_proj"
_EXPERT = "block_sparse_moe.experts.{expert}"
_MIXTURE = (
    Line("ffn_gate_inp.weight", "block_sparse_moe.gate.weight", "experts hidden",
         when=_is_mixture, others=(("mlp.gate.weight", SAME),)),
    Line("ffn_gate_exps.weight", f"{_EXPERT}.w1.weight", "experts inner hidden", PILED,
         when=_is_mixture, others=((_FUSED, PartOfEach(0, 2)),)),
    Line("ffn_up_exps.weight", f"{_EXPERT}.w3.weight", "experts inner hidden", PILED,
         when=_is_mixture, others=((_FUSED, PartOfEach(1, 2)),)),
    Line("ffn_down_exps.weight", f"{_EXPERT}.w2.weight", "experts hidden inner", PILED,
         when=_is_mixture, others=(("mlp.experts.down_proj", SAME),)),
)  # fmt: skip
_EXPERTS = (named(EXPERTS_ALL, "num_local_experts"), EXPERTS_USED)
_WINDOW = "ARCH.attention.sliding_window"
"""llama.cpp does not look at it here; it is for the way back."""


def _check(config: Config) -> None:
    rotary.check(config, (*rotary.PLAIN, "llama3", "longrope"))


def _metadata(config: Config) -> dict[str, Any]:
    window = windows.window_of(config) if config.model_type != "llama" else None
    return {
        **metadata_of(config, (*DECODER, RMS_EPSILON)),
        **head_metadata_of(config),
        **(metadata_of(config, _EXPERTS) if _is_mixture(config) else {}),
        **({_WINDOW: window} if window else {}),
        "ARCH.vocab_size": int(config["vocab_size"]),
        "ARCH.rope.dimension_count": config.head_size,
        **rotary.metadata_of(config),
    }


def _config(stored: Stored) -> dict[str, Any]:
    window = stored.get(_WINDOW)
    found = {
        **config_of(stored, (*DECODER, RMS_EPSILON)),
        **config_of_shapes(stored),
        "head_dim": head_size_of(stored),
        "hidden_act": "silu",
        "rope_parameters": rope_of(stored),
    }
    if stored.get("ARCH.expert_count"):
        kind, name = "mixtral", "MixtralForCausalLM"
        found |= {**config_of(stored, _EXPERTS), "sliding_window": window}
    elif window:
        kind, name = "mistral", "MistralForCausalLM"
        found |= {"sliding_window": window}
    else:
        kind, name = "llama", "LlamaForCausalLM"
        found["attention_bias"] = "blk.0.attn_q.bias" in stored.shapes
        found["mlp_bias"] = "blk.0.ffn_gate.bias" in stored.shapes
    return {"model_type": kind, "architectures": [name], **found}


def _notes(config: Config) -> tuple[str, ...]:
    windowed = windows.notes_of(config) if config.model_type != "llama" else ()
    return (*windowed, *rotary.notes_of(config))


FAMILY = Family(
    architecture="llama",
    model_types=("llama", "mistral", "mixtral"),
    classes=("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"),
    entries=Table(OUTSIDE, (*_ATTENTION, *_PLAIN, *_MIXTURE)),
    metadata=_metadata,
    config=_config,
    demands={"hidden_act": SILU},
    check=_check,
    notes=_notes,
    dropped=RECOMPUTED,
    tied=TIED,
    derived=rotary.tensors_of,
)
