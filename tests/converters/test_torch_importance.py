from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convkit.checkpoint.rows import Held
from convkit.converters.torch_importance import measured, pieces_of
from convkit.errors import ModelError, SamplesError, UnsupportedError
from convkit.families import mapping
from convkit.families.config import Config
from convkit.families.family import family_of
from convkit.ggml.importance import Importance
from convkit.ggml.mixture import is_quantizable
from convkit.ggml.mixture_rules import layer_of
from convkit.ggml.model import GgufModel, Output, write
from convkit.ggml.types import TYPES
from convkit.ggml.values import typed
from convkit.vocabulary.codec import Codec
from convkit.vocabulary.sample_text import SAMPLE_TEXT
from tests.language_models import write_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers makes the networks")

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "qwen2": {},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 48},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {**EXPERTS, "head_dim": 32, "norm_topk_prob": True},
    "phi3": {"pad_token_id": 0},
    "gpt2": {"n_inner": None},
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "bias": False},
    "stablelm": {},
    "bert": {},
}
"""Model type -> what its configuration says besides sizes."""

PIECES = [
    [int(token) for token in row] for row in np.random.default_rng(3).integers(3, 128, (3, 64))
]


def _network(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[kind](**{**SIZES, **FAMILIES[kind], **settings})
    config._attn_implementation = "eager"
    maker = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
    network = maker.from_config(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape) / 8)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if "gelu" in type(child).__name__.lower():
                setattr(module, name, _CoarseGelu())
    return network


class _CoarseGelu(torch.nn.Module):
    """As ggml computes it: the approximation by tanh, from F16 to F16.

    Source: ggml, `src/ggml-cpu/vec.h` (`ggml_vec_gelu_f32`).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()


def _quiet(what: str, done: int, total: int | None, unit: str = "") -> None:
    """Progress that nobody sees."""


def _model(network: Any) -> GgufModel:
    """The network in GGUF, for token ids only."""
    config = Config(network.config.to_dict())
    family = family_of(config)
    tensors = {name: Held(value.numpy()) for name, value in network.state_dict().items()}
    mapped = mapping.to_gguf(family, config, tensors)
    metadata = {
        "general.architecture": family.architecture,
        **family.metadata(config),
        "ARCH.vocab_size": config["vocab_size"],
        "tokenizer.ggml.model": "no_vocab",
    }
    return GgufModel(
        {key.replace("ARCH", family.architecture): typed(v) for key, v in metadata.items()},
        tuple(Output(name, rows, TYPES["F32"]) for name, rows in mapped.tensors.items()),
    )


def _measured(network: Any) -> Importance:
    config = Config(network.config.to_dict())
    shapes = {
        one.name: one.shape
        for one in _model(network).tensors
        if layer_of(one.name) >= 0 and is_quantizable(one)
    }
    return measured(network, PIECES, family_of(config), config, shapes, _quiet)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_enters_each_weight_is_what_enters_it_in_llama_cpp(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp computes for comparison")
    from tests.ggml.llama_inputs import sums_of_inputs

    network = _network(kind)
    write(_model(network), tmp_path / "model.gguf")
    theirs = sums_of_inputs(tmp_path / "model.gguf", PIECES)
    ours = _measured(network)
    assert ours.entries
    assert ours.entries.keys() <= theirs.keys()
    assert all("inp" in name for name in theirs.keys() - ours.entries.keys())  # routers, gates
    for name, inputs in ours.entries.items():
        sums, counts = theirs[name]
        assert inputs.counts.tolist() == counts.tolist(), name
        np.testing.assert_allclose(
            inputs.sums, sums, rtol=5e-4, atol=1e-5 * sums.max(), err_msg=name
        )
