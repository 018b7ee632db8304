"""Reads SentencePiece's `tokenizer.model` without SentencePiece.

Source: SentencePiece, `src/sentencepiece_model.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from convkit.errors import ModelError
from convkit.protobuf import BYTES, FIXED32, Buffer, Field, WireError, fields, mapped, signed
from convkit.vocabulary.tokens import TokenType

UNIGRAM, BPE = 1, 2

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_MODEL_TYPE, _WHITESPACE_AS_SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_ROLES = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}
_DEFAULT_IDS = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5


@dataclass(frozen=True)
class Piece:
    """A token of the model.

    Attributes:
        text: with U+2581 for spaces.
        score: higher ones merge first.
        type: what it is for; the numbers are those of GGUF.
    """

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """A model.

    Attributes:
        pieces: by id.
        algorithm: `UNIGRAM`, `BPE`, or another number.
        ids: role -> id; missing ones are left out.
        has_byte_fallback: whether characters without a token become tokens of their bytes.
        adds_space_prefix: whether a space is put before a text.
        removes_spaces: whether repeated, leading and trailing spaces go.
        maps_characters: whether characters are replaced before, as by Unicode's NFKC.
        is_plain: whether spaces stand before words and are written as U+2581.
    """

    pieces: tuple[Piece, ...]
    algorithm: int
    ids: Mapping[str, int]
    has_byte_fallback: bool
    adds_space_prefix: bool
    removes_spaces: bool
    maps_characters: bool
    is_plain: bool


def read(path: Path) -> SentencePieceModel:
    """The model of a file.

    Raises:
        ModelError: the file is damaged, or something else.
    """
    try:
        with mapped(path) as data:
            return _model(data)
    except (WireError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} is no SentencePiece model.",
            why=f"{error}",
            hint="If it is a list of tiktoken's, save tokenizer.json beside it:  "
            'python -c "import transformers; transformers.AutoTokenizer'
            f".from_pretrained('{path.parent}').save_pretrained('{path.parent}')\"",
        ) from error


def _model(data: Buffer) -> SentencePieceModel:
    pieces = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int] = {}
    for number, kind, begin, end in fields(data, 0, len(data)):
        if kind != BYTES:
            continue
        if number == _PIECES:
            pieces.append(_piece(data, begin, end))
        elif number == _TRAINER:
            trainer = _values(fields(data, begin, end))
        elif number == _NORMALIZER:
            normalizer = _values(fields(data, begin, end))
    if not pieces:
        raise WireError(0, "there are no pieces")
    ids = {role: signed(trainer.get(number, _DEFAULT_IDS[role])) for number, role in _ROLES.items()}
    return SentencePieceModel(
        pieces=tuple(pieces),
        algorithm=trainer.get(_MODEL_TYPE, UNIGRAM),
        ids={role: number for role, number in ids.items() if 0 <= number < len(pieces)},
        has_byte_fallback=bool(trainer.get(_BYTE_FALLBACK)),
        adds_space_prefix=bool(normalizer.get(_DUMMY_PREFIX, True)),
        removes_spaces=bool(normalizer.get(_REMOVE_SPACES, True)),
        maps_characters=bool(normalizer.get(_CHARSMAP)),
        is_plain=bool(normalizer.get(_ESCAPE_SPACES, True))
        and not trainer.get(_WHITESPACE_AS_SUFFIX),
    )


def _values(found: Iterator[Field]) -> dict[int, int]:
    """The numbers of a message; of strings, how long they are."""
    return {number: end - begin if kind == BYTES else end for number, kind, begin, end in found}


def _piece(data: Buffer, begin: int, end: int) -> Piece:
    text, score, type_ = "", 0.0, int(TokenType.NORMAL)
    for number, kind, start, stop in fields(data, begin, end):
        if number == _PIECE_TEXT and kind == BYTES:
            text = bytes(data[start:stop]).decode()
        elif number == _PIECE_SCORE and kind == FIXED32:
            score = struct.unpack("<f", data[start:stop])[0]
        elif number == _PIECE_TYPE:
            type_ = stop
    return Piece(text, score, type_)
