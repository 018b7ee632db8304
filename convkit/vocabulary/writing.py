"""Writes the tokenizer of a Hugging Face folder from a vocabulary of llama.cpp.

What it writes splits text as llama.cpp does, whatever the tokenizer was that the vocabulary was
once made from.

Source: llama.cpp, `src/llama-vocab.cpp`; tokenizers, `tokenizer.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from convkit.errors import ModelError, UnsupportedError
from convkit.vocabulary.assembly import BERT_TOKENS, added_entry, dumped, template, word_piece
from convkit.vocabulary.chat_templates import written as written_templates
from convkit.vocabulary.pre_tokenizers import byte_level, named, written
from convkit.vocabulary.sentence_piece import check_bytes
from convkit.vocabulary.sizing import unused_text
from convkit.vocabulary.tokens import (
    BYTE_LEVEL,
    SENTENCE_PIECE,
    SPACE,
    WORD_PIECE,
    Metadata,
    TokenType,
    Vocabulary,
    of_metadata,
)
from convkit.vocabulary.word_piece import respelled

_FOUND_IN_TEXT = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
_LONGEST_MERGED = 1000

Json = dict[str, Any]


def from_metadata(metadata: Metadata) -> dict[str, str]:
    """The tokenizer's files of a GGUF file: path in the folder -> text.

    Args:
        metadata: the file's keys and values; lists may be any sequences.

    Raises:
        ModelError: there is no vocabulary, or it is damaged.
        UnsupportedError: a kind of vocabulary or a pre-tokenizer that is not known.
    """
    return files(of_metadata(metadata))


def files(vocabulary: Vocabulary) -> dict[str, str]:
    """The tokenizer's files of a vocabulary: path in the folder -> text.

    Raises:
        ModelError: the vocabulary is damaged.
        UnsupportedError: a kind of vocabulary or a pre-tokenizer that is not known.
    """
    ways: Mapping[str, Callable[[Vocabulary], Json]] = {
        BYTE_LEVEL: _byte_level,
        SENTENCE_PIECE: _sentence_piece,
        WORD_PIECE: _word_piece,
    }
    if vocabulary.model not in ways:
        raise UnsupportedError(
            f"A vocabulary of kind '{vocabulary.model}' (tokenizer.ggml.model) has no translation.",
            why=f"Known: {', '.join(ways)}",
            hint="Take the tokenizer from the model's own Hugging Face folder.",
        )
    inline, templates = written_templates(vocabulary.templates)
    special = {
        f"{role}_token": vocabulary.tokens[number]
        for role, number in vocabulary.ids.items()
        if not role.startswith("fim_")
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary),
        **ways[vocabulary.model](vocabulary),
    }
    config = {**_config(vocabulary), **special} | ({"chat_template": inline} if inline else {})
    content = {
        "tokenizer.json": dumped(tokenizer),
        "tokenizer_config.json": _readable(config),
        "special_tokens_map.json": _readable(special),
        **templates,
    }
    _check_text(content)
    return content


def _config(vocabulary: Vocabulary) -> Json:
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if vocabulary.model != WORD_PIECE:  # there transformers would enclose second texts otherwise
        first, last = _ends(vocabulary)
        config |= {"add_bos_token": bool(first), "add_eos_token": bool(last)}
    if "add_space_prefix" in vocabulary.flags:
        config["add_prefix_space"] = vocabulary.flags["add_space_prefix"]
    return config


def _ends(vocabulary: Vocabulary) -> tuple[str, str]:
    """The tokens llama.cpp puts before and after a text; empty where it puts none."""
    implied = vocabulary.model != BYTE_LEVEL or named(vocabulary.pre).adds_bos
    adds = (
        vocabulary.flags.get("add_bos_token", implied),
        vocabulary.flags.get("add_eos_token", False),
    )
    roles = ("bos", "eos")
    if vocabulary.model == WORD_PIECE:  # there it always does
        adds, roles = (True, True), ("bos", "sep")
    first, last = (
        vocabulary.tokens[vocabulary.ids[role]] if added and role in vocabulary.ids else ""
        for added, role in zip(adds, roles, strict=True)
    )
    return first, last


def _post_processor(vocabulary: Vocabulary, plain: Json | None) -> Json | None:
    first, last = _ends(vocabulary)
    if not first and not last:
        return plain
    numbers = {vocabulary.tokens[number]: number for number in vocabulary.ids.values()}
    is_bert = vocabulary.model == WORD_PIECE
    return template(first, last, numbers, pairs_as_bert=is_bert)


def _added(vocabulary: Vocabulary) -> list[Json]:
    return [
        added_entry(number, text, is_special=kind != TokenType.USER_DEFINED)
        for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in _FOUND_IN_TEXT
    ]


def _numbers(vocabulary: Vocabulary) -> dict[str, int]:
    """Text -> id; rows of the embedding without a token are none here."""
    return {
        text: number
        for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind != TokenType.UNUSED or text != unused_text(number)
    }


def _byte_level(vocabulary: Vocabulary) -> Json:
    row = named(vocabulary.pre)
    numbers = _numbers(vocabulary)
    as_bytes = byte_level(use_regex=True)
    return {
        "normalizer": None,
        "pre_tokenizer": written(row),
        "post_processor": _post_processor(vocabulary, as_bytes),
        "decoder": as_bytes,
        "model": _merging(numbers, _byte_merges(vocabulary, numbers))
        | {"ignore_merges": row.ignores_merges},
    }


def _byte_merges(vocabulary: Vocabulary, numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    if not vocabulary.merges:
        raise ModelError("The GGUF file has no tokenizer.ggml.merges, so bytes cannot be merged.")
    merges: list[tuple[str, str]] = []
    for merge in vocabulary.merges:
        place = merge.find(" ", 1)  # a part may begin with a space
        left, right = merge[:place], merge[place + 1 :]
        if place < 0 or left not in numbers or right not in numbers or left + right not in numbers:
            raise ModelError(
                f"The GGUF file merges {merge!r}, which are not two tokens that make a third.",
                why=f"It is number {len(merges)} of tokenizer.ggml.merges.",
            )
        merges.append((left, right))
    return merges


def _sentence_piece(vocabulary: Vocabulary) -> Json:
    check_bytes(vocabulary.types, "The GGUF file")
    are_prefixed = vocabulary.flags.get("add_space_prefix", True)
    prefix: list[Json] = [{"type": "Prepend", "prepend": SPACE}] if are_prefixed else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if are_prefixed else []
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *strip,
    ]
    numbers = _numbers(vocabulary)
    unknown = vocabulary.ids.get("unk")
    model = _merging(numbers, _merges_of_scores(vocabulary, numbers)) | {
        "unk_token": None if unknown is None else vocabulary.tokens[unknown],
        "fuse_unk": True,
        "byte_fallback": True,
    }
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, replace]},
        "pre_tokenizer": None,
        "post_processor": _post_processor(vocabulary, None),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _merges_of_scores(vocabulary: Vocabulary, numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    """All ways to make a token of two others, the token with the best score first."""
    if not vocabulary.scores:
        raise ModelError("The GGUF file has no tokenizer.ggml.scores, so nothing can be merged.")
    longest = max(numbers, key=len)
    if len(longest) > _LONGEST_MERGED:  # each of its characters is a place to part it at
        raise ModelError(f"The GGUF file has a token of {len(longest)} characters.")
    scores = vocabulary.scores
    merges = []
    for text in sorted(numbers, key=lambda text: -scores[numbers[text]]):
        for place in range(1, len(text)):
            left, right = text[:place], text[place:]
            if left in numbers and right in numbers:
                merges.append((left, right))
    return merges


def _merging(numbers: Mapping[str, int], merges: list[tuple[str, str]]) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": numbers,
        "merges": merges,
    }


def _word_piece(vocabulary: Vocabulary) -> Json:
    numbers = {
        respelled(text, vocabulary.types[number]): number
        for text, number in _numbers(vocabulary).items()
    }
    unknown = vocabulary.ids.get("unk")
    return {
        "post_processor": _post_processor(vocabulary, None),
        **word_piece(
            numbers,
            BERT_TOKENS["unk"] if unknown is None else vocabulary.tokens[unknown],
            lowercase=vocabulary.flags.get("normalizer.lowercase", True),
            strip_accents=vocabulary.flags.get("normalizer.strip_accents"),
        ),
    }


def _readable(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def _check_text(content: Mapping[str, str]) -> None:
    """Files hold UTF-8; bytes that are none come from the reader as lone surrogates."""
    for name, text in content.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ModelError(
                "The GGUF file has tokens that are no text (UTF-8).",
                why=f"{name} cannot hold {text[max(0, error.start - 20) : error.end]!r}.",
            ) from error
