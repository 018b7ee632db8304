from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convkit import vocabulary
from convkit.errors import UnsupportedError
from convkit.vocabulary import TokenType
from convkit.vocabulary.folder import TokenizerFolder
from convkit.vocabulary.limits import limits_of
from tests.material import minilm_folder
from tests.vocabulary.tiny_tokenizers import restored, saved, vocabulary_file

SIZE = {"vocab_size": 30522}


def proven(folder: Path, file: Path) -> bool:
    return vocabulary.prove(folder, file)[0].startswith("The tokenizer is proven")


def test_minilm_is_split_alike_and_comes_back(tmp_path: Path) -> None:
    folder = minilm_folder()
    found = vocabulary.of_folder(folder, json.loads((folder / "config.json").read_text()))
    file = vocabulary_file(tmp_path / "minilm.gguf", found, "bert")
    assert proven(folder, file)
    back = restored(tmp_path / "back", found)
    assert proven(back, file)
    assert vocabulary.of_folder(back, SIZE).metadata() == found.metadata()
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert json.loads((back / "tokenizer.json").read_text())["model"]["vocab"] == words


def test_words_begin_with_a_mark_and_their_parts_do_not() -> None:
    found = vocabulary.of_folder(minilm_folder(), SIZE)
    assert found.tokens[101:104] == ["[CLS]", "[SEP]", "[MASK]"]
    assert (found.tokens[2088], found.tokens[2075]) == ("\u2581world", "ing")
    assert found.types[101:105] == [*[TokenType.CONTROL] * 3, TokenType.NORMAL]
    assert found.ids == {"bos": 101, "eos": 102, "unk": 100, "sep": 102, "pad": 0, "cls": 101,
                         "mask": 103}  # fmt: skip


def test_a_word_list_alone_is_the_same_vocabulary(tmp_path: Path) -> None:
    folder = minilm_folder()
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    found = vocabulary.of_folder(tmp_path, SIZE)
    assert found.metadata() == vocabulary.of_folder(folder, SIZE).metadata()
    assert proven(tmp_path, vocabulary_file(tmp_path / "minilm.gguf", found, "bert"))


def test_capitals_are_kept_where_the_tokenizer_keeps_them(tmp_path: Path) -> None:
    tokenizer = _minilm()
    tokenizer["normalizer"]["lowercase"] = False
    words = tokenizer["model"]["vocab"]
    words["Hello"] = words.pop("[unused5]")
    folder = saved(tmp_path / "cased", tokenizer)
    found = vocabulary.of_folder(folder, SIZE)
    file = vocabulary_file(tmp_path / "cased.gguf", found, "bert")
    assert found.flags["normalizer.lowercase"] is False
    assert proven(folder, file)
    assert proven(restored(tmp_path / "back", found), file)


def test_accents_are_kept_where_the_tokenizer_keeps_them(tmp_path: Path) -> None:
    tokenizer = _minilm()
    tokenizer["normalizer"]["strip_accents"] = False
    folder = saved(tmp_path / "accents", tokenizer)
    found = vocabulary.of_folder(folder, SIZE)
    file = vocabulary_file(tmp_path / "accents.gguf", found, "bert")
    assert found.flags["normalizer.strip_accents"] is False
    assert proven(folder, file)
    assert proven(restored(tmp_path / "back", found), file)
    assert len(list(limits_of(TokenizerFolder(folder)))) == 1


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("normalizer", "handle_chinese_chars", False),
        ("normalizer", "type", "Lowercase"),
        ("pre_tokenizer", "type", "Whitespace"),
        ("model", "continuing_subword_prefix", "@@"),
    ],
)
def test_what_llama_cpp_does_otherwise_is_refused(
    part: str, name: str, value: Any, tmp_path: Path
) -> None:
    tokenizer = _minilm()
    tokenizer[part][name] = value
    with pytest.raises(UnsupportedError, match="does not") as caught:
        vocabulary.of_folder(saved(tmp_path, tokenizer), SIZE)
    assert str(value) in str(caught.value)


def _minilm() -> dict[str, Any]:
    tokenizer: dict[str, Any] = json.loads((minilm_folder() / "tokenizer.json").read_text())
    return tokenizer
