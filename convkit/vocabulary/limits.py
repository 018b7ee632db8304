"""What llama.cpp is known to do differently for every tokenizer of a kind.

Each was found by comparing both on texts, and traced to llama.cpp's source; a text it concerns is
left out of proofs, and the report says so.

Source: llama.cpp, `src/llama-vocab.cpp` and `src/unicode.cpp`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from convkit.vocabulary.assembly import LONGEST_WORD
from convkit.vocabulary.folder import TokenizerFolder
from convkit.vocabulary.pre_tokenizers import cutting_alike, flattened
from convkit.vocabulary.sentence_piece import spaces_of
from convkit.vocabulary.tokens import SPACE

_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Limit:
    """Something llama.cpp does differently.

    Attributes:
        reason: a sentence for users.
        concerns: whether it does so in a text.
    """

    reason: str
    concerns: Callable[[str], bool]


def limits_of(folder: TokenizerFolder) -> Iterator[Limit]:
    """The limits of a tokenizer that has a `tokenizer.json`."""
    model = folder.tokenizer["model"]
    if model.get("type") == "WordPiece":
        yield from _of_words(folder)
    elif model.get("byte_fallback"):
        yield from _of_spaces(folder)
    else:
        yield from _of_bytes(folder)
    yield from _of_stripping(folder)


def _of_bytes(folder: TokenizerFolder) -> Iterator[Limit]:
    # llama.cpp has no normalizer for vocabularies of bytes.
    if flattened(folder.tokenizer.get("normalizer"), "normalizers"):
        yield Limit(
            "llama.cpp does not compose characters as this tokenizer does (NFC): letters written "
            "with a separate accent become other tokens.",
            lambda text: not unicodedata.is_normalized("NFC", text),
        )
    # Where expressions tell \p{Lu}, \p{Ll} and \p{M} apart, llama.cpp's tell A-Z from a-z.
    if any(row.cases_are_ascii for row in cutting_alike(folder.tokenizer)):
        yield Limit(
            "llama.cpp cuts combining marks off their letters where this tokenizer does not: text "
            "in Hindi, Thai and other scripts that have them becomes more tokens.",
            lambda text: any(unicodedata.category(letter)[0] == "M" for letter in text),
        )
        yield Limit(
            "llama.cpp cuts words in capitals behind one that is not in A-Z (\u00dc|BER); this "
            "tokenizer does not.",
            lambda text: any(map(_has_capital_behind_foreign_one, _LETTERS.findall(text))),
        )


def _has_capital_behind_foreign_one(word: str) -> bool:
    foreign = [at for at, letter in enumerate(word) if letter.isupper() and not letter.isascii()]
    return bool(foreign) and any("A" <= letter <= "Z" for letter in word[foreign[0] :])


def _of_spaces(folder: TokenizerFolder) -> Iterator[Limit]:
    # llama.cpp prefixes a text, and whatever follows a token found in it, without looking; so does
    # SentencePiece. The `Metaspace` of tokenizers looks first.
    spaces = spaces_of(folder.tokenizer)
    added = folder.added_tokens.values()
    tokens = [token.text for token in added]
    if spaces.spare_leading:
        yield Limit(
            "llama.cpp puts a space before a text that begins with one, too; this tokenizer does "
            "not.",
            lambda text: (
                text.startswith((" ", SPACE)) or any(f"{token} " in text for token in tokens)
            ),
        )
    if spaces.spare_control:
        yield Limit(
            "llama.cpp puts a space before text behind a control token; this tokenizer does not.",
            lambda text: any(token in text[:-1] for token in tokens),
        )
    # tokenizers prefixes such a token, too, and then finds it where a space is before it only.
    normalized = [token.text for token in added if token.options.get("normalized")]
    if normalized and spaces.are_prefixed and not spaces.spare_leading:
        yield Limit(
            f"llama.cpp finds {', '.join(normalized[:3])}{' ...' * (len(normalized) > 3)} anywhere "
            "in a text; this tokenizer does behind a space only.",
            lambda text: any(token in text for token in normalized),
        )


def _of_words(folder: TokenizerFolder) -> Iterator[Limit]:
    # llama.cpp looks up words of any length.
    longest = folder.tokenizer["model"].get("max_input_chars_per_word", LONGEST_WORD)
    yield Limit(
        f"llama.cpp splits words of more than {longest} characters; to this tokenizer they are "
        "unknown.",
        lambda text: any(len(word) > longest for word in text.split()),
    )
    # llama.cpp decomposes a character to one other, and drops marks of all kinds.
    normalizer = folder.tokenizer["normalizer"]
    strips = normalizer.get("strip_accents")
    if normalizer.get("lowercase") if strips is None else strips:
        yield Limit(
            "llama.cpp drops vowel signs, and all but the first letter of Korean syllables, where "
            "this tokenizer drops accents: text in Hindi, Bengali, Korean becomes other tokens.",
            lambda text: any(_is_syllable_or_vowel_sign(letter) for letter in text),
        )


def _is_syllable_or_vowel_sign(letter: str) -> bool:
    return "\uac00" <= letter <= "\ud7a3" or unicodedata.category(letter) in ("Mc", "Me")


def _of_stripping(folder: TokenizerFolder) -> Iterator[Limit]:
    # Files do not say it; llama.cpp knows it of a few models by their names.
    tokens = [
        token.text
        for token in folder.added_tokens.values()
        if token.options.get("lstrip") or token.options.get("rstrip")
    ]
    if tokens:
        yield Limit(
            f"llama.cpp may keep the whitespace beside {', '.join(tokens[:3])}"
            f"{' ...' * (len(tokens) > 3)}; this tokenizer drops it.",
            lambda text: any(token in text for token in tokens) and any(map(str.isspace, text)),
        )
