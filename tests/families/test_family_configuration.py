from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from convkit.families.config import Config
from convkit.families.defaults import DEFAULTS
from convkit.families.family import families, family_of

transformers = pytest.importorskip("transformers", reason="transformers is the reference")

_TYPES = sorted(kind for family in families() for kind in family.model_types)

_WITHOUT_EFFECT = frozenset((
    # on results: dropout, what only training reads, what only generation reads
    "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "classifier_dropout",
    "embd_pdrop", "hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "summary_first_dropout",
    "initializer_range", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
    # on a language model: a head for classes
    "summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    # on anything: nothing in transformers reads it; or float32 is computed in another order
    "pretraining_tp", "reorder_and_upcast_attn",
    # on anything: `layer_types` says it again
    "_sliding_window_pattern",
    # on text: what images are turned into
    "boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image",
    "vision_config",
))  # fmt: skip
"""Options of transformers' configurations that no result depends on."""

_SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 99}
_VARIANTS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "falcon": ({}, {"new_decoder_architecture": True}),
    "qwen2": (_SLIDING,),
    "qwen3": (_SLIDING,),
    "qwen2_moe": ({**_SLIDING, "max_window_layers": 0},),
    "qwen3_moe": ({"use_sliding_window": True, "sliding_window": 1 << 20, "norm_topk_prob": True},),
}
"""Configurations that llama.cpp takes and that between them make use of all options."""

_EITHER_WAY = {("bert", "tie_word_embeddings"), ("qwen2_moe", "tie_word_embeddings"),
               ("stablelm", "tie_word_embeddings")}  # fmt: skip
"""An encoder has no output matrix; llama.cpp gets one of these even if it is the embedding."""


class Watched(Config):
    """A configuration that remembers what was looked at."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.read: set[str] = set()
        super().__init__(document)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


def _options(document: Mapping[str, Any]) -> set[str]:
    """The options of a configuration that not every configuration has."""
    base = transformers.PreTrainedConfig().to_dict().keys() - {"tie_word_embeddings"}
    nested = document.get("text_config") or {}
    return (document.keys() | nested.keys()) - base - {"text_config"}


def _default(config: Any, key: str) -> Any:
    config = getattr(config, "text_config", config)
    positions = getattr(config, "rope_parameters", None) or {}
    if key == "rope_local_base_freq":
        return positions["sliding_attention"]["rope_theta"]
    if key == "sliding_window":  # what the object holds was already switched on or off
        return type(config).sliding_window
    positions = positions.get("full_attention", positions)
    return positions[key] if key in positions else getattr(config, key)


@pytest.mark.parametrize("kind", _TYPES)
def test_what_is_left_out_is_what_transformers_takes(kind: str) -> None:
    config = transformers.CONFIG_MAPPING[kind]()
    expected = {key: _default(config, key) for key in DEFAULTS[kind]}
    assert dict(DEFAULTS[kind]) == expected


@pytest.mark.parametrize("kind", _TYPES)
def test_every_option_of_transformers_is_read_or_without_effect(kind: str) -> None:
    read: set[str] = set()
    for changes in _VARIANTS.get(kind, ({},)):
        document = transformers.CONFIG_MAPPING[kind](**changes).to_dict()
        document.pop("layer_types", None)  # which transformers makes of older options
        config = Watched(document)
        family = family_of(config)
        assert list(family.entries(config))
        assert family.metadata(config)
        family.derived(config)
        family.notes(config)
        read |= config.read
    left = _options(document) - read - _WITHOUT_EFFECT
    assert {(kind, option) for option in left} <= _EITHER_WAY
