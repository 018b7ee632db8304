"""GPT-2: learned positions, matrices stored the other way around, one projection for all three.

Source: transformers 5.23, `modeling_gpt2.py`, `configuration_gpt2.py`.
"""

from __future__ import annotations

from convkit.converters.decoder_graph.blueprint import (
    Attention,
    Blueprint,
    FeedForward,
    Layer,
    Linear,
    Norm,
)
from convkit.converters.decoder_graph.settings import Settings


def gpt2(settings: Settings) -> Blueprint:
    """GPT-2."""
    width = settings.number("n_embd", "hidden_size", default=768)
    count = settings.number("n_layer", "num_hidden_layers", default=12)
    vocabulary = settings.number("vocab_size", default=50257)
    positions = settings.number("n_positions", "max_position_embeddings", default=1024)
    settings.get("n_ctx")  # what n_positions was called before; nothing reads it
    epsilon = settings.real("layer_norm_epsilon", 1e-5)
    inner = settings.number("n_inner", default=4 * width)
    feed_forward = FeedForward(
        activation=str(settings.get("activation_function", "gelu_new")),
        up=Linear("mlp.c_fc", width, inner, has_bias=True, is_turned=True),
        down=Linear("mlp.c_proj", inner, width, has_bias=True, is_turned=True),
    )

    def norm(name: str) -> Norm:
        return Norm(name, width, epsilon, is_centered=True, has_bias=True)

    return Blueprint(
        family=settings.family,
        vocabulary=vocabulary,
        width=width,
        embedding="transformer.wte",
        positions=("transformer.wpe", positions),
        layers=tuple(
            Layer(
                prefix=f"transformer.h.{number}.",
                attention=_attention(settings, width, number),
                feed_forward=feed_forward,
                attention_norm=norm("ln_1"),
                feed_forward_norm=norm("ln_2"),
            )
            for number in range(count)
        ),
        final_norm=norm("transformer.ln_f"),
        head=Linear("lm_head", width, vocabulary),
        is_tied=settings.holds("tie_word_embeddings", True),
        unused=("*.attn.bias", "*.attn.masked_bias"),  # triangles of a mask
    )


def _attention(settings: Settings, width: int, number: int) -> Attention:
    heads = settings.number("n_head", "num_attention_heads", default=12)
    if width % heads:
        raise settings.refusal(f"{heads} heads on a width of {width}", "it does not divide")
    size = width // heads
    scale = size**-0.5 if settings.holds("scale_attn_weights", True) else 1.0
    if settings.holds("scale_attn_by_inverse_layer_idx"):
        scale /= number + 1
    return Attention(
        heads=heads,
        kv_heads=heads,
        size=size,
        scale=scale,
        projections=(Linear("attn.c_attn", width, 3 * width, has_bias=True, is_turned=True),),
        output=Linear("attn.c_proj", width, width, has_bias=True, is_turned=True),
    )
