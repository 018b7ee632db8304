"""Llama 1 to 3, SmolLM, TinyLlama, Mistral and Mixtral: llama.cpp's `llama`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from convkit.checkpoint.rows import Array
from convkit.families import rotary
from convkit.families.changes import SAME, Change, Experts, interleaved
from convkit.families.config import Config
from convkit.families.decoder import config_of, head_sizes, metadata_of
from convkit.families.family import Entry, Family, Source, Stored, entry


def _entries(config: Config) -> Iterator[Entry]:
    hidden, size = config.hidden, config.head_size
    yield entry("token_embd.weight", (None, hidden), "model.embed_tokens.weight")
    yield entry("output_norm.weight", (hidden,), "model.norm.weight")
    if not config.is_tied:
        yield entry("output.weight", (None, hidden), "lm_head.weight")
    for layer in range(config.layers):
        gguf, torch = f"blk.{layer}", f"model.layers.{layer}"
        yield entry(f"{gguf}.attn_norm.weight", (hidden,), f"{torch}.input_layernorm.weight")
        yield entry(
            f"{gguf}.ffn_norm.weight", (hidden,), f"{torch}.post_attention_layernorm.weight"
        )
        queries, keys = config.heads * size, config.kv_heads * size
        projections: tuple[tuple[str, str, int, int, Change], ...] = (
            ("attn_q", "q_proj", queries, hidden, interleaved(config.heads, size)),
            ("attn_k", "k_proj", keys, hidden, interleaved(config.kv_heads, size)),
            ("attn_v", "v_proj", keys, hidden, SAME),
            ("attn_output", "o_proj", hidden, queries, SAME),
        )
        for there, here, rows, columns, change in projections:
            name = f"{torch}.self_attn.{here}"
            yield entry(f"{gguf}.{there}.weight", (rows, columns), f"{name}.weight", change)
            yield entry(f"{gguf}.{there}.bias", (rows,), f"{name}.bias", change, optional=True)
        yield from _experts(config, layer) if config.experts else _feed_forward(config, layer)


def _feed_forward(config: Config, layer: int) -> Iterator[Entry]:
    hidden, inner = config.hidden, config.feed_forward
    parts = (
        ("ffn_gate", "gate_proj", inner, hidden),
        ("ffn_up", "up_proj", inner, hidden),
        ("ffn_down", "down_proj", hidden, inner),
    )
    for there, here, rows, columns in parts:
        gguf, torch = f"blk.{layer}.{there}", f"model.layers.{layer}.mlp.{here}"
        yield entry(f"{gguf}.weight", (rows, columns), f"{torch}.weight")
        yield entry(f"{gguf}.bias", (rows,), f"{torch}.bias", optional=True)


def _experts(config: Config, layer: int) -> Iterator[Entry]:
    hidden, inner, count = config.hidden, config.feed_forward, config.experts
    gguf, torch = f"blk.{layer}", f"model.layers.{layer}.block_sparse_moe"
    yield entry(f"{gguf}.ffn_gate_inp.weight", (count, hidden), f"{torch}.gate.weight")
    parts = (
        ("ffn_gate_exps", "w1", inner, hidden),
        ("ffn_down_exps", "w2", hidden, inner),
        ("ffn_up_exps", "w3", inner, hidden),
    )
    for there, here, rows, columns in parts:
        names = tuple(f"{torch}.experts.{i}.{here}.weight" for i in range(count))
        shape = (count, rows, columns)
        yield Entry(f"{gguf}.{there}.weight", shape, (Source(names, Experts()),))


def _metadata(config: Config) -> dict[str, Any]:
    return {
        **metadata_of(config),
        "ARCH.attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "ARCH.vocab_size": int(config["vocab_size"]),
        "ARCH.rope.dimension_count": config.head_size,
        **rotary.metadata_of(config.rope(), config.context),
    }


def _derived(config: Config) -> dict[str, Array]:
    return rotary.tensors_of(config, config.head_size)


def _config(stored: Stored) -> dict[str, Any]:
    get, shapes = stored.get, stored.shapes
    experts = int(get("ARCH.expert_count", 0))
    rotated = int(get("ARCH.rope.dimension_count", head_sizes(stored)[0]))
    found = {
        "model_type": "mixtral" if experts else "llama",
        "architectures": ["MixtralForCausalLM" if experts else "LlamaForCausalLM"],
        **config_of(stored),
        "hidden_act": "silu",
        "rope_parameters": rotary.rope_of(get, stored.small, rotated),
    }
    if experts:
        return {
            **found,
            "num_local_experts": experts,
            "num_experts_per_tok": int(get("ARCH.expert_used_count", 2)),
        }
    return {
        **found,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
    }


FAMILY = Family(
    architecture="llama",
    model_types=("llama", "mistral", "mixtral"),
    classes=("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"),
    entries=_entries,
    metadata=_metadata,
    config=_config,
    demands={"hidden_act": ("silu",), "pretraining_tp": (1,)},
    dropped={r"rotary_emb\.inv_freq$": "computed from the configuration"},
    derived=_derived,
)
