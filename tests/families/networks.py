"""Tiny seeded networks of every family, in the variants that differ on the way to GGUF."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

_SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ROUNDING = 1e-7
"""KL that sums in another order make, with room for text that is far from what was seen before."""
HALF_GELU = 1e-5
"""KL of networks whose gelu llama.cpp looks up in a table of half precision."""


@dataclass(frozen=True)
class Network:
    """A network to be built.

    Attributes:
        name: of the variant.
        kind: `model_type`.
        settings: what its configuration says besides sizes.
        cls: transformers' class; "" for the causal language model.
        limit: of the mean KL against llama.cpp.
        seed: of the text, which has no two tokens as likely as half a gelu cannot tell apart.
    """

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    cls: str = ""
    limit: float = ROUNDING
    seed: int = 1

    def build(self) -> Any:
        """The network, with weights that make logits differ."""
        import transformers

        torch.manual_seed(0)
        config = transformers.CONFIG_MAPPING[self.kind](**_SIZES | dict(self.settings))
        config._attn_implementation = "eager"
        if self.cls:
            network = getattr(transformers, self.cls)(config)
        else:
            network = transformers.AutoModelForCausalLM.from_config(config)
        _sharpen(network.eval())
        return network

    def ids(self) -> torch.Tensor:
        """A text of 256 tokens."""
        return torch.randint(3, 128, (256,), generator=torch.manual_seed(self.seed))


def _sharpen(network: Any) -> None:
    """Draws weights so large that logits differ, and norms and biases that are not 1 and 0.

    Where the embedding is the output matrix as well, it is small and the last norm large:
    otherwise each token would foretell itself, whatever happens in the layers. Norms are multiples
    of 1/256, so that 1 can be added in float32 without loss.
    """
    is_tied = network.config.get_text_config().tie_word_embeddings
    with torch.no_grad():
        for name, weight in network.named_parameters():
            drawn = torch.randn(weight.shape)
            if name.endswith("bias"):
                weight.copy_(0.2 * drawn)
            elif weight.ndim == 1:
                usual = 0.0 if float(weight.abs().max()) == 0 else 1.0
                is_last = name in ("model.norm.weight", "transformer.ln_f.weight")
                weight.copy_(usual + (7 if is_last and is_tied else 0) + (51 * drawn).round() / 256)
            elif any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
                weight.copy_((0.06 if is_tied else 0.5) * drawn)
            else:
                weight.copy_(drawn / weight.shape[-1] ** 0.5)


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    """Rotary positions of one kind."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **settings}}


def factors(count: int, seed: int) -> list[float]:
    """Numbers that longrope divides frequencies by."""
    drawn = random.Random(seed)
    return [round(1 + 2 * drawn.random(), 4) for _ in range(count)]


_LONG = {"long_factor": factors(8, 1), "short_factor": factors(8, 2)}
_LONG_PART = {"long_factor": factors(6, 1), "short_factor": factors(6, 2)}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 40}
_STRETCHED = {"factor": 4.0, "original_max_position_embeddings": 128}
_FULL, _SLIDING = "full_attention", ["sliding_attention"]
_BASES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}

NETWORKS = (
    Network("llama with biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Network("llama tied, llama3", "llama", {"tie_word_embeddings": True, "head_dim": 32, **rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=128)}),
    Network("mixtral", "mixtral", {"num_local_experts": 4}),
    Network("gemma", "gemma", {"head_dim": 32, "num_key_value_heads": 1}, limit=HALF_GELU, seed=8),
    Network("gemma2", "gemma2", _GEMMA, limit=HALF_GELU, seed=5),
    Network("gemma3", "gemma3_text", {**_GEMMA, "num_hidden_layers": 7}, limit=HALF_GELU, seed=10),
    Network("qwen2 tied, yarn", "qwen2",
            {"tie_word_embeddings": True, **rope("yarn", **_STRETCHED)}),
    Network("qwen3", "qwen3", {"head_dim": 32}),
    Network("qwen2_moe", "qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": 64}),
    Network("qwen3_moe", "qwen3_moe", {**_EXPERTS, "norm_topk_prob": True, "head_dim": 32}),
    Network("phi3 longrope, in part, beyond the context", "phi3",
            {"original_max_position_embeddings": 128,
             **rope("longrope", partial_rotary_factor=0.75, **_LONG_PART)}),
    Network("gpt2", "gpt2", {"n_inner": 96}, limit=HALF_GELU, seed=4),
    Network("falcon 7B", "falcon", limit=HALF_GELU, seed=11),
    Network("falcon 40B", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2},
            limit=HALF_GELU, seed=3),
    Network("stablelm", "stablelm", {"use_qkv_bias": True}),
    Network("bert", "bert", cls="BertModel", limit=HALF_GELU),
)  # fmt: skip
"""One of each family, or two."""

FURTHER_NETWORKS = (
    Network("llama, wide heads", "llama", {"head_dim": 32}),
    Network("llama linear", "llama", rope("linear", factor=4.0)),
    Network("llama yarn", "llama", rope(
        "yarn", **_STRETCHED, attention_factor=1.3)),
    Network("llama yarn, mscale", "llama",
            rope("yarn", **_STRETCHED, mscale=1.0, mscale_all_dim=0.5)),
    Network("llama longrope", "llama",
            rope("longrope", **_LONG, original_max_position_embeddings=128, factor=3.0)),
    Network("mistral", "mistral", {"sliding_window": None}),
    Network("mixtral, three of eight", "mixtral",
            {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 32}),
    Network("gemma linear", "gemma", {"head_dim": 32, **rope("linear", factor=2.0)},
            limit=HALF_GELU, seed=2),
    Network("gemma2, two of three slide", "gemma2",
            {**_GEMMA, "num_hidden_layers": 4, "layer_types": [*_SLIDING * 2, _FULL, *_SLIDING]},
            limit=HALF_GELU, seed=7),
    Network("gemma2 yarn", "gemma2", {**_GEMMA, **rope("yarn", **_STRETCHED)},
            limit=HALF_GELU, seed=10),
    Network("gemma3, capped, bases", "gemma3_text",
            {**_GEMMA, "layer_types": [*_SLIDING, _FULL],
             "final_logit_softcapping": 20.0, "rope_parameters": _BASES}, limit=HALF_GELU, seed=5),
    Network("gemma3, no layer slides", "gemma3_text",
            {**_GEMMA, "layer_types": [_FULL] * 2}, limit=HALF_GELU, seed=4),
    Network("qwen3 yarn", "qwen3", {"head_dim": 32, **rope("yarn", **_STRETCHED)}),
    Network("qwen2_moe tied, without biases", "qwen2_moe",
            {**_EXPERTS, "shared_expert_intermediate_size": 64, "qkv_bias": False,
             "tie_word_embeddings": True}),
    Network("phi3", "phi3", {"tie_word_embeddings": True}),
    Network("phi3 longrope, within the context", "phi3",
            {"original_max_position_embeddings": 256, **rope("longrope", **_LONG)}),
    Network("phi3 longrope, scaled attention", "phi3",
            {"original_max_position_embeddings": 128,
             **rope("longrope", attention_factor=1.3, **_LONG)}),
    Network("gpt2 untied", "gpt2", {"tie_word_embeddings": False}, limit=HALF_GELU, seed=6),
    Network("falcon 11B", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False}, limit=HALF_GELU, seed=9),
    Network("falcon, a key for each head", "falcon", {"multi_query": False},
            limit=HALF_GELU, seed=6),
    Network("stablelm 12B", "stablelm", {"use_parallel_residual": True, "qk_layernorm": True,
            "use_qkv_bias": True, "tie_word_embeddings": True}),
    Network("stablelm yarn", "stablelm",
            rope("yarn", **_STRETCHED, partial_rotary_factor=0.5)),
    Network("bert with tanh", "bert", {"hidden_act": "gelu_new"}, cls="BertModel",
            limit=HALF_GELU),
)  # fmt: skip
"""What else the families can be."""
