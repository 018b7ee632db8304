"""What a process of convkit leaves out when it loads a network changes nothing in the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convkit.child import Child
from tests import child_work
from tests.tiny_models import TINY_TRANSFORMER

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {**TINY_TRANSFORMER, "vocab_size": 64, "pad_token_id": 0}
NETWORKS = {  # with tied weights, with tables of positions, of rotations, of patches
    "LlamaForCausalLM": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "GPT2LMHeadModel": transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32
    ),
    "BertForSequenceClassification": transformers.BertConfig(**SIZES),
    "ViTForImageClassification": transformers.ViTConfig(
        **{**TINY_TRANSFORMER, "image_size": 16, "patch_size": 8}
    ),
}


def test_networks_are_the_same_as_where_all_is_loaded(tmp_path: Path) -> None:
    folders = {}
    for name, config in NETWORKS.items():
        folders[name] = tmp_path / name
        torch.manual_seed(0)
        getattr(transformers, name)(config).save_pretrained(folders[name])
    states, loaded = Child(child_work.network_states, list(folders.values())).result()
    assert {"sympy", "torch._dynamo"}.isdisjoint(loaded)
    for (name, folder), state in zip(folders.items(), states, strict=True):
        network = getattr(transformers, name).from_pretrained(folder)
        expected = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        assert state.keys() == expected.keys()
        for key, tensor in expected.items():
            np.testing.assert_array_equal(state[key], tensor.detach().numpy(), err_msg=key)


def test_what_transformers_defines_is_known_as_if_it_were_read_again() -> None:
    assert Child(child_work.architectures).result() == child_work.architectures()
