"""Phi-3, 3.5 and 4: joint projections, part of a head turned, frequencies for long texts.

Source: transformers 5.23, `modeling_phi3.py`, `configuration_phi3.py`.
"""

from __future__ import annotations

from convkit.converters.decoder_graph.blueprint import Attention, Blueprint, FeedForward, Linear
from convkit.converters.decoder_graph.families.llama import decoder
from convkit.converters.decoder_graph.families.sizes import sizes_of, window_of
from convkit.converters.decoder_graph.frequencies import rotary
from convkit.converters.decoder_graph.settings import Settings


def phi3(settings: Settings) -> Blueprint:
    """Phi-3 and what is built like it."""
    sizes = sizes_of(settings, width=3072, layers=32, heads=32)
    rows = (sizes.heads + 2 * sizes.kv_heads) * sizes.head
    attention = Attention(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        size=sizes.head,
        scale=sizes.head**-0.5,
        projections=(Linear("self_attn.qkv_proj", sizes.width, rows),),
        output=Linear("self_attn.o_proj", sizes.heads * sizes.head, sizes.width),
        rotary=rotary(
            settings,
            sizes.head,
            context=4096,
            share=1.0,
            original=4096,
            renamed={"su": "longrope", "yarn": "longrope"},
        ),
        window=window_of(settings, None),
    )
    inner = settings.number("intermediate_size", default=8192)
    feed_forward = FeedForward(
        activation=str(settings.get("hidden_act", "silu")),
        up=Linear("mlp.gate_up_proj", sizes.width, 2 * inner),
        down=Linear("mlp.down_proj", inner, sizes.width),
        is_joint=True,
    )
    layers = [(attention, feed_forward)] * sizes.layers
    return decoder(settings, sizes, layers, vocabulary=32064, epsilon=1e-5)
