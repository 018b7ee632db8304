"""Vocabularies that look words up, longest first: BERT's.

`##ing` continues a word in `tokenizer.json`. In GGUF words begin with U+2581 instead, and what
continues one is written plainly.

Source: llama.cpp, `conversion/bert.py` (`BertModel.set_vocab`), `src/llama-vocab.cpp`
(`llm_tokenizer_wpm`, `normalizer_options`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convkit.errors import UnsupportedError
from convkit.vocabulary.assembly import BERT_TOKENS, CONTINUES
from convkit.vocabulary.folder import TokenizerFolder
from convkit.vocabulary.sizing import Entry, added_type, laid_out, row_count
from convkit.vocabulary.special_tokens import special_tokens
from convkit.vocabulary.tokens import SPACE, WORD_PIECE, TokenType, Vocabulary

_PRE = "bert-bge"
"""llama.cpp pays no heed to it here; files of BERT models have it."""


def of_word_piece(folder: TokenizerFolder, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a `tokenizer.json` of BERT's kind.

    Raises:
        UnsupportedError: llama.cpp would split text differently.
        ModelError: the vocabulary does not fit the embedding.
    """
    tokenizer = folder.tokenizer
    normalizer = tokenizer.get("normalizer") or {}
    _check(tokenizer, normalizer)
    added = folder.added_tokens
    vocabulary: Mapping[str, int] = tokenizer["model"]["vocab"]
    entries = {number: Entry(_spelled(text)) for text, number in vocabulary.items()}
    entries.update(
        (number, Entry(token.text, added_type(token))) for number, token in added.items()
    )
    layout = laid_out(entries, row_count(config), added, folder.path)
    numbers = {text: number for number, text in enumerate(layout.texts)}
    implied = {role: numbers[text] for role, text in BERT_TOKENS.items() if text in numbers}
    special = special_tokens(folder, config, numbers, implied=implied)
    lowers = bool(normalizer.get("lowercase", True))
    strips = normalizer.get("strip_accents")
    flags = dict(special.flags)
    if not lowers:  # what llama.cpp does by itself is not written
        flags["normalizer.lowercase"] = False
    if strips is not None and strips != lowers:
        flags["normalizer.strip_accents"] = bool(strips)
    return Vocabulary(
        model=WORD_PIECE,
        pre=_PRE,
        tokens=layout.texts,
        types=layout.types,
        ids=special.ids,
        flags=flags,
        notes=layout.notes,
    )


def _spelled(text: str) -> str:
    return text.removeprefix(CONTINUES) if text.startswith(CONTINUES) else SPACE + text


def respelled(text: str, kind: int) -> str:
    """A token of a GGUF file as `tokenizer.json` has it."""
    if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN):
        return text
    return text.removeprefix(SPACE) if text.startswith(SPACE) else CONTINUES + text


def _check(tokenizer: Mapping[str, Any], normalizer: Mapping[str, Any]) -> None:
    """Whether the tokenizer does what llama.cpp's does."""
    cuts = (tokenizer.get("pre_tokenizer") or {}).get("type")
    prefix = tokenizer["model"].get("continuing_subword_prefix", CONTINUES)
    expected = (
        ("normalizer", normalizer.get("type"), "BertNormalizer"),
        ("normalizer.clean_text", normalizer.get("clean_text"), True),
        ("normalizer.handle_chinese_chars", normalizer.get("handle_chinese_chars"), True),
        ("pre_tokenizer", cuts, "BertPreTokenizer"),
        ("model.continuing_subword_prefix", prefix, CONTINUES),
    )
    wrong = [f"{name} is {found}, not {want}" for name, found, want in expected if found != want]
    if wrong:
        raise UnsupportedError(
            "llama.cpp looks words up as BERT does; this tokenizer.json does not.", why=wrong
        )
