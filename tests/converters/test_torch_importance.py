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


def test_what_enters_is_what_transformers_computes_with() -> None:
    network = _network("llama")
    found = _measured(network).entries
    layer = network.model.layers[0]
    sums: dict[str, Any] = {"blk.0.attn_q.weight": 0, "blk.0.ffn_down.weight": 0}
    with torch.inference_mode():
        for piece in PIECES:
            seen = network(torch.tensor([piece]), output_hidden_states=True, output_attentions=True)
            normed = layer.input_layernorm(seen.hidden_states[0])
            values = layer.self_attn.v_proj(normed).view(1, 64, 2, 16).repeat_interleave(2, dim=2)
            mixed = (seen.attentions[0] @ values.transpose(1, 2)).transpose(1, 2).reshape(1, 64, 64)
            middle = seen.hidden_states[0] + layer.self_attn.o_proj(mixed)
            entering = layer.post_attention_layernorm(middle)
            gate, up = layer.mlp.gate_proj(entering), layer.mlp.up_proj(entering)
            down = torch.nn.functional.silu(gate) * up
            for name, inputs in zip(sums, (normed, down), strict=True):
                sums[name] = sums[name] + inputs[0].double().square().sum(0)
    for name, expected in sums.items():
        means = found[name].means[0]
        np.testing.assert_allclose(means, expected / (3 * 64), rtol=1e-5)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_are_counted_as_the_router_chooses_them(kind: str) -> None:
    network = _network(kind)
    found = _measured(network).entries
    with torch.inference_mode():
        seen = [network(torch.tensor([piece]), output_router_logits=True) for piece in PIECES]
    for layer in range(2):
        scores = torch.cat([one.router_logits[layer] for one in seen])
        chosen = scores.topk(2).indices.reshape(-1).bincount(minlength=scores.shape[1])
        for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            assert found[f"blk.{layer}.{name}.weight"].counts.tolist() == chosen.tolist()


def test_an_expert_that_no_token_chooses_weighs_its_columns_alike() -> None:
    network = _network("qwen3_moe")
    with torch.no_grad():
        # All tokens share a large number, by which the router leaves the last expert out.
        network.model.embed_tokens.weight[:, 0] = 50
        for layer in network.model.layers:
            layer.post_attention_layernorm.weight[0] = 1
            layer.mlp.gate.weight[-1, 0] = -100
    inputs = _measured(network).entries["blk.0.ffn_down_exps.weight"]
    assert inputs.counts[-1] == 0
    assert inputs.counts.sum() == 2 * 3 * 64
    assert (inputs.means[-1] == 1).all()


def test_numbers_that_overflow_in_the_network_are_told() -> None:
    network = _network("llama")
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight.fill_(1e38)
    with pytest.raises(ModelError, match=r"enters 'blk\.1\.ffn_down\.weight' is not finite"):
        _measured(network)


def test_a_network_without_the_weights_of_its_family_is_refused() -> None:
    network = _network("llama")
    config = Config(_network("qwen3").config.to_dict())
    shapes = {"blk.1.attn_q.weight": (64, 64), "blk.2.attn_q.weight": (64, 64)}
    network.model.layers = network.model.layers[:1]
    with pytest.raises(UnsupportedError, match=r"no 'model\.layers\.1\.self_attn\.q_proj"):
        measured(network, PIECES, family_of(config), config, shapes, _quiet)


def test_hooks_are_gone_afterwards() -> None:
    network = _network("mixtral")
    _measured(network)
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return Codec(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_pieces_begin_as_a_text_does(codec: Codec, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(SAMPLE_TEXT, encoding="utf-8")
    pieces = pieces_of(codec, text, 64)
    tokens = [*codec.beginning, *codec.encode(SAMPLE_TEXT)]
    assert codec.beginning
    assert len(pieces) == len(tokens) // 64
    for number, piece in enumerate(pieces):
        assert piece == [*codec.beginning, *tokens[64 * number + 1 : 64 * number + 64]]


def test_pieces_have_512_tokens_where_the_model_takes_them(codec: Codec, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(SAMPLE_TEXT * 8, encoding="utf-8")
    assert {len(piece) for piece in pieces_of(codec, text, 4096)} == {512}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"Two words.", "too short to measure importance on: it has 9 tokens"),
        (b"", "too short"),
        (b"\xff\xfe", "cannot be read as a text"),
    ],
)
def test_what_is_no_text_is_told(content: bytes, reason: str, codec: Codec, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    with pytest.raises(SamplesError, match=reason):
        pieces_of(codec, text, 64)
