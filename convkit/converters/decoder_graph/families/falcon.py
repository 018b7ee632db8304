"""Falcon: queries, keys and values interleaved in one projection, attention beside feed-forward.

Source: transformers 5.23, `modeling_falcon.py`, `configuration_falcon.py`.
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
from convkit.converters.decoder_graph.families.llama import UNUSED
from convkit.converters.decoder_graph.frequencies import rotary
from convkit.converters.decoder_graph.settings import Settings


def falcon(settings: Settings) -> Blueprint:
    """Falcon with rotary positions, of the older and the newer architecture."""
    if settings.holds("alibi"):
        raise settings.refusal("alibi = true", "it has no rotary positions")
    width = settings.number("n_embed", "hidden_size", default=4544)
    count = settings.number("num_hidden_layers", default=32)
    vocabulary = settings.number("vocab_size", default=65024)
    has_bias = settings.holds("bias")
    inner = settings.number("ffn_hidden_size", default=4 * width)
    attention = _attention(settings, width, has_bias)
    feed_forward = FeedForward(
        activation=str(settings.get("activation", "gelu")),
        up=Linear("mlp.dense_h_to_4h", width, inner, has_bias),
        down=Linear("mlp.dense_4h_to_h", inner, width, has_bias),
    )
    first, second, is_parallel = _norms(settings)

    def norm(name: str) -> Norm:
        epsilon = settings.real("layer_norm_epsilon", 1e-5)
        return Norm(name, width, epsilon, is_centered=True, has_bias=True)

    return Blueprint(
        family=settings.family,
        vocabulary=vocabulary,
        width=width,
        embedding="transformer.word_embeddings",
        layers=tuple(
            Layer(
                prefix=f"transformer.h.{number}.",
                attention=attention,
                feed_forward=feed_forward,
                attention_norm=norm(first),
                feed_forward_norm=norm(second) if second else None,
                is_parallel=is_parallel,
            )
            for number in range(count)
        ),
        final_norm=norm("transformer.ln_f"),
        head=Linear("lm_head", width, vocabulary),
        is_tied=settings.holds("tie_word_embeddings", True),
        unused=UNUSED,
    )


def _attention(settings: Settings, width: int, has_bias: bool) -> Attention:
    heads = settings.number("num_attention_heads", default=71)
    kv_heads = settings.number("num_kv_heads", default=heads)
    is_multi_query = settings.holds("multi_query", True)
    if is_multi_query and not settings.holds("new_decoder_architecture"):
        kv_heads = 1
    if width % heads or heads % kv_heads:
        raise settings.refusal(
            f"{heads} heads on {kv_heads} heads of keys and a width of {width}",
            "they do not divide",
        )
    size = width // heads
    joint = Linear("self_attention.query_key_value", width, (heads + 2 * kv_heads) * size, has_bias)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        size=size,
        scale=size**-0.5,
        projections=(joint,),
        output=Linear("self_attention.dense", width, width, has_bias),
        is_interleaved=True,
        rotary=rotary(settings, size, context=2048),
    )


def _norms(settings: Settings) -> tuple[str, str, bool]:
    """Names of the norms before attention and feed-forward ("" where they share one).

    And whether attention and feed-forward stand side by side.
    """
    is_new = settings.holds("new_decoder_architecture")
    is_parallel = settings.holds("parallel_attn", True)
    norm_count = settings.get("num_ln_in_parallel_attn", 2 if is_new else None)
    if not is_parallel and not is_new:
        return "input_layernorm", "post_attention_layernorm", False
    if is_parallel and is_new and norm_count == 2:
        return "ln_attn", "ln_mlp", True
    if is_parallel and norm_count == (1 if is_new else None):
        return "input_layernorm", "", True
    raise settings.refusal(
        f"num_ln_in_parallel_attn = {norm_count}, parallel_attn = {is_parallel} and "
        f"new_decoder_architecture = {is_new}",
        "transformers cannot run it either",
    )
