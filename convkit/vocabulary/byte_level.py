"""Vocabularies that merge bytes: GPT-2's and all that followed it.

A byte is written as a printable character, so a token's text need not be valid UTF-8.

Source: llama.cpp, `conversion/base.py` (`get_vocab_base`), `gguf-py/gguf/vocab.py`
(`SpecialVocab`, for spaces in merges).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convkit.errors import UnsupportedError
from convkit.vocabulary.folder import TokenizerFolder
from convkit.vocabulary.pre_tokenizers import matched, merge_pairs, preferred
from convkit.vocabulary.sizing import Entry, added_type, laid_out, row_count
from convkit.vocabulary.special_tokens import special_tokens
from convkit.vocabulary.tokens import BYTE_LEVEL, SPACE, TokenType, Vocabulary

_SPACE_AS_BYTE = "\u0120"


def of_byte_level(folder: TokenizerFolder, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a `tokenizer.json` that merges bytes.

    Raises:
        UnsupportedError: llama.cpp would split text differently.
        ModelError: the vocabulary does not fit the embedding.
    """
    tokenizer = folder.tokenizer
    model = tokenizer["model"]
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedError(
                f"The tokenizer in {folder.path} marks parts of words with {model[name]!r} "
                f"(model.{name}); llama.cpp cannot."
            )
    row = matched(tokenizer)
    added = folder.added_tokens
    entries = {number: Entry(text) for text, number in model["vocab"].items()}
    for number, token in added.items():
        kind = added_type(token)
        is_text = kind == TokenType.USER_DEFINED
        text = token.text.replace(SPACE, " ") if is_text else token.text
        entries[number] = Entry(text, kind)
    layout = laid_out(entries, row_count(config), added, folder.path)
    numbers = {text: number for number, text in enumerate(layout.texts)}
    special = special_tokens(folder, config, numbers)
    flags = dict(special.flags)
    prefixes = folder.config.get("add_prefix_space")
    if isinstance(prefixes, bool):
        flags["add_space_prefix"] = prefixes
    return Vocabulary(
        model=BYTE_LEVEL,
        pre=preferred(row, str(config.get("model_type", ""))),
        tokens=layout.texts,
        types=layout.types,
        merges=[
            f"{_escaped(left)} {_escaped(right)}" for left, right in merge_pairs(model["merges"])
        ],
        ids=special.ids,
        flags=flags,
        notes=layout.notes,
    )


def _escaped(part: str) -> str:
    return part.replace(" ", _SPACE_AS_BYTE)
