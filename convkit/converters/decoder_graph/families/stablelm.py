"""StableLM: LayerNorm, a quarter of each head turned, maybe attention beside feed-forward.

Source: transformers 5.23, `modeling_stablelm.py`, `configuration_stablelm.py`.
"""

from __future__ import annotations

from dataclasses import replace

from convkit.converters.decoder_graph.blueprint import Blueprint, Norm
from convkit.converters.decoder_graph.families.llama import attention_of, decoder, gated
from convkit.converters.decoder_graph.families.sizes import sizes_of
from convkit.converters.decoder_graph.frequencies import rotary
from convkit.converters.decoder_graph.settings import Settings


def stablelm(settings: Settings) -> Blueprint:
    """StableLM 2, 3B and 12B."""
    sizes = sizes_of(settings, width=2560, layers=32, heads=32, kv_heads=32)
    if sizes.head * sizes.heads != sizes.width:
        raise settings.refusal(f"head_dim = {sizes.head}", "heads have to fill the width")
    epsilon = settings.real("layer_norm_eps", 1e-5)
    is_parallel = settings.holds("use_parallel_residual")
    attention = attention_of(
        sizes,
        rotary(settings, sizes.head, context=4096, share=0.25),
        biases=(settings.holds("use_qkv_bias"), False),
    )
    if settings.holds("qk_layernorm"):
        query_norm, key_norm = (
            Norm(f"self_attn.{name}_layernorm", sizes.head, epsilon, True, head_count=count)
            for name, count in (("q", sizes.heads), ("k", sizes.kv_heads))
        )
        attention = replace(attention, query_norm=query_norm, key_norm=key_norm)
    feed_forward = gated(settings, sizes.width, settings.number("intermediate_size", default=6912))
    layers = [(attention, feed_forward)] * sizes.layers
    found = decoder(settings, sizes, layers, vocabulary=50304)

    def centered(norm: Norm) -> Norm:
        return replace(norm, epsilon=epsilon, is_centered=True, has_bias=True)

    return replace(
        found,
        layers=tuple(
            replace(
                layer,
                attention_norm=centered(layer.attention_norm),
                feed_forward_norm=None
                if is_parallel or layer.feed_forward_norm is None
                else centered(layer.feed_forward_norm),
                is_parallel=is_parallel,
            )
            for layer in found.layers
        ),
        final_norm=centered(found.final_norm),
    )
