from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit import vocabulary
from convkit.errors import ModelError, UnsupportedError
from convkit.ggml.header import read_header
from convkit.vocabulary.assembly import added_entry
from tests.vocabulary.tiny_tokenizers import (
    WORDS_OF_BYTES,
    byte_level,
    restored,
    saved,
    train_sentencepiece,
    vocabulary_file,
)

KEY = "tokenizer.ggml."


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = saved(tmp_path_factory.mktemp("folder"), byte_level(WORDS_OF_BYTES))
    return vocabulary.of_folder(folder, {}).metadata()


def test_lists_may_be_arrays(tmp_path: Path) -> None:
    found = vocabulary.of_folder(train_sentencepiece(tmp_path), {}).metadata()
    arrays = {key: np.array(value) if key.endswith(("scores", "token_type")) else value
              for key, value in found.items()}  # fmt: skip
    assert vocabulary.from_metadata(arrays) == vocabulary.from_metadata(found)
    assert vocabulary.of_metadata(arrays).metadata() == found


def test_a_file_is_read_back_as_it_was_written(entries: dict[str, Any], tmp_path: Path) -> None:
    file = vocabulary_file(tmp_path / "vocabulary.gguf", vocabulary.of_metadata(entries))
    read = {key: value.plain() for key, value in read_header(file).metadata.items()}
    assert vocabulary.of_metadata(read).metadata() == entries


def test_rows_without_a_token_are_no_tokens_of_the_folder(tmp_path: Path) -> None:
    tokenizer = byte_level(WORDS_OF_BYTES)
    count = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append(added_entry(count + 3, "<tool>", is_special=False))
    size = {"vocab_size": count + 8}
    found = vocabulary.of_folder(saved(tmp_path / "folder", tokenizer), size)
    back = restored(tmp_path / "back", found)
    words = json.loads((back / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(words) == count + 1
    assert words["<tool>"] == count + 3
    assert vocabulary.of_folder(back, size).metadata() == found.metadata()
    assert vocabulary.prove(back, vocabulary_file(tmp_path / "vocabulary.gguf", found))


def test_a_templates_name_cannot_lead_out_of_the_folder(entries: dict[str, Any]) -> None:
    hostile = entries | {"tokenizer.chat_template.../../../etc/x": "text"}
    files = vocabulary.from_metadata(hostile)
    assert not [name for name in files if ".." in name]
    assert "additional_chat_templates/_________etc_x.jinja" in files


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": "t5"}, UnsupportedError, "kind 't5'"),
        ({"tokens": []}, ModelError, "holds no vocabulary"),
        ({"tokens": "abc"}, ModelError, "is no list"),
        ({"tokens": [1, 2]}, ModelError, "list of int, not str"),
        ({"token_type": [1, 1]}, ModelError, "2 entries in tokenizer.ggml.token_type"),
        ({"merges": []}, ModelError, "has no tokenizer.ggml.merges"),
        ({"merges": ["a"]}, ModelError, "merges 'a'"),
        ({"merges": ["a zzz"]}, ModelError, "merges 'a zzz'"),
        ({"model": "llama", "scores": []}, UnsupportedError, "0 tokens for bytes"),
    ],
)
def test_damaged_or_foreign_metadata_are_refused(
    changes: dict[str, Any], error: type[ModelError], said: str, entries: dict[str, Any]
) -> None:
    changed = {KEY + key: value for key, value in changes.items()}
    with pytest.raises(error) as caught:
        vocabulary.from_metadata(entries | changed)
    assert said in str(caught.value)


def test_two_tokens_of_one_text_are_refused(entries: dict[str, Any]) -> None:
    tokens = [*entries[KEY + "tokens"]]
    tokens[7] = tokens[9]
    with pytest.raises(UnsupportedError, match="ids 7, 9"):
        vocabulary.from_metadata(entries | {KEY + "tokens": tokens})


def test_tokens_that_are_no_text_are_refused(entries: dict[str, Any]) -> None:
    tokens = [*entries[KEY + "tokens"]]
    tokens[0] = "\udcff"
    with pytest.raises(ModelError, match="no text"):
        vocabulary.from_metadata(entries | {KEY + "tokens": tokens})
