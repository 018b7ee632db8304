"""Llama, SmolLM, TinyLlama, Mistral, Qwen 2 and 3: RMSNorm, rotary positions, gated feed-forward.

Source: transformers 5.23, `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py`,
`modeling_qwen3.py` and the configurations beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

from convkit.converters.decoder_graph.blueprint import (
    Attention,
    Blueprint,
    Experts,
    FeedForward,
    Layer,
    Linear,
    Norm,
    Rotary,
)
from convkit.converters.decoder_graph.families.sizes import Sizes, layer_kinds, sizes_of, window_of
from convkit.converters.decoder_graph.frequencies import rotary
from convkit.converters.decoder_graph.settings import Settings

UNUSED = ("*.rotary_emb.inv_freq",)
"""Tensors that older versions saved and newer ones compute."""


def llama(settings: Settings) -> Blueprint:
    """Llama 1 to 3, and what is built like it."""
    sizes = sizes_of(settings, width=4096, layers=32, heads=32)
    has_bias = settings.holds("attention_bias")
    attention = attention_of(
        sizes, rotary(settings, sizes.head, context=2048), biases=(has_bias, has_bias)
    )
    inner = settings.number("intermediate_size", default=11008)
    feed_forward = gated(settings, sizes.width, inner, has_bias=settings.holds("mlp_bias"))
    return decoder(settings, sizes, [(attention, feed_forward)] * sizes.layers, vocabulary=32000)


def mistral(settings: Settings) -> Blueprint:
    """Mistral: a window on every layer."""
    sizes = sizes_of(settings, width=4096, layers=32, heads=32, kv_heads=8)
    attention = attention_of(
        sizes, rotary(settings, sizes.head, context=131072), window=window_of(settings, 4096)
    )
    feed_forward = gated(settings, sizes.width, settings.number("intermediate_size", default=14336))
    return decoder(settings, sizes, [(attention, feed_forward)] * sizes.layers, vocabulary=32000)


def qwen2(settings: Settings) -> Blueprint:
    """Qwen 2 and 2.5: biases on queries, keys and values."""
    sizes = sizes_of(settings, width=4096, layers=32, heads=32, kv_heads=32)
    return _qwen(settings, sizes, biases=(True, False), has_norms=False)


def qwen3(settings: Settings) -> Blueprint:
    """Qwen 3: norms on queries and keys."""
    sizes = sizes_of(settings, width=4096, layers=32, heads=32, kv_heads=32, head=128)
    has_bias = settings.holds("attention_bias")
    return _qwen(settings, sizes, biases=(has_bias, has_bias), has_norms=True)


def _qwen(
    settings: Settings, sizes: Sizes, *, biases: tuple[bool, bool], has_norms: bool
) -> Blueprint:
    window = window_of(settings, 4096, is_on=settings.holds("use_sliding_window"))
    first = settings.get("max_window_layers", 28)
    windows = layer_kinds(settings, [window and i >= first for i in range(sizes.layers)], window)
    by_window = {
        width: attention_of(
            sizes,
            rotary(settings, sizes.head, context=32768),
            biases=biases,
            norm_epsilon=settings.real("rms_norm_eps", 1e-6) if has_norms else None,
            window=width,
        )
        for width in dict.fromkeys(windows)
    }
    feed_forward = gated(settings, sizes.width, settings.number("intermediate_size", default=22016))
    layers = [(by_window[width], feed_forward) for width in windows]
    return decoder(settings, sizes, layers, vocabulary=151936)


def attention_of(
    sizes: Sizes,
    rotary: Rotary,
    *,
    biases: tuple[bool, bool] = (False, False),
    norm_epsilon: float | None = None,
    norm_offset: float = 0.0,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Attention:
    """Attention with separate projections under `self_attn`.

    Args:
        sizes: of the network.
        rotary: positions.
        biases: of queries, keys and values; and of the output.
        norm_epsilon: of norms on each head of queries and keys; None where there are none.
        norm_offset: of those norms.
        window: as in `Attention`.
        scale: of scores; that of the head's width where it is None.
        softcap: as in `Attention`.
    """
    query_norm, key_norm = (
        None
        if norm_epsilon is None
        else Norm(f"self_attn.{name}_norm", sizes.head, norm_epsilon, offset=norm_offset)
        for name in "qk"
    )
    return Attention(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        size=sizes.head,
        scale=sizes.head**-0.5 if scale is None else scale,
        projections=tuple(
            Linear(f"self_attn.{name}_proj", sizes.width, sizes.head * count, biases[0])
            for name, count in (("q", sizes.heads), ("k", sizes.kv_heads), ("v", sizes.kv_heads))
        ),
        output=Linear("self_attn.o_proj", sizes.head * sizes.heads, sizes.width, biases[1]),
        rotary=rotary,
        window=window,
        softcap=softcap,
        query_norm=query_norm,
        key_norm=key_norm,
    )


def gated(
    settings: Settings, width: int, inner: int, *, name: str = "mlp", has_bias: bool = False
) -> FeedForward:
    """A gated feed-forward with projections called gate, up and down."""
    return FeedForward(
        activation=str(settings.get("hidden_act", "silu")),
        up=Linear(f"{name}.up_proj", width, inner, has_bias),
        down=Linear(f"{name}.down_proj", inner, width, has_bias),
        gate=Linear(f"{name}.gate_proj", width, inner, has_bias),
    )


def decoder(
    settings: Settings,
    sizes: Sizes,
    layers: Sequence[tuple[Attention, FeedForward | Experts]],
    *,
    vocabulary: int,
    epsilon: float = 1e-6,
) -> Blueprint:
    """Layers with a norm before each half, under `model`, as most families name them."""
    epsilon = settings.real("rms_norm_eps", epsilon)
    vocabulary = settings.number("vocab_size", default=vocabulary)
    return Blueprint(
        family=settings.family,
        vocabulary=vocabulary,
        width=sizes.width,
        embedding="model.embed_tokens",
        layers=tuple(
            Layer(
                prefix=f"model.layers.{number}.",
                attention=attention,
                feed_forward=feed_forward,
                attention_norm=Norm("input_layernorm", sizes.width, epsilon),
                feed_forward_norm=Norm("post_attention_layernorm", sizes.width, epsilon),
            )
            for number, (attention, feed_forward) in enumerate(layers)
        ),
        final_norm=Norm("model.norm", sizes.width, epsilon),
        head=Linear("lm_head", sizes.width, vocabulary),
        is_tied=settings.holds("tie_word_embeddings"),
        unused=UNUSED,
    )
