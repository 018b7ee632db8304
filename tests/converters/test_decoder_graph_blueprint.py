from __future__ import annotations

import json

import numpy as np
import pytest

from convkit.converters.decoder_graph.families import FAMILIES, blueprint
from convkit.errors import ModelError, UnsupportedError
from tests.converters.decoder_models import torch, transformers

SMALL = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_configuration_leaves_out_is_as_transformers_has_it(family):
    config = transformers.CONFIG_MAPPING[family]()
    found = blueprint({"model_type": family})
    for whole in (False, True):
        told = blueprint(json.loads(config.to_json_string(use_diff=not whole)))
        assert told.unread == ()
        assert told == found
    first = found.layers[0].attention
    assert len(found.layers) == config.num_hidden_layers
    assert first.heads == config.num_attention_heads
    assert found.width == config.hidden_size
    assert found.vocabulary == config.vocab_size
    assert found.is_tied == config.tie_word_embeddings


ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn exact": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512,
        "truncate": False, "beta_fast": 16, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1.1,
    },
    "yarn told": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512,
        "attention_factor": 1.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("is_old", [False, True])
def test_frequencies_are_those_of_transformers_to_the_last_bit(name, theta, is_old):
    rope = {**ROPES[name], "rope_theta": theta}
    config = {**SMALL, "head_dim": 128}
    if is_old:
        del rope["rope_theta"]
        config |= {"rope_scaling": rope, "rope_theta": theta}
    else:
        config["rope_parameters"] = rope
    rotary = blueprint(config).layers[0].attention.rotary
    kept = json.loads(json.dumps(config))  # transformers changes what it is given
    network = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(
        transformers.LlamaConfig(**kept)
    )
    wanted = network.inv_freq.numpy()
    found = np.float32(rotary.frequencies)
    # A power may be rounded the other way: one unit in the last place, in few frequencies.
    np.testing.assert_array_max_ulp(found, wanted, maxulp=1 if name == "default" else 3)
    assert np.count_nonzero(found != wanted) <= 2
    assert rotary.magnitude == pytest.approx(network.attention_scaling, rel=1e-12)


def test_factors_for_long_and_short_texts_are_those_of_transformers():
    rope = {
        "rope_type": "longrope", "short_factor": [1.0, 1.25, 1.5], "long_factor": [2.0, 3.0, 4.0],
    }  # fmt: skip
    config = {
        "model_type": "phi3", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1,
        "max_position_embeddings": 4096, "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.75, "rope_scaling": rope, "rope_theta": 10000.0,
    }  # fmt: skip
    rotary = blueprint(config).layers[0].attention.rotary
    network = transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding(
        transformers.Phi3Config(**json.loads(json.dumps(config)))
    )
    for length, found in ((64, rotary.frequencies), (65, rotary.long_frequencies)):
        network(torch.zeros(1), torch.arange(length)[None])
        np.testing.assert_array_max_ulp(np.float32(found), network.inv_freq.numpy(), maxulp=1)
    assert rotary.long_over == 64
    assert rotary.magnitude == pytest.approx(network.attention_scaling, rel=1e-12)
    assert blueprint({**config, "rope_scaling": {**rope, "rope_type": "su"}}) == blueprint(config)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "bert"}, "No blueprint for language models of type 'bert'"),
        ({"num_key_value_heads": 3}, "4 heads on 3 heads of keys"),
        ({"is_encoder_decoder": True}, "it has an encoder"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "positions of kind 'proportional'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "its numbers are incomplete"),
        ({"rope_parameters": {"mrope_section": [1, 2, 3]}}, "rope option 'mrope_section'"),
        ({"partial_rotary_factor": 0.5}, "the family turns whole heads"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.2}, "3 of 16 numbers turned"),
        ({"model_type": "falcon", "alibi": True}, "alibi = true"),
        ({"model_type": "falcon", "num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn = 2"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "its attention looks ahead"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1.0}}, "by kind of layer"),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"] * 2}, "'chunked_attention'"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "1 layer_types for 2 layers"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "without a window"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "it attends to an encoder"),
        ({"model_type": "stablelm", "head_dim": 8}, "head_dim = 8"),
    ],
)  # fmt: skip
def test_options_without_an_expression_are_refused(changes, reason):
    with pytest.raises(UnsupportedError, match=reason):
        blueprint({**SMALL, **changes})


def test_numbers_that_make_no_sense_are_named():
    for key, value in (("hidden_size", 0), ("num_hidden_layers", "two"), ("rms_norm_eps", "x")):
        with pytest.raises(ModelError, match=key):
            blueprint({**SMALL, key: value})


def test_keys_that_mean_nothing_to_the_family_are_told():
    assert blueprint({**SMALL, "alibi": True, "logit_scale": 0.5, "qkv_bias": False}).unread == (
        "alibi", "logit_scale",
    )  # fmt: skip


def test_the_activation_may_be_told_twice_but_not_differently():
    config = {"model_type": "gemma2", "num_hidden_layers": 1, "hidden_act": "gelu_pytorch_tanh"}
    assert blueprint(config).unread == ()
    assert blueprint({**config, "hidden_act": "relu"}).unread == ("hidden_act",)


def test_null_and_a_missing_key_are_told_apart():
    mistral = {**SMALL, "model_type": "mistral"}
    assert blueprint(mistral).layers[0].attention.window == 4096
    found = blueprint({**mistral, "sliding_window": None, "num_key_value_heads": None})
    assert found.layers[0].attention.window is None
    assert found.layers[0].attention.kv_heads == 4


def test_the_first_gemma_means_the_approximation_when_it_says_gelu():
    config = {"model_type": "gemma", "num_hidden_layers": 1}
    assert blueprint({**config, "hidden_act": "gelu"}) == blueprint(config)
