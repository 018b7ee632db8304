"""What decoders have in common: tensors under Llama's names, and what shapes tell."""

from __future__ import annotations

from typing import Any

from convkit.errors import UnsupportedError
from convkit.families.changes import PILED, SAME, PartOfEach
from convkit.families.config import Config
from convkit.families.family import Stored
from convkit.families.keys import HEADS, config_of
from convkit.families.table import Line, is_untied

EMBEDDING = Line("token_embd.weight", "model.embed_tokens.weight", "vocabulary hidden")
FINAL_NORM = Line("output_norm.weight", "model.norm.weight", "hidden")
HEAD = Line("output.weight", "lm_head.weight", "vocabulary hidden", when=is_untied)
REPEATED_HEAD = Line(
    "output.weight",
    "lm_head.weight",
    "vocabulary hidden",
    others=(("model.embed_tokens.weight", SAME),),
)
"""Where llama.cpp wants an output matrix even if it is the embedding once more."""

OUTSIDE = (EMBEDDING, FINAL_NORM, HEAD)

ATTENTION = (
    Line("attn_norm.weight", "input_layernorm.weight", "hidden"),
    Line("attn_q.weight", "self_attn.q_proj.weight", "queries hidden"),
    Line("attn_k.weight", "self_attn.k_proj.weight", "keys hidden"),
    Line("attn_v.weight", "self_attn.v_proj.weight", "keys hidden"),
    Line("attn_output.weight", "self_attn.o_proj.weight", "hidden queries"),
)

BIASES = (
    Line("attn_q.bias", "self_attn.q_proj.bias", "queries"),
    Line("attn_k.bias", "self_attn.k_proj.bias", "keys"),
    Line("attn_v.bias", "self_attn.v_proj.bias", "keys"),
)
"""Of queries, keys and values."""

QUERY_NORMS = (
    Line("attn_q_norm.weight", "self_attn.q_norm.weight", "head"),
    Line("attn_k_norm.weight", "self_attn.k_norm.weight", "head"),
)

FEED_FORWARD_NORM = Line("ffn_norm.weight", "post_attention_layernorm.weight", "hidden")

FEED_FORWARD = (
    Line("ffn_gate.weight", "mlp.gate_proj.weight", "inner hidden"),
    Line("ffn_up.weight", "mlp.up_proj.weight", "inner hidden"),
    Line("ffn_down.weight", "mlp.down_proj.weight", "hidden inner"),
)

_FUSED = "mlp.experts.gate_up_proj"

EXPERTS = (
    Line("ffn_gate_inp.weight", "mlp.gate.weight", "experts hidden"),
    Line("ffn_gate_exps.weight", "mlp.experts.{expert}.gate_proj.weight",
         "experts expert_inner hidden", PILED, others=((_FUSED, PartOfEach(0, 2)),)),
    Line("ffn_up_exps.weight", "mlp.experts.{expert}.up_proj.weight",
         "experts expert_inner hidden", PILED, others=((_FUSED, PartOfEach(1, 2)),)),
    Line("ffn_down_exps.weight", "mlp.experts.{expert}.down_proj.weight",
         "experts hidden expert_inner", PILED, others=(("mlp.experts.down_proj", SAME),)),
)  # fmt: skip
"""A mixture of experts: one by one, as `save_pretrained` writes them, or as transformers 5 holds
them, in one tensor with gate and up after each other."""

SILU = ("silu", "swish")
"""What transformers calls it."""

TIED = {"lm_head.weight": "model.embed_tokens.weight"}
RECOMPUTED = {r"rotary_emb\.inv_freq$": "computed from the configuration"}


def config_of_shapes(stored: Stored) -> dict[str, Any]:
    """What the tensors themselves tell.

    Raises:
        UnsupportedError: it is no decoder.
    """
    if stored.get("ARCH.attention.causal") is False:
        raise UnsupportedError(
            "In this model tokens see those that follow.",
            why="transformers has this architecture as a decoder only.",
        )
    return {
        "vocab_size": stored.shape("token_embd.weight")[0],
        "tie_word_embeddings": "output.weight" not in stored.shapes,
    }


def head_metadata_of(config: Config) -> dict[str, Any]:
    """The width of a head, where the configuration says it."""
    if not config.get("head_dim"):
        return {}
    return {
        "ARCH.attention.key_length": config.head_size,
        "ARCH.attention.value_length": config.head_size,
    }


def head_size_of(stored: Stored) -> int:
    """Width of a head.

    Raises:
        UnsupportedError: it is another one for values than for keys.
    """
    get = stored.get
    heads = int(config_of(stored, (HEADS,))[HEADS.torch])
    plain = stored.shape("token_embd.weight")[1] // heads
    keys = int(get("ARCH.attention.key_length", plain))
    values = int(get("ARCH.attention.value_length", plain))
    if keys != values:
        raise UnsupportedError(
            f"Heads of this model have {keys} numbers for keys and {values} for values.",
            why="transformers has one head_dim for both.",
        )
    return keys


def check_heads(config: Config) -> None:
    """Sees to it that heads fill the residual stream, where llama.cpp takes that for granted.

    Raises:
        UnsupportedError: they do not.
    """
    if config.heads * config.head_size != config.hidden:
        raise UnsupportedError(
            f"{config.heads} heads of {config.head_size} do not fill {config.hidden} numbers.",
            why=f"llama.cpp has no head_dim of its own for {config.model_type}.",
            option="head_dim",
        )
