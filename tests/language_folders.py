"""Whole small language models as people have them: weights, configuration, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vocabulary.tiny_tokenizers import ENDS, WORDS_OF_BYTES, byte_level, saved

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|begin|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|begin|>assistant\n' }}"
    "{% endif %}"
)


def llama_folder(path: Path, dtype: str = "float32", **changes: Any) -> Path:
    """A Llama of two layers with a byte-level tokenizer; its next tokens are far from even."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    tokenizer = byte_level(WORDS_OF_BYTES, is_trained_on_cut=True)
    tokens = tokenizer["model"]["vocab"]
    config = {
        "vocab_size": len(tokens),
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokens[ENDS[0]],
        "eos_token_id": tokens[ENDS[1]],
        "tie_word_embeddings": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = transformers.LlamaConfig(**{**config, **changes})
        network = transformers.LlamaForCausalLM(made).to(getattr(torch, dtype))
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.06)
    transformers.utils.logging.disable_progress_bar()
    network.save_pretrained(path)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": ENDS[0],
        "eos_token": ENDS[1],
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": tokens[ENDS[1]]}))
    return saved(path, tokenizer, settings)


def llama_file(path: Path, dtype: str = "float32", **changes: Any) -> Path:
    """The same as a GGUF file."""
    import convkit

    folder = llama_folder(path.parent / f"{path.stem}-folder", dtype, **changes)
    convkit.convert(folder, to="gguf", out=path, verify=False)
    return path
