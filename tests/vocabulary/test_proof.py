from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from convkit import vocabulary
from convkit.errors import ModelError, VerificationError
from convkit.ggml.llama import LlamaModel
from convkit.vocabulary.assembly import added_entry
from convkit.vocabulary.pre_tokenizers import named, written
from convkit.vocabulary.reference import Reference, reference_of
from convkit.vocabulary.stress_texts import PLAIN, with_tokens
from tests.material import minilm_folder
from tests.vocabulary.tiny_tokenizers import (
    WORDS_OF_BYTES,
    byte_level,
    saved,
    vocabulary_file,
)


def test_a_difference_names_the_text_and_where_it_begins(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level(WORDS_OF_BYTES))
    found = vocabulary.of_folder(folder, {})
    swapped = [*found.tokens]
    one, two = swapped.index("1"), swapped.index("2")
    swapped[one], swapped[two] = "2", "1"
    entries = found.metadata() | {"tokenizer.ggml.tokens": swapped}
    file = vocabulary_file(tmp_path / "swapped.gguf", vocabulary.of_metadata(entries))
    with pytest.raises(VerificationError) as caught:
        vocabulary.prove(folder, file)
    assert "llama.cpp splits '1' differently" in str(caught.value)
    assert "They part at token 0 of 1" in str(caught.value)
    assert (caught.value.details["reference"], caught.value.details["candidate"]) == ([one], [two])


@pytest.mark.parametrize("flag", ["add_bos_token", "add_eos_token"])
def test_tokens_around_a_text_are_compared(flag: str, tmp_path: Path) -> None:
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    folder = saved(tmp_path, byte_level(WORDS_OF_BYTES), config)
    entries = vocabulary.of_folder(folder, {}).metadata() | {f"tokenizer.ggml.{flag}": True}
    file = vocabulary_file(tmp_path / "ends.gguf", vocabulary.of_metadata(entries))
    with pytest.raises(VerificationError, match="splits '' differently"):
        vocabulary.prove(folder, file)


def test_control_tokens_in_text_are_compared(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level(WORDS_OF_BYTES))
    found = vocabulary.of_folder(folder, {})
    entries = found.metadata() | {"tokenizer.ggml.token_type": [1] * len(found.tokens)}
    file = vocabulary_file(tmp_path / "types.gguf", vocabulary.of_metadata(entries))
    with pytest.raises(VerificationError, match=r"splits '<\|begin\|>' differently"):
        vocabulary.prove(folder, file)


def _tekken(folder: Path) -> Path:
    tokenizer = byte_level(written(named("tekken")), is_trained_on_cut=True, ignore_merges=True)
    return saved(folder, tokenizer)


def _composed(folder: Path) -> Path:
    return saved(folder, byte_level(WORDS_OF_BYTES, normalizer={"type": "NFC"}))


def _stripping(folder: Path) -> Path:
    tokenizer = byte_level(WORDS_OF_BYTES)
    number = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append(added_entry(number, "<|user|>", is_special=True))
    tokenizer["added_tokens"][-1]["rstrip"] = True
    return saved(folder, tokenizer)


def _minilm(folder: Path) -> Path:
    return minilm_folder()


@pytest.mark.parametrize("make", [_tekken, _composed, _stripping, _minilm])
def test_what_is_said_not_to_be_compared_is_different(make: Any, tmp_path: Path) -> None:
    folder = make(tmp_path / "folder")
    config = {"vocab_size": 30522} if make is _minilm else {}
    found = vocabulary.of_folder(folder, config)
    file = vocabulary_file(tmp_path / "vocabulary.gguf", found)
    reference = reference_of(folder)
    assert isinstance(reference, Reference)
    assert len(vocabulary.prove(folder, file)) == 1 + len(reference.limits)
    with LlamaModel(file, vocab_only=True) as model:
        for limit in reference.limits:
            texts = [*PLAIN, *with_tokens([*reference.added.values()])]
            assert any(
                reference.encode(text, False, True)
                != model.tokenize(text, add_special=False, parse_special=True)
                for text in texts
                if limit.concerns(text)
            ), limit.reason


def test_few_texts_are_left_out(tmp_path: Path) -> None:
    for make in (_tekken, _composed, _minilm):
        reference = reference_of(make(tmp_path / make.__name__))
        assert isinstance(reference, Reference)
        left_out = [
            text for text in PLAIN if any(limit.concerns(text) for limit in reference.limits)
        ]
        assert len(left_out) < len(PLAIN) / 8


def test_without_llama_cpp_nothing_is_proven_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else find(name)
    )
    said = vocabulary.prove(tmp_path, tmp_path / "missing.gguf")
    assert said == ("The tokenizer was not proven: xllamacpp is not installed.",)


def test_a_tokenizer_its_library_cannot_read_is_named(tmp_path: Path) -> None:
    tokenizer = byte_level(WORDS_OF_BYTES)
    tokenizer["model"]["merges"].append(["zq", "qz"])
    folder = saved(tmp_path, json.loads(json.dumps(tokenizer)))
    with pytest.raises(ModelError, match="tokenizers cannot read"):
        vocabulary.prove(folder, tmp_path / "missing.gguf")


def test_an_added_token_without_a_row_is_not_compared(tmp_path: Path) -> None:
    tokenizer = byte_level(WORDS_OF_BYTES)
    count = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append(added_entry(count, "<tool>", is_special=True))
    folder = saved(tmp_path / "folder", tokenizer)
    found = vocabulary.of_folder(folder, {"vocab_size": count})
    assert found.notes
    assert vocabulary.prove(folder, vocabulary_file(tmp_path / "vocabulary.gguf", found))


def test_runs_of_spaces_that_were_added_are_found_alike(tmp_path: Path) -> None:
    tokenizer = byte_level(WORDS_OF_BYTES)
    count = len(tokenizer["model"]["vocab"])
    for index, text in enumerate([" " * length for length in range(20, 1, -1)] + ["\t\t"]):
        entry = added_entry(count + index, text, is_special=False)
        tokenizer["added_tokens"].append(entry | {"normalized": True})
    folder = saved(tmp_path / "folder", tokenizer)
    found = vocabulary.of_folder(folder, {})
    assert vocabulary.prove(folder, vocabulary_file(tmp_path / "vocabulary.gguf", found))


def test_tokens_llama_cpp_finds_whatever_a_file_says_do_not_fail_the_proof(tmp_path: Path) -> None:
    tokenizer = byte_level(WORDS_OF_BYTES)
    entry = added_entry(len(tokenizer["model"]["vocab"]), "<|channel|>", is_special=True)
    tokenizer["added_tokens"].append(entry)
    folder = saved(tmp_path / "folder", tokenizer)
    found = vocabulary.of_folder(folder, {})
    file = vocabulary_file(tmp_path / "vocabulary.gguf", found)
    assert vocabulary.prove(folder, file)
    with LlamaModel(file, vocab_only=True) as model:
        ids = model.tokenize("<|channel|>", add_special=False, parse_special=False)
    assert ids == [entry["id"]]
