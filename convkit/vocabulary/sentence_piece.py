"""Vocabularies that merge characters by score, with bytes for what has no token.

SentencePiece's own file has the scores. `tokenizer.json` has merges in their place: for each token
all ways to make it of two others, best token first; so their order gives scores that merge alike.

Source: llama.cpp, `conversion/base.py` (`_create_vocab_sentencepiece`) and `src/llama-vocab.cpp`
(`llm_tokenizer_spm`); transformers, `tokenization_utils_base.py` (`generate_merges`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from convkit.errors import UnsupportedError
from convkit.vocabulary.folder import TokenizerFolder
from convkit.vocabulary.folder_settings import AddedToken
from convkit.vocabulary.pre_tokenizers import flattened, merge_pairs
from convkit.vocabulary.sentencepiece_model import BPE, SentencePieceModel, read
from convkit.vocabulary.sizing import Entry, added_type, laid_out, row_count
from convkit.vocabulary.special_tokens import special_tokens
from convkit.vocabulary.tokens import ADDED_SCORE, SENTENCE_PIECE, SPACE, TokenType, Vocabulary

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BYTE_COUNT = 256

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Spaces:
    """What happens to spaces before characters are merged.

    Attributes:
        are_prefixed: a text begins with one more.
        spare_leading: not where it begins with one anyway.
        spare_control: not behind a control token.
    """

    are_prefixed: bool
    spare_leading: bool = False
    spare_control: bool = False


def of_sentence_piece(folder: TokenizerFolder, config: Json) -> Vocabulary:
    """The vocabulary of `tokenizer.model`, or of a `tokenizer.json` made from one.

    Raises:
        UnsupportedError: llama.cpp would split text differently.
        ModelError: a file is damaged, or the vocabulary does not fit the embedding.
    """
    tokenizer = folder.tokenizer
    model = read(folder.model) if folder.model else None
    if tokenizer:
        are_prefixed = spaces_of(tokenizer).are_prefixed
        entries = _entries_of_json(tokenizer["model"], model, folder)
    else:
        assert model is not None
        _check_model(model, folder)
        said = folder.config.get("add_prefix_space")
        are_prefixed = said if isinstance(said, bool) else model.adds_space_prefix
        entries = _entries_of_model(model)
    added = folder.added_tokens
    for number, token in added.items():
        entries[number] = _added(entries.get(number), token)
    for number, entry in entries.items():
        if entry.type == TokenType.USER_DEFINED:  # found in text before spaces are replaced
            entries[number] = replace(entry, text=entry.text.replace(SPACE, " "))
    layout = laid_out(entries, row_count(config), added, folder.path)
    check_bytes(layout.types, f"The tokenizer in {folder.path}")
    numbers = {text: number for number, text in enumerate(layout.texts)}
    special = special_tokens(
        folder, config, numbers, adds_bos=not tokenizer, implied=model.ids if model else {}
    )
    return Vocabulary(
        model=SENTENCE_PIECE,
        pre="default",
        tokens=layout.texts,
        types=layout.types,
        scores=layout.scores,
        ids=special.ids,
        flags={**special.flags, "add_space_prefix": are_prefixed},
        notes=layout.notes,
    )


def spaces_of(tokenizer: Json) -> Spaces:
    """How a `tokenizer.json` treats spaces.

    Raises:
        UnsupportedError: as no model of SentencePiece is known to.
    """
    normalizers = flattened(tokenizer.get("normalizer"), "normalizers")
    cuts = flattened(tokenizer.get("pre_tokenizer"), "pretokenizers")
    are_prefixed = bool(normalizers) and _is(normalizers[0], "Prepend", prepend=SPACE)
    rest = normalizers[are_prefixed:]
    if len(rest) == 1 and _is(rest[0], "Replace", pattern={"String": " "}, content=SPACE):
        if all(_is(cut, "Split", pattern={"String": " "}) for cut in cuts):
            return Spaces(are_prefixed)  # no space is left to cut at
    elif not normalizers and len(cuts) == 1 and _is(cuts[0], "Metaspace", replacement=SPACE):
        scheme = cuts[0].get("prepend_scheme", "always")
        if cuts[0].get("split", True) is False:
            are_prefixed = scheme != "never"
            return Spaces(are_prefixed, are_prefixed, scheme == "first")
    shown = [str(dict(step)) for step in (*normalizers, *cuts)]
    raise UnsupportedError(
        "llama.cpp replaces spaces by U+2581 and merges the text as a whole; "
        "this tokenizer.json does not.",
        why=["normalizer and pre_tokenizer are", *(step[:200] for step in shown or ["none"])],
    )


def _is(step: Json, kind: str, **expected: Any) -> bool:
    return step.get("type") == kind and all(step.get(key) == expected[key] for key in expected)


def _entries_of_model(model: SentencePieceModel) -> dict[int, Entry]:
    return {
        number: Entry(piece.text, piece.type, piece.score)
        for number, piece in enumerate(model.pieces)
    }


def _entries_of_json(
    model: Json, original: SentencePieceModel | None, folder: TokenizerFolder
) -> dict[int, Entry]:
    """Tokens of a `tokenizer.json`, with the scores of the model it was made from, if there."""
    vocabulary: Mapping[str, int] = model["vocab"]
    if original and original.algorithm == BPE:
        pieces = _entries_of_model(original)
        if all(vocabulary.get(entry.text) == number for number, entry in pieces.items()):
            return pieces
    scores = _scores_of_merges(model, folder)
    unknown = model.get("unk_token")
    entries = {}
    for text, number in vocabulary.items():
        kind = TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL
        kind = TokenType.UNKNOWN if text == unknown else kind
        entries[number] = Entry(text, kind, scores.get(text, 0.0))
    return entries


def _scores_of_merges(model: Json, folder: TokenizerFolder) -> dict[str, float]:
    """Text -> a score that merges as the merges do."""
    scores: dict[str, float] = {}
    pairs = list(merge_pairs(model["merges"]))
    added = {token.text for token in folder.added_tokens.values()}
    previous = ""
    for rank, (left, right) in enumerate(pairs):
        text = left + right
        if text in added:  # found in text before anything is merged
            continue
        if text != previous and text in scores:
            raise _not_by_score(folder, f"The merges that make {text!r} stand apart.")
        scores.setdefault(text, -float(rank))
        previous = text
    _check_all_ways(model["vocab"].keys() - added, set(pairs), folder)
    return scores


def _check_all_ways(texts: Set[str], pairs: set[tuple[str, str]], folder: TokenizerFolder) -> None:
    """llama.cpp merges any two neighbours that make a token; so must the merges."""
    for text in texts:
        for place in range(1, len(text)):
            left, right = text[:place], text[place:]
            if left in texts and right in texts and (left, right) not in pairs:
                raise _not_by_score(folder, f"There is no merge of {left!r} and {right!r}.")


def _not_by_score(folder: TokenizerFolder, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"The tokenizer in {folder.path} merges characters in a way of its own.",
        why=[
            why,
            "llama.cpp merges any two neighbours that make a token, the best token first, as "
            "SentencePiece does.",
        ],
        hint="If the model was trained with a tokenizer.model, put it into the folder.",
    )


def _added(base: Entry | None, token: AddedToken) -> Entry:
    if base and base.type == TokenType.UNKNOWN:
        return replace(base, text=token.text)
    return Entry(token.text, added_type(token), ADDED_SCORE)


def _check_model(model: SentencePieceModel, folder: TokenizerFolder) -> None:
    reasons = {
        "it is a unigram model; llama.cpp merges by score": model.algorithm != BPE,
        "it replaces characters (normalizer_spec.precompiled_charsmap)": model.maps_characters,
        "it removes spaces (normalizer_spec.remove_extra_whitespaces)": model.removes_spaces,
        "it writes spaces behind words, or as they are": not model.is_plain,
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    if wrong:
        raise UnsupportedError(
            f"llama.cpp would split text differently from {folder.model}.", why=wrong
        )


def check_bytes(types: Sequence[int], what: str) -> None:
    """Whether there are tokens for all bytes; llama.cpp ends the process where one is missing.

    Raises:
        UnsupportedError: there are not.
    """
    count = list(types).count(TokenType.BYTE)
    if count != _BYTE_COUNT:
        raise UnsupportedError(
            f"{what} has {count} tokens for bytes.",
            why="llama.cpp writes characters without a token as bytes and needs all 256, "
            "<0x00> to <0xFF>.",
        )
