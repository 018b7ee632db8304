"""What Gemma 1, 2 and 3 share.

Source: llama.cpp, `conversion/gemma.py`, `src/models/gemma{,2,3}.cpp`; transformers,
`modeling_gemma{,2,3}.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from convkit.errors import UnsupportedError
from convkit.families import rotary
from convkit.families.changes import PLUS_ONE
from convkit.families.config import Config
from convkit.families.decoder import (
    EMBEDDING,
    FINAL_NORM,
    config_of_shapes,
    head_metadata_of,
    head_size_of,
)
from convkit.families.family import Stored
from convkit.families.keys import DECODER, RMS_EPSILON, Key, config_of, metadata_of
from convkit.families.table import Line

DEMANDS = {
    "attention_bias": (False, None),
    "tie_word_embeddings": (True,),
    "use_bidirectional_attention": (False, None),
}

WINDOW = Key("ARCH.attention.sliding_window", "sliding_window")
PERIOD = "ARCH.attention.sliding_window_pattern"
FINAL_CAP = Key("ARCH.final_logit_softcapping", "final_logit_softcapping", float)

_KEYS = (*DECODER, RMS_EPSILON)


def around_one(lines: Iterable[Line]) -> tuple[Line, ...]:
    """The lines of a table, with norms that multiply by one more than their weight."""
    return tuple(
        replace(line, change=PLUS_ONE) if line.gguf.endswith("norm.weight") else line
        for line in lines
    )


OUTSIDE = around_one((EMBEDDING, FINAL_NORM))

SANDWICH = (
    Line("post_attention_norm.weight", "post_attention_layernorm.weight", "hidden"),
    Line("ffn_norm.weight", "pre_feedforward_layernorm.weight", "hidden"),
    Line("post_ffw_norm.weight", "post_feedforward_layernorm.weight", "hidden"),
)
"""Norms around attention and around the feed-forward network, of Gemma 2 and 3."""


def metadata(config: Config) -> dict[str, Any]:
    """What all of them have."""
    return {
        **metadata_of(config, _KEYS),
        **head_metadata_of(config),
        **rotary.metadata_of(config),
    }


def configuration(stored: Stored) -> dict[str, Any]:
    """What all of them have, but for positions."""
    return {
        **config_of(stored, _KEYS),
        **config_of_shapes(stored),
        "head_dim": head_size_of(stored),
    }


def query_scalar(config: Config, layers_27b: int) -> int:
    """By whose root llama.cpp divides queries; the file cannot say another.

    Args:
        config: of the model.
        layers_27b: number of layers by which it recognises the model of 27B parameters.
    """
    is_27b = config.layers == layers_27b
    return config.hidden // config.heads if is_27b else config.head_size


def check_query_scalar(config: Config, layers_27b: int) -> None:
    """Sees to it that queries are divided by what llama.cpp divides them by.

    Raises:
        UnsupportedError: they are not.
    """
    wanted, given = query_scalar(config, layers_27b), config["query_pre_attn_scalar"]
    if given != wanted:
        raise UnsupportedError(
            f"llama.cpp's {config.model_type} has no query_pre_attn_scalar = {given!r}.",
            why=f"GGUF cannot say it; for these sizes llama.cpp takes {wanted}.",
            option="query_pre_attn_scalar",
        )
