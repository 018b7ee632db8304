"""Gemma 1, 2 and 3: norms around 1, scaled embeddings, soft caps, layers that slide.

Source: transformers 5.23, `modeling_gemma.py`, `modeling_gemma2.py`, `modeling_gemma3.py` and the
configurations beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convkit.converters.decoder_graph.blueprint import (
    Attention,
    Blueprint,
    FeedForward,
    Layer,
    Linear,
    Norm,
    Rotary,
)
from convkit.converters.decoder_graph.families.llama import UNUSED, attention_of
from convkit.converters.decoder_graph.families.sizes import Sizes, layer_kinds, sizes_of, window_of
from convkit.converters.decoder_graph.frequencies import rotary
from convkit.converters.decoder_graph.settings import Settings
from convkit.families.windows import FULL, SLIDING

_TANH = "gelu_pytorch_tanh"


def gemma(settings: Settings) -> Blueprint:
    """Gemma 1."""
    sizes = sizes_of(settings, width=3072, layers=28, heads=16, kv_heads=16, head=256)
    has_bias = settings.holds("attention_bias")
    attention = attention_of(
        sizes, rotary(settings, sizes.head, context=8192), biases=(has_bias, has_bias)
    )
    activation = str(settings.get("hidden_act", _TANH))
    # Its first configurations said "gelu" and meant the approximation.
    activation = _TANH if activation == "gelu" else activation
    settings.repeats("hidden_activation", activation)
    inner = settings.number("intermediate_size", default=24576)
    feed_forward = _gated(sizes, inner, activation)
    return _decoder(settings, sizes, [attention] * sizes.layers, feed_forward, has_after=False)


def gemma2(settings: Settings) -> Blueprint:
    """Gemma 2: every other layer slides, scores and logits are capped."""
    sizes = sizes_of(settings, width=2304, layers=26, heads=8, kv_heads=4, head=256)
    window = window_of(settings, 4096)
    windows = layer_kinds(settings, [not i % 2 for i in range(sizes.layers)], window)
    turns = rotary(settings, sizes.head, context=8192)
    softcap = _cap(settings, "attn_logit_softcapping", 50.0)
    attentions = _attentions(settings, sizes, dict.fromkeys(windows, turns), softcap=softcap)
    return _decoder(
        settings,
        sizes,
        [attentions[width] for width in windows],
        _gated_of(settings, sizes),
        softcap=_cap(settings, "final_logit_softcapping", 30.0),
    )


def gemma3(settings: Settings) -> Blueprint:
    """Gemma 3, text: five of six layers slide, with frequencies of their own."""
    sizes = sizes_of(settings, width=2304, layers=26, heads=8, kv_heads=4, head=256)
    every = settings.number("sliding_window_pattern", default=6)
    window = window_of(settings, 4096)
    windows = layer_kinds(settings, [(i + 1) % every for i in range(sizes.layers)], window)
    turns = _rotaries(settings, sizes, windows)
    if settings.get("attn_logit_softcapping"):
        raise settings.refusal("attn_logit_softcapping", "transformers leaves it out")
    attentions = _attentions(
        settings, sizes, turns, norm_epsilon=settings.real("rms_norm_eps", 1e-6)
    )
    return _decoder(
        settings,
        sizes,
        [attentions[width] for width in windows],
        _gated_of(settings, sizes),
        softcap=_cap(settings, "final_logit_softcapping", None),
        vocabulary=262208,
    )


def _rotaries(
    settings: Settings, sizes: Sizes, windows: Sequence[int | None]
) -> dict[int | None, Rotary]:
    """Positions of full and of sliding layers, which transformers 5 keeps by kind of layer."""
    nested: Mapping[str, Any] = settings.get("rope_parameters", {})
    if nested and not set(nested) <= {FULL, SLIDING}:
        raise settings.refusal("rope_parameters for all layers", "it wants them by kind of layer")
    full = {**(nested.get(FULL) or {}), **settings.get("rope_scaling", {})}
    full.setdefault("rope_theta", settings.get("rope_theta", 1_000_000.0))
    sliding = dict(nested.get(SLIDING) or {})
    sliding.setdefault("rope_theta", settings.get("rope_local_base_freq", 10_000.0))
    return {
        width: rotary(settings, sizes.head, context=131072, own=full if width is None else sliding)
        for width in dict.fromkeys(windows)
    }


def _attentions(
    settings: Settings,
    sizes: Sizes,
    turns: Mapping[int | None, Rotary],
    *,
    softcap: float | None = None,
    norm_epsilon: float | None = None,
) -> dict[int | None, Attention]:
    """Attention by window."""
    has_bias = settings.holds("attention_bias")
    return {
        window: attention_of(
            sizes,
            turned,
            biases=(has_bias, has_bias),
            norm_epsilon=norm_epsilon,
            norm_offset=1.0,
            window=window,
            scale=settings.real("query_pre_attn_scalar", 256) ** -0.5,
            softcap=softcap,
        )
        for window, turned in turns.items()
    }


def _gated_of(settings: Settings, sizes: Sizes) -> FeedForward:
    activation = str(settings.get("hidden_activation", _TANH))
    settings.repeats("hidden_act", activation)
    return _gated(sizes, settings.number("intermediate_size", default=9216), activation)


def _gated(sizes: Sizes, inner: int, activation: str) -> FeedForward:
    return FeedForward(
        activation=activation,
        up=Linear("mlp.up_proj", sizes.width, inner),
        down=Linear("mlp.down_proj", inner, sizes.width),
        gate=Linear("mlp.gate_proj", sizes.width, inner),
    )


def _cap(settings: Settings, key: str, default: float | None) -> float | None:
    """A soft cap; null in the configuration means none."""
    return settings.get(key) if settings.says(key) else default


def _decoder(
    settings: Settings,
    sizes: Sizes,
    attentions: Sequence[Attention],
    feed_forward: FeedForward,
    *,
    has_after: bool = True,
    softcap: float | None = None,
    vocabulary: int = 256000,
) -> Blueprint:
    epsilon = settings.real("rms_norm_eps", 1e-6)
    vocabulary = settings.number("vocab_size", default=vocabulary)

    def norm(name: str) -> Norm:
        return Norm(name, sizes.width, epsilon, offset=1.0)

    before = "pre_feedforward_layernorm" if has_after else "post_attention_layernorm"
    return Blueprint(
        family=settings.family,
        vocabulary=vocabulary,
        width=sizes.width,
        embedding="model.embed_tokens",
        embedding_scale=sizes.width**0.5,
        layers=tuple(
            Layer(
                prefix=f"model.layers.{number}.",
                attention=attention,
                feed_forward=feed_forward,
                attention_norm=norm("input_layernorm"),
                feed_forward_norm=norm(before),
                after_attention=norm("post_attention_layernorm") if has_after else None,
                after_feed_forward=norm("post_feedforward_layernorm") if has_after else None,
            )
            for number, attention in enumerate(attentions)
        ),
        final_norm=norm("model.norm"),
        head=Linear("lm_head", sizes.width, vocabulary),
        is_tied=settings.holds("tie_word_embeddings", True),
        softcap=softcap,
        unused=UNUSED,
    )
