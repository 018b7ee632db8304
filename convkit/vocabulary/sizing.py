"""Lays tokens out by id, one for every row of the embedding.

Source: llama.cpp, `conversion/base.py` (`get_vocab_base`, `_create_vocab_sentencepiece`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convkit.errors import ModelError
from convkit.vocabulary.folder_settings import AddedToken
from convkit.vocabulary.tokens import UNUSED_SCORE, TokenType, looks_special


@dataclass(frozen=True)
class Entry:
    """A token before it has its place."""

    text: str
    type: int = TokenType.NORMAL
    score: float = 0.0


@dataclass(frozen=True)
class Layout:
    """Tokens at their places.

    Attributes:
        texts: by id.
        types: by id.
        scores: by id.
        notes: what was left out.
    """

    texts: list[str]
    types: list[int]
    scores: list[float]
    notes: tuple[str, ...] = ()


def unused_text(number: int) -> str:
    """The text of a row of the embedding that no token belongs to."""
    return f"[PAD{number}]"


def row_count(config: Mapping[str, Any]) -> int | None:
    """The rows of the embedding as a model's configuration has them."""
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return size if isinstance(size, int) else None


def added_type(token: AddedToken) -> TokenType:
    """What an added token is for."""
    is_control = token.is_special or looks_special(token.text)
    return TokenType.CONTROL if is_control else TokenType.USER_DEFINED


def laid_out(
    entries: Mapping[int, Entry], size: int | None, added: Collection[int], folder: Path
) -> Layout:
    """Tokens by id, rows without one filled up.

    Args:
        entries: id -> token.
        size: how many rows the embedding has; None for as many as there are tokens.
        added: the ids that may be left out where the embedding lacks them.
        folder: where they are from, for messages.

    Raises:
        ModelError: the vocabulary has more tokens than the embedding has rows.
    """
    count = max(entries) + 1
    size = size or count
    beyond = sorted(number for number in entries if number >= size)
    strange = [number for number in beyond if number not in added]
    if strange:
        raise ModelError(
            f"The tokenizer in {folder} has {count} tokens, the embedding (vocab_size) has "
            f"{size} rows.",
            why=f"The first without a row is {entries[strange[0]].text!r}, id {strange[0]}; it is "
            "no added token that could be left out.",
            hint="Is the tokenizer another model's? Copy the right one into the folder.",
        )
    notes = []
    if beyond:
        texts = ", ".join(repr(entries[number].text) for number in beyond[:5])
        notes.append(
            f"{len(beyond)} added tokens have no row in the embedding and were left out: {texts}"
            f"{' ...' if len(beyond) > 5 else ''}. To keep them, call "
            f"model.resize_token_embeddings({count}) and save the model before converting it."
        )
    rows = [entries.get(number) or _unused(number) for number in range(size)]
    return Layout(
        [row.text for row in rows],
        [int(row.type) for row in rows],
        [row.score for row in rows],
        tuple(notes),
    )


def _unused(number: int) -> Entry:
    return Entry(unused_text(number), TokenType.UNUSED, UNUSED_SCORE)
