from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from convkit import vocabulary
from convkit.errors import UnsupportedError, VerificationError
from convkit.vocabulary.pre_tokenizer_table import TABLE, PreTokenizer
from convkit.vocabulary.pre_tokenizers import written
from tests.vocabulary.tiny_tokenizers import (
    BYTES_ONLY,
    WORDS_OF_BYTES,
    Json,
    byte_level,
    restored,
    saved,
    sequence,
    split,
    vocabulary_file,
)

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TIKTOKEN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
DIGITS = {"type": "Digits", "individual_digits": True}

# Only where text is cut alike while the vocabulary is trained are these alike: llama.cpp sees
# other boundaries, but no token reaches across them.
CUT_DIFFERENTLY = frozenset(("falcon", "tekken", "gpt-4o", "deepseek-llm", "deepseek-coder"))

# As the models' own tokenizer.json, or transformers' class for them, has it.
PUBLISHED: dict[str, tuple[Json, bool, str, str]] = {
    "Llama 3": (sequence(split(LLAMA3), BYTES_ONLY), True, "llama", "llama-bpe"),
    "Smaug": (sequence(split(LLAMA3), BYTES_ONLY), False, "llama", "smaug-bpe"),
    "DBRX": (sequence(split(TIKTOKEN), BYTES_ONLY), False, "dbrx", "dbrx"),
    "Qwen 2": (
        sequence(split(LLAMA3.replace("{1,3}", "")), BYTES_ONLY), False, "qwen2", "qwen2"
    ),
    "StableLM 2": (
        sequence(split(LLAMA3.replace("{1,3}", "")), BYTES_ONLY), False, "stablelm", "stablelm2"
    ),
    "SmolLM": (sequence(DIGITS, WORDS_OF_BYTES), False, "llama", "smollm"),
    "StarCoder 2": (sequence(DIGITS, WORDS_OF_BYTES), False, "starcoder2", "starcoder"),
    "Refact": (sequence(DIGITS, WORDS_OF_BYTES), False, "gpt_refact", "refact"),
    "Command R": (sequence(DIGITS, WORDS_OF_BYTES), False, "cohere", "command-r"),
    "GPT-2": (WORDS_OF_BYTES, False, "gpt2", "gpt-2"),
    "Phi 2": (WORDS_OF_BYTES, False, "phi", "phi-2"),
    "OLMo": (WORDS_OF_BYTES, False, "olmo", "olmo"),
    "MPT": (WORDS_OF_BYTES, False, "mpt", "mpt"),
    "Falcon": (
        sequence(
            {"type": "Punctuation", "behavior": "Contiguous"}, WORDS_OF_BYTES,
            {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]"),
        ), False, "falcon", "falcon",
    ),
    "DeepSeek Coder": (
        sequence(
            split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"),
            split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"), DIGITS, BYTES_ONLY,
        ), False, "llama", "deepseek-coder",
    ),
    "Bloom": (
        sequence(
            split(" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"), BYTES_ONLY
        ), False, "bloom", "bloom",
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_way_of_cutting_has_its_name(model: str, tmp_path: Path) -> None:
    cut, ignore_merges, model_type, name = PUBLISHED[model]
    folder = saved(tmp_path, byte_level(cut, ignore_merges=ignore_merges))
    assert vocabulary.of_folder(folder, {"model_type": model_type}).pre == name


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.names[0])
def test_llama_cpp_cuts_as_the_table_says_both_ways(row: PreTokenizer, tmp_path: Path) -> None:
    is_trained_on_cut = row.names[0] in CUT_DIFFERENTLY
    tokenizer = byte_level(
        written(row), is_trained_on_cut=is_trained_on_cut, ignore_merges=row.ignores_merges
    )
    folder = saved(tmp_path / "folder", tokenizer)
    found = vocabulary.of_folder(folder, {})
    file = vocabulary_file(tmp_path / "vocabulary.gguf", found)
    assert found.pre == row.names[0]
    assert vocabulary.prove(folder, file)[0].startswith("The tokenizer is proven")
    back = restored(tmp_path / "back", found)
    assert vocabulary.prove(back, file)[0].startswith("The tokenizer is proven")
    assert vocabulary.of_folder(back, {}).metadata() == found.metadata()


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.names[0])
def test_all_names_of_a_row_cut_alike(row: PreTokenizer, tmp_path: Path) -> None:
    is_trained_on_cut = row.names[0] in CUT_DIFFERENTLY
    tokenizer = byte_level(
        written(row), is_trained_on_cut=is_trained_on_cut, ignore_merges=row.ignores_merges
    )
    folder = saved(tmp_path / "folder", tokenizer)
    found = vocabulary.of_folder(folder, {})
    for name in row.names[1:]:
        entries = found.metadata() | {"tokenizer.ggml.pre": name}
        renamed = vocabulary.of_metadata(entries)
        vocabulary.prove(folder, vocabulary_file(tmp_path / f"{name}.gguf", renamed))


def test_any_other_name_is_found_out(tmp_path: Path) -> None:
    by_steps = {row.steps: row for row in TABLE}
    folder = saved(tmp_path / "folder", byte_level(WORDS_OF_BYTES))
    found = vocabulary.of_folder(folder, {})
    del by_steps[next(row.steps for row in TABLE if "gpt-2" in row.names)]
    for row in by_steps.values():
        renamed = vocabulary.of_metadata(found.metadata() | {"tokenizer.ggml.pre": row.names[0]})
        file = vocabulary_file(tmp_path / f"{row.names[0]}.gguf", renamed)
        with pytest.raises(VerificationError, match="differently from the tokenizer"):
            vocabulary.prove(folder, file)


def test_an_unknown_way_of_cutting_is_refused_with_the_nearest(tmp_path: Path) -> None:
    cut = sequence(split(LLAMA3.replace("{1,3}", "{1,4}")), BYTES_ONLY)
    with pytest.raises(UnsupportedError) as caught:
        vocabulary.of_folder(saved(tmp_path, byte_level(cut)), {})
    assert "Nearest: llama-bpe" in str(caught.value)
    assert r"\p{N}{1,4}" in str(caught.value)
    assert r"\p{N}{1,3}" in str(caught.value)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {**WORDS_OF_BYTES, "add_prefix_space": True}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": sequence({"type": "WhitespaceSplit"}, BYTES_ONLY)},
        {"pre_tokenizer": sequence({**split(r"\s+"), "invert": True}, BYTES_ONLY)},
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level(WORDS_OF_BYTES, **parts))
    with pytest.raises(UnsupportedError):
        vocabulary.of_folder(folder, {})


def test_ignoring_merges_matters_where_they_do_not_reach_a_token(tmp_path: Path) -> None:
    cut = sequence(split(LLAMA3.replace("{1,3}", "")), BYTES_ONLY)
    tokenizer = byte_level(cut, ignore_merges=True)
    folder = saved(tmp_path / "folder", tokenizer)
    found = vocabulary.of_folder(folder, {})  # all are reached, so qwen2 does the same
    assert found.pre == "qwen2"
    vocabulary.prove(folder, vocabulary_file(tmp_path / "vocabulary.gguf", found))
    tokenizer["model"]["vocab"]["\u0120zqzq"] = len(tokenizer["model"]["vocab"])
    with pytest.raises(UnsupportedError, match="ignore_merges"):
        vocabulary.of_folder(saved(tmp_path / "other", tokenizer), {})


def test_the_name_of_a_file_must_be_known(tmp_path: Path) -> None:
    found = vocabulary.of_folder(saved(tmp_path, byte_level(WORDS_OF_BYTES)), {})
    entries = found.metadata() | {"tokenizer.ggml.pre": "qwen3"}
    with pytest.raises(UnsupportedError, match="'qwen3'") as caught:
        vocabulary.from_metadata(entries)
    assert "qwen2" in str(caught.value)
