"""GPT-2: learned positions, fused projections stored (inputs, outputs)."""

from __future__ import annotations

from typing import Any

from convkit.families.changes import TURNED
from convkit.families.config import Config
from convkit.families.decoder import config_of_shapes
from convkit.families.family import Family, Stored
from convkit.families.keys import (
    CONTEXT,
    HEADS,
    HIDDEN,
    INNER,
    LAYER_NORM_EPSILON,
    LAYERS,
    config_of,
    metadata_of,
    named,
)
from convkit.families.table import Line, Table, is_untied

_KEYS = (
    named(LAYERS, "n_layer"),
    named(CONTEXT, "n_positions"),
    named(HIDDEN, "n_embd"),
    named(HEADS, "n_head"),
    named(LAYER_NORM_EPSILON, "layer_norm_epsilon"),
)
_INNER = named(INNER, "n_inner")

_OUTSIDE = (
    Line("token_embd.weight", "transformer.wte.weight", "vocabulary hidden"),
    Line("position_embd.weight", "transformer.wpe.weight", "positions hidden"),
    Line("output_norm.weight", "transformer.ln_f.weight", "hidden"),
    Line("output_norm.bias", "transformer.ln_f.bias", "hidden"),
    Line("output.weight", "lm_head.weight", "vocabulary hidden", when=is_untied),
)
_LAYER = (
    Line("attn_norm.weight", "ln_1.weight", "hidden"),
    Line("attn_norm.bias", "ln_1.bias", "hidden"),
    Line("attn_qkv.weight", "attn.c_attn.weight", "fused hidden", TURNED),
    Line("attn_qkv.bias", "attn.c_attn.bias", "fused"),
    Line("attn_output.weight", "attn.c_proj.weight", "hidden hidden", TURNED),
    Line("attn_output.bias", "attn.c_proj.bias", "hidden"),
    Line("ffn_norm.weight", "ln_2.weight", "hidden"),
    Line("ffn_norm.bias", "ln_2.bias", "hidden"),
    Line("ffn_up.weight", "mlp.c_fc.weight", "inner hidden", TURNED),
    Line("ffn_up.bias", "mlp.c_fc.bias", "inner"),
    Line("ffn_down.weight", "mlp.c_proj.weight", "hidden inner", TURNED),
    Line("ffn_down.bias", "mlp.c_proj.bias", "hidden"),
)


def _inner(config: Config) -> int:
    return int(config.get("n_inner") or 4 * config.hidden)


def _fused(config: Config) -> int:
    return 3 * config.hidden


def _metadata(config: Config) -> dict[str, Any]:
    return {**metadata_of(config, _KEYS), _INNER.gguf: _inner(config)}


def _config(stored: Stored) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **config_of(stored, (*_KEYS, _INNER)),
        **config_of_shapes(stored),
        "activation_function": "gelu_new",
    }


FAMILY = Family(
    architecture="gpt2",
    model_types=("gpt2",),
    classes=("GPT2LMHeadModel",),
    entries=Table(
        _OUTSIDE, _LAYER, layers="transformer.h", sizes={"inner": _inner, "fused": _fused}
    ),
    metadata=_metadata,
    config=_config,
    demands={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    aliases=(("transformer.", ""),),
    dropped={r"\.attn\.(masked_)?bias$": "it is the causal mask"},
    tied={"lm_head.weight": "transformer.wte.weight"},
)
