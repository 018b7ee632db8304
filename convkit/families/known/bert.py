"""BERT, MiniLM, BGE: encoders that give embeddings."""

from __future__ import annotations

from typing import Any

from convkit.families import pooling
from convkit.families.changes import SAME
from convkit.families.config import Config
from convkit.families.decoder import check_heads
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
)
from convkit.families.table import Line, Table

_KEYS = (LAYERS, CONTEXT, HIDDEN, INNER, HEADS, LAYER_NORM_EPSILON)
_ACTIVATION = "ARCH.hidden_activation"
"""llama.cpp does not look at it here; it is for the way back."""


def _norm(gguf: str, torch: str) -> tuple[Line, Line]:
    """A norm; the first checkpoints call weight and bias gamma and beta."""
    return (
        Line(f"{gguf}.weight", f"{torch}.weight", "hidden", others=((f"{torch}.gamma", SAME),)),
        Line(f"{gguf}.bias", f"{torch}.bias", "hidden", others=((f"{torch}.beta", SAME),)),
    )


def _linear(gguf: str, torch: str, outputs: str, inputs: str) -> tuple[Line, Line]:
    return (
        Line(f"{gguf}.weight", f"{torch}.weight", f"{outputs} {inputs}"),
        Line(f"{gguf}.bias", f"{torch}.bias", outputs),
    )


_OUTSIDE = (
    Line("token_embd.weight", "embeddings.word_embeddings.weight", "vocabulary hidden"),
    Line("position_embd.weight", "embeddings.position_embeddings.weight", "positions hidden"),
    Line("token_types.weight", "embeddings.token_type_embeddings.weight", "types hidden"),
    *_norm("token_embd_norm", "embeddings.LayerNorm"),
)
_LAYER = (
    *_linear("attn_q", "attention.self.query", "hidden", "hidden"),
    *_linear("attn_k", "attention.self.key", "hidden", "hidden"),
    *_linear("attn_v", "attention.self.value", "hidden", "hidden"),
    *_linear("attn_output", "attention.output.dense", "hidden", "hidden"),
    *_norm("attn_output_norm", "attention.output.LayerNorm"),
    *_linear("ffn_up", "intermediate.dense", "inner", "hidden"),
    *_linear("ffn_down", "output.dense", "hidden", "inner"),
    *_norm("layer_output_norm", "output.LayerNorm"),
)


def _metadata(config: Config) -> dict[str, Any]:
    activation = config.get("hidden_act", "gelu")
    return {
        **metadata_of(config, _KEYS),
        "ARCH.attention.causal": False,
        "tokenizer.ggml.token_type_count": int(config.number("type_vocab_size")),
        **({_ACTIVATION: activation} if activation != "gelu" else {}),
    }


def _config(stored: Stored) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        **config_of(stored, _KEYS),
        "vocab_size": stored.shapes["token_embd.weight"][0],
        "type_vocab_size": stored.shapes["token_types.weight"][0],
        "hidden_act": stored.get(_ACTIVATION, "gelu"),
    }


def _notes(config: Config) -> tuple[str, ...]:
    exact = config.get("hidden_act", "gelu") == "gelu"
    return ("llama.cpp computes gelu by its approximation with tanh",) if exact else ()


FAMILY = Family(
    architecture="bert",
    model_types=("bert",),
    classes=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    entries=Table(_OUTSIDE, _LAYER, layers="encoder.layer"),
    metadata=_metadata,
    config=_config,
    demands={
        "hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh"),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    check=check_heads,
    notes=_notes,
    aliases=(("", "bert."),),
    dropped={
        r"embeddings\.position_ids$": "it counts from 0",
        r"^(bert\.)?pooler\.": "embeddings are pooled from the tokens' vectors without it",
        r"^cls\.": "it is a head for training, behind the embeddings",
    },
    beside=pooling.metadata_of,
    files=pooling.files_of,
    gives_embeddings=True,
)
