"""Tiny seeded language models of every family, whose every option shows in their logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.checkpoint.folder import open_folder
from convkit.converters.decoder_graph.build import build
from convkit.converters.decoder_graph.families import blueprint

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

VOCABULARY = 99
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0,
}  # fmt: skip
_FALCON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def _rope(kind: str, **numbers: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **numbers}}


MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_COMMON}),
    "llama-3.1": ("Llama", {
        **_COMMON, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
        **_rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=16),
    }),
    "llama-linear": ("Llama", {**_COMMON, **_rope("linear", factor=4.0)}),
    "llama-dynamic": ("Llama", {
        **_COMMON, "max_position_embeddings": 8, **_rope("dynamic", factor=4.0),
    }),
    "llama-yarn": ("Llama", {
        **_COMMON, **_rope("yarn", factor=4.0, original_max_position_embeddings=16),
    }),
    "mistral": ("Mistral", {**_COMMON, "sliding_window": 5, "head_dim": 12}),
    "mixtral": ("Mixtral", {**_COMMON, "num_local_experts": 5}),
    "gemma": ("Gemma", {**_COMMON, "head_dim": 16}),
    "gemma2": ("Gemma2", {
        **_COMMON, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
    }),
    "gemma3": ("Gemma3Text", {
        **_COMMON, "num_hidden_layers": 3, "head_dim": 16, "sliding_window": 5,
        "sliding_window_pattern": 3, "query_pre_attn_scalar": 24,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }),
    "qwen2": ("Qwen2", {**_COMMON}),
    "qwen2-sliding": ("Qwen2", {
        **_COMMON, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
    }),
    "qwen2-moe": ("Qwen2Moe", {
        **_COMMON, **_EXPERTS, "shared_expert_intermediate_size": 40,
    }),
    "qwen3": ("Qwen3", {**_COMMON, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-moe": ("Qwen3Moe", {
        **_COMMON, **_EXPERTS, "head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [0],
    }),
    "phi3": ("Phi3", {**_COMMON, **_rope("default", partial_rotary_factor=0.5)}),
    "phi3-long": ("Phi3", {
        **_COMMON, "original_max_position_embeddings": 8,
        **_rope("longrope", short_factor=[1.0, 1.1, 1.2], long_factor=[1.5, 2.0, 3.0],
                partial_rotary_factor=0.75),
    }),
    "gpt2": ("GPT2", {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "scale_attn_by_inverse_layer_idx": True,
    }),
    "falcon": ("Falcon", {**_FALCON}),
    "falcon-new": ("Falcon", {
        **_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True, "bias": True,
    }),
    "falcon-sequential": ("Falcon", {
        **_FALCON, "multi_query": False, "parallel_attn": False, "tie_word_embeddings": False,
    }),
    "stablelm": ("StableLm", {**_COMMON, "hidden_size": 64, "use_qkv_bias": True}),
    "stablelm-parallel": ("StableLm", {
        **_COMMON, "hidden_size": 64, "qk_layernorm": True, "use_parallel_residual": True,
    }),
}  # fmt: skip
"""Name -> configuration class of transformers, and what it is made with."""

FORGETTING = ("llama-dynamic", "phi3-long")
"""Models whose frequencies follow the length of a text: what is in the cache is not turned again,
neither in transformers."""


def save(name: str, path: Path, dtype: Any = torch.float32) -> Any:
    """Saves a model with weights wide enough for attention to matter; gives the network."""
    kind, options = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**options)
    network = transformers.AutoModelForCausalLM.from_config(config)
    for label, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.15 if parameter.ndim > 1 else 0.3)
        if parameter.ndim == 1 and ("norm" in label or "ln_" in label):
            parameter.data += 1
    network.to(dtype).save_pretrained(path)
    return load(path)


def load(path: Path) -> Any:
    """The network of a folder in its own dtype."""
    transformers.logging.set_verbosity_error()
    network = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    return network.eval()


def convert(
    path: Path, out: Path, changes: Mapping[str, Any] | None = None, **options: Any
) -> Path:
    """Writes the graph of a folder; `changes` to its configuration are for showing differences."""
    with open_folder(path) as checkpoint:
        config = {**checkpoint.config, **(changes or {})}
        built = build(blueprint(config), checkpoint.tensors, config, **options)
        built.write(out)
    return out


@dataclass(frozen=True)
class Text:
    """Tokens of a few rows, with what is padding and where they stand."""

    ids: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any]
    positions: np.ndarray[Any, Any]

    @property
    def is_text(self) -> np.ndarray[Any, Any]:
        """Where there is no padding."""
        return self.mask.astype(bool)

    def part(self, begin: int, end: int) -> Text:
        """Some of the tokens; the mask reaches back to the beginning."""
        return Text(self.ids[:, begin:end], self.mask[:, :end], self.positions[:, begin:end])


def text(batch: int, length: int, padding: str = "") -> Text:
    """Seeded rows; all but the first are padded on the `left` or `right`, each another length."""
    ids = np.random.default_rng(batch * length).integers(1, VOCABULARY, (batch, length))
    mask = np.ones_like(ids)
    for row in range(1, batch if padding else 1):
        count = min(3 * row + 1, length - 1)
        mask[row, slice(0, count) if padding == "left" else slice(length - count, None)] = 0
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0) if padding == "left" else None
    counted = np.broadcast_to(np.arange(length), ids.shape).copy()
    return Text(ids, mask, counted if positions is None else positions)


def expected(network: Any, text: Text) -> np.ndarray[Any, Any]:
    """Logits of transformers, float32."""
    ids, mask, positions = map(torch.from_numpy, (text.ids, text.mask, text.positions))
    with torch.inference_mode():
        found = network(ids, attention_mask=mask, position_ids=positions, use_cache=False)
    logits: np.ndarray[Any, Any] = found.logits.float().numpy()
    return logits


class Session:
    """ONNX Runtime on a graph with a cache."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 2
        self.runtime = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {argument.name: argument for argument in self.runtime.get_inputs()}
        self.outputs = [argument.name for argument in self.runtime.get_outputs()]

    def run(
        self, text: Text, cache: Mapping[str, np.ndarray[Any, Any]] | None = None
    ) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
        """Logits, float32, and the cache afterwards under the names of inputs."""
        logits, *present = self.runtime.run(None, self.feeds(text, cache))
        past = [name for name in self.inputs if "past" in name]
        return logits.astype(np.float32), dict(zip(past, present, strict=True))

    def feeds(
        self, text: Text, cache: Mapping[str, np.ndarray[Any, Any]] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """All that the graph takes; an empty cache where none is given."""
        feeds = {"input_ids": text.ids, "attention_mask": text.mask}
        if "position_ids" in self.inputs:
            feeds["position_ids"] = text.positions
        batch = len(text.ids)
        past = {name: self._empty(name, batch) for name in self.inputs if "past" in name}
        return {**feeds, **(cache or past)}

    def pieces(self, text: Text, ends: list[int]) -> np.ndarray[Any, Any]:
        """Logits of a text fed in pieces that end there."""
        cache, given = None, []
        for begin, end in zip([0, *ends], ends, strict=False):
            logits, cache = self.run(text.part(begin, end), cache)
            given.append(logits)
        return np.concatenate(given, axis=1)

    def _empty(self, name: str, batch: int) -> np.ndarray[Any, Any]:
        argument = self.inputs[name]
        _, heads, _, size = argument.shape
        kind = np.float16 if argument.type == "tensor(float16)" else np.float32
        return np.zeros((batch, heads, 0, size), kind)


def agreement_db(reference: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]) -> float:
    """Signal to difference in decibel."""
    difference = reference.astype(np.float64) - candidate
    power = np.square(reference, dtype=np.float64).sum()
    return float(10 * np.log10(power / max(np.square(difference).sum(), 1e-30)))


def config_of(path: Path) -> dict[str, Any]:
    """A folder's configuration."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config
