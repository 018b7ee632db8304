from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.checkpoint.rows import Held, Rows
from convkit.errors import ModelError, UnsupportedError
from convkit.families import mapping
from convkit.families.config import Config
from convkit.families.family import family_of, family_of_architecture

_SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 10,
    "max_position_embeddings": 32,
}
_GEMMA = {"head_dim": 4, "query_pre_attn_scalar": 4}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}


def config(kind: str, **changes: Any) -> Config:
    return Config({"model_type": kind, **_SIZES, **changes})


def tensors(of: Config) -> dict[str, Rows]:
    """Zeros in the place of every tensor of a checkpoint whose tensors are stored as in GGUF."""
    return {
        entry.sources[0].names[0]: Held(np.zeros(entry.shape))
        for entry in family_of(of).entries(of)
    }


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": {**_YARN, "truncate": False}}, "truncate"),
        ("llama", {"head_dim": 64, "rope_parameters": {**_YARN, "beta_slow": 0.1}}, "beta_slow"),
        ("qwen2", {"rope_parameters": {**_YARN, "rope_type": "llama3"}}, "rope_type"),
        ("qwen2", {"head_dim": 8}, "head_dim"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
         "use_sliding_window"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("qwen2_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3_moe", {}, "norm_topk_prob"),
        ("qwen3_moe", {"norm_topk_prob": True, "decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("gemma", {"hidden_act": "relu"}, "hidden_act"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"head_dim": 4}, "query_pre_attn_scalar"),
        ("gemma2", {**_GEMMA, "attn_logit_softcapping": None}, "attn_logit_softcapping"),
        ("gemma2", {**_GEMMA, "final_logit_softcapping": None}, "final_logit_softcapping"),
        ("gemma2", {**_GEMMA, "num_hidden_layers": 3, "layer_types":
                    ["full_attention", "sliding_attention", "sliding_attention"]}, "layer_types"),
        ("gemma3_text", {**_GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {**_GEMMA, "rope_parameters": {"full_attention": {}, "sliding_attention":
                         {"rope_type": "linear", "factor": 2.0}}}, "rope_parameters"),
        ("gemma3_text", {**_GEMMA, "rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon", {"parallel_attn": False}, "parallel_attn"),
        ("stablelm", {"hidden_act": "gelu"}, "hidden_act"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
    ],
)  # fmt: skip
def test_what_llama_cpp_cannot_do_is_refused_by_name(
    kind: str, changes: Mapping[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        family_of(config(kind, **changes))
    assert refusal.value.details["option"] == named


def test_an_unknown_model_type_is_told_what_it_is_nearest_to() -> None:
    known = config("llama")
    names = [*tensors(known), "model.layers.0.self_attn.sinks"]
    unknown = config("lama2")
    with pytest.raises(UnsupportedError) as refusal:
        family_of(unknown, names)
    text = str(refusal.value)
    assert "'lama2'" in text
    assert "Nearest: llama" in text
    assert "no place for model.layers.0.self_attn.sinks" in text


def test_another_model_type_is_proposed_only_where_its_tensors_fit() -> None:
    names = list(tensors(config("llama")))
    with pytest.raises(UnsupportedError) as fitting:
        family_of(config("lama2"), names)
    with pytest.raises(UnsupportedError) as foreign:
        family_of(config("lama2"), [*names, "model.layers.0.self_attn.sinks"])
    assert fitting.value.hint == "Did you mean 'llama' in config.json?"
    assert "Did you mean" not in foreign.value.hint


def test_a_head_for_classes_is_refused_by_its_class() -> None:
    with pytest.raises(UnsupportedError, match="LlamaForSequenceClassification is no network"):
        family_of(config("llama", architectures=["LlamaForSequenceClassification"]))


def test_a_missing_tensor_is_named() -> None:
    of = config("llama")
    found = tensors(of)
    del found["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"lacks the tensor 'model.layers.0.mlp.up_proj.weight'"):
        mapping.to_gguf(family_of(of), of, found)


def test_a_tensor_without_a_place_is_named() -> None:
    of = config("llama")
    found = {**tensors(of), "model.layers.0.self_attn.q_proj.bias": Held(np.zeros(8))}
    with pytest.raises(
        UnsupportedError, match=r"no place in GGUF: model.layers.0.self_attn.q_proj"
    ):
        mapping.to_gguf(family_of(of), of, found)


@pytest.mark.parametrize("name", ["mlp.up_proj.weight", "self_attn.k_proj.weight"])
def test_a_tensor_of_the_wrong_shape_is_named(name: str) -> None:
    of = config("llama")
    name = f"model.layers.0.{name}"
    found = {**tensors(of), name: Held(np.zeros((5, 8)))}
    with pytest.raises(ModelError, match=f"Tensor '{name}'") as refusal:
        mapping.to_gguf(family_of(of), of, found)
    assert "By the model's configuration" in str(refusal.value)


def test_an_output_matrix_that_repeats_the_embedding_is_left_out() -> None:
    of = config("llama", tie_word_embeddings=True)
    found = {**tensors(of), "lm_head.weight": Held(np.zeros((10, 8)))}
    mapped = mapping.to_gguf(family_of(of), of, found)
    assert "output.weight" not in mapped.tensors
    assert mapped.dropped == {"lm_head.weight": "it is model.embed_tokens.weight once more"}


def test_an_output_matrix_that_should_repeat_the_embedding_and_does_not_is_refused() -> None:
    of = config("llama", tie_word_embeddings=True)
    found = {**tensors(of), "lm_head.weight": Held(np.ones((10, 8)))}
    with pytest.raises(ModelError, match=r"'lm_head.weight' differs") as refusal:
        mapping.to_gguf(family_of(of), of, found)
    assert '"tie_word_embeddings": false' in refusal.value.hint


def _stored(of: Config, **changes: Any) -> tuple[Any, dict[str, Rows], dict[str, Any]]:
    """A family, tensors and metadata of a GGUF file."""
    family = family_of(of)
    mapped = mapping.to_gguf(family, of, tensors(of))
    return family, dict(mapped.tensors), {**family.metadata(of), **changes}


def test_an_unknown_architecture_is_told_what_is_known() -> None:
    with pytest.raises(UnsupportedError, match="'qwen3next' has no way back") as refusal:
        family_of_architecture("qwen3next")
    assert "Nearest: qwen3" in str(refusal.value)


def test_an_unknown_architecture_is_told_what_it_lacks() -> None:
    _, found, metadata = _stored(config("qwen3"))
    found["blk.0.ssm_conv1d.weight"] = Held(np.zeros((2, 2), np.float32))
    del found["blk.0.attn_q_norm.weight"]

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(key, default)

    with pytest.raises(UnsupportedError, match=r"m\.gguf is of GGUF .*'qwen3next'") as refusal:
        family_of_architecture("qwen3next", lambda: mapping.stored_of(get, found), Path("m.gguf"))
    text = str(refusal.value)
    assert "Nearest: qwen3 (qwen3)" in text
    assert "no place for blk.0.ssm_conv1d.weight" in text
    assert "needs blk.0.attn_q_norm.weight" in text
    assert "convkit convert m.gguf --to gguf --q4" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 3}, r"The weights have 1 layers; config.json says 3"),
        ({"num_hidden_layers": None}, r"does not say how many .* stands for 32"),
        ({"num_hidden_layers": -2}, r"num_hidden_layers = -2, which is no positive"),
        ({"num_attention_heads": 0, "head_dim": None}, r"num_attention_heads = 0, which is no"),
        ({"hidden_size": 2.5}, r"hidden_size = 2.5, which is no positive"),
    ],
)
def test_a_configuration_that_cannot_be_the_weights_is_told_so(
    changes: dict[str, Any], says: str
) -> None:
    found = tensors(config("llama"))
    document = {**config("llama").whole, **changes}
    wrong = Config({key: value for key, value in document.items() if value is not None})
    with pytest.raises(ModelError) as refusal:
        mapping.to_gguf(family_of(wrong, list(found)), wrong, found)
    assert re.search(says, str(refusal.value))


def test_layers_beyond_those_that_a_configuration_says_are_counted() -> None:
    found = tensors(config("llama", num_hidden_layers=2))
    with pytest.raises(UnsupportedError, match="9 tensors have no place") as refusal:
        mapping.to_gguf(family_of(config("llama")), config("llama"), found)
    assert "The weights have 2 layers; config.json says 1" in str(refusal.value)


def test_a_tensor_without_a_place_in_a_checkpoint_is_named() -> None:
    of = config("llama")
    family, found, _ = _stored(of)
    found["blk.0.attn_sinks.weight"] = Held(np.zeros(2))
    with pytest.raises(UnsupportedError, match=r"no place in a Hugging Face .*attn_sinks"):
        mapping.to_torch(family, of, found)


def test_a_tensor_that_a_file_lacks_is_named() -> None:
    of = config("llama")
    family, found, _ = _stored(of)
    del found["blk.0.ffn_up.weight"]
    with pytest.raises(ModelError, match=r"'blk.0.ffn_up.weight' is missing"):
        mapping.to_torch(family, of, found)


def test_a_tensor_of_a_file_that_does_not_fit_its_header_is_named() -> None:
    of = config("llama")
    family, found, _ = _stored(of)
    found["blk.0.attn_k.weight"] = Held(np.zeros((8, 8)))
    with pytest.raises(ModelError, match=r"'blk.0.attn_k.weight' has the wrong shape: 8 x 8"):
        mapping.to_torch(family, of, found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ARCH.block_count": 1 << 40}, "block_count = 1099511627776"),
        ({"ARCH.attention.head_count": 1 << 40}, "head_count = 1099511627776"),
        ({"ARCH.attention.head_count": 0}, "attention.head_count, but 0"),
        ({"ARCH.attention.head_count": None}, "attention.head_count"),
        ({"ARCH.feed_forward_length": "wide"}, "feed_forward_length, but 'wide'"),
    ],
)
def test_a_header_that_its_tensors_belie_is_refused(changes: dict[str, Any], said: str) -> None:
    family, found, metadata = _stored(config("llama"), **changes)
    with pytest.raises(ModelError) as refusal:
        family.config(mapping.stored_of(metadata.get, found))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ARCH.feed_forward_length": [16, 17]}, "differ in feed_forward_length"),
        ({"ARCH.attention.causal": False}, "tokens see those that follow"),
        ({"ARCH.attention.value_length": 8}, "4 numbers for keys and 8 for values"),
        ({"ARCH.rope.dimension_count": 2}, "the part 0.5 of each head"),
        ({"ARCH.rope.scaling.type": "longrope", "ARCH.rope.scaling.factor": 2.0}, "longrope"),
    ],
)
def test_a_file_that_transformers_has_no_network_for_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    family, found, metadata = _stored(config("llama"), **changes)
    with pytest.raises(UnsupportedError) as refusal:
        family.config(mapping.stored_of(metadata.get, found))
    assert said in str(refusal.value)
