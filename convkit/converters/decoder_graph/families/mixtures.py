"""Mixtral, Qwen 2 and 3 with experts.

Source: transformers 5.23, `modeling_mixtral.py`, `modeling_qwen2_moe.py`, `modeling_qwen3_moe.py`
and the configurations beside them; `conversion_mapping.py` for the names in older checkpoints.
"""

from __future__ import annotations

from convkit.converters.decoder_graph.blueprint import (
    Attention,
    Blueprint,
    Experts,
    FeedForward,
    Linear,
)
from convkit.converters.decoder_graph.families.llama import attention_of, decoder, gated
from convkit.converters.decoder_graph.families.sizes import Sizes, layer_kinds, sizes_of, window_of
from convkit.converters.decoder_graph.frequencies import rotary
from convkit.converters.decoder_graph.settings import Settings


def mixtral(settings: Settings) -> Blueprint:
    """Mixtral: experts on every layer, shares that add up to 1."""
    sizes = sizes_of(settings, width=4096, layers=32, heads=32, kv_heads=8)
    turns = rotary(settings, sizes.head, context=131072, theta=1e6)
    attention = attention_of(sizes, turns, window=window_of(settings, None))
    inner = settings.number("intermediate_size", default=14336)
    expert = FeedForward(
        activation=str(settings.get("hidden_act", "silu")),
        up=Linear("block_sparse_moe.experts.{}.w3", sizes.width, inner),
        down=Linear("block_sparse_moe.experts.{}.w2", inner, sizes.width),
        gate=Linear("block_sparse_moe.experts.{}.w1", sizes.width, inner),
    )
    experts = _experts(
        settings, sizes, expert, "block_sparse_moe", count=8, chosen=2, is_normalized=True
    )
    layers: list[tuple[Attention, FeedForward | Experts]]
    layers = [(attention, experts)] * sizes.layers
    return decoder(settings, sizes, layers, vocabulary=32000, epsilon=1e-5)


def qwen2_moe(settings: Settings) -> Blueprint:
    """Qwen 2 with experts, one of which every token visits."""
    sizes = sizes_of(settings, width=2048, layers=24, heads=16, kv_heads=16)
    slides = settings.holds("use_sliding_window")
    window = window_of(settings, 4096, is_on=slides)
    last = settings.get("max_window_layers", 28)
    # Here layers below the bound slide, every other one; in Qwen 2 those above it do.
    kinds = [slides and not i % 2 and i < last for i in range(sizes.layers)]
    windows = layer_kinds(settings, kinds, window)
    turns = rotary(settings, sizes.head, context=32768)
    biases = (settings.holds("qkv_bias", True), False)
    by_window = {
        width: attention_of(sizes, turns, biases=biases, window=width)
        for width in dict.fromkeys(windows)
    }
    shared = gated(
        settings,
        sizes.width,
        settings.number("shared_expert_intermediate_size", default=5632),
        name="mlp.shared_expert",
    )
    feed_forwards = _mixed(settings, sizes, inner=5632, expert=1408, shared=shared)
    layers = [(by_window[width], part) for width, part in zip(windows, feed_forwards, strict=True)]
    return decoder(settings, sizes, layers, vocabulary=151936)


def qwen3_moe(settings: Settings) -> Blueprint:
    """Qwen 3 with experts."""
    sizes = sizes_of(settings, width=2048, layers=24, heads=32, kv_heads=4)
    has_bias = settings.holds("attention_bias")
    window = window_of(settings, 4096, is_on=settings.holds("use_sliding_window"))
    settings.get("max_window_layers")  # here all layers slide, or none
    attention = attention_of(
        sizes,
        rotary(settings, sizes.head, context=32768),
        biases=(has_bias, has_bias),
        norm_epsilon=settings.real("rms_norm_eps", 1e-6),
        window=window,
    )
    feed_forwards = _mixed(settings, sizes, inner=6144, expert=768)
    layers = [(attention, part) for part in feed_forwards]
    return decoder(settings, sizes, layers, vocabulary=151936)


def _mixed(
    settings: Settings, sizes: Sizes, *, inner: int, expert: int, shared: FeedForward | None = None
) -> list[FeedForward | Experts]:
    """Experts on the layers that the configuration says, an ordinary feed-forward on the others."""
    plain = gated(settings, sizes.width, settings.number("intermediate_size", default=inner))
    width = settings.number("moe_intermediate_size", default=expert)
    experts = _experts(
        settings,
        sizes,
        gated(settings, sizes.width, width, name="mlp.experts.{}"),
        "mlp",
        count=60 if shared else 128,
        chosen=4 if shared else 8,
        is_normalized=settings.holds("norm_topk_prob"),
        shared=shared,
    )
    step = settings.number("decoder_sparse_step", default=1)
    dense = settings.get("mlp_only_layers", [])
    return [
        plain if number in dense or (number + 1) % step else experts
        for number in range(sizes.layers)
    ]


def _experts(
    settings: Settings,
    sizes: Sizes,
    expert: FeedForward,
    name: str,
    *,
    count: int,
    chosen: int,
    is_normalized: bool,
    shared: FeedForward | None = None,
) -> Experts:
    count = settings.number("num_local_experts", "num_experts", default=count)
    return Experts(
        count=count,
        chosen=settings.number("num_experts_per_tok", default=chosen),
        router=Linear(f"{name}.gate", sizes.width, count),
        expert=expert,
        stacked=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        is_normalized=is_normalized,
        shared=shared,
        shared_gate=Linear(f"{name}.shared_expert_gate", sizes.width, 1) if shared else None,
    )
