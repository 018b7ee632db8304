"""A vocabulary as llama.cpp knows it: tokens with types and scores, merges, special tokens.

Source: llama.cpp, `gguf-py/gguf/constants.py` (`Keys.Tokenizer`, `TokenType`) and
`src/llama-vocab.cpp` (what holds where a file says nothing).
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from convkit.errors import ModelError, UnsupportedError

BYTE_LEVEL = "gpt2"
SENTENCE_PIECE = "llama"
WORD_PIECE = "bert"

SPACE = "\u2581"
"""What stands for a space in tokens of SentencePiece, and before whole words in WordPiece."""

UNUSED_SCORE = -10000.0
ADDED_SCORE = -1000.0
"""Source: llama.cpp, `conversion/base.py` (`_create_vocab_sentencepiece`)."""

Metadata = Mapping[str, Any]

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_TEMPLATE_NAMES = "tokenizer.chat_templates"

ID_KEYS: Mapping[str, str] = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
    "fim_pre": "fim_pre_token_id",
    "fim_suf": "fim_suf_token_id",
    "fim_mid": "fim_mid_token_id",
}
"""A special token's role -> the key of its id; `seperator` is the file's spelling."""

FLAG_KEYS = (
    "add_bos_token",
    "add_eos_token",
    "add_sep_token",
    "add_space_prefix",
    "normalizer.lowercase",
    "normalizer.strip_accents",
)

_IMPLIED_IDS: Mapping[str, Mapping[str, int]] = {
    SENTENCE_PIECE: {"bos": 1, "eos": 2, "unk": 0},
    WORD_PIECE: {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
}
"""Ids that llama.cpp takes where a file has none. Those it takes for byte-level vocabularies (11)
mean nothing outside the model they were made for."""


class TokenType(IntEnum):
    """What a token is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's vocabulary.

    Attributes:
        model: how text becomes tokens, in llama.cpp's names: `gpt2` merges bytes, `llama` merges
            characters by score, `bert` looks words up.
        pre: how text is cut before; the name of a pre-tokenizer.
        tokens: the texts, by id.
        types: a `TokenType` for each.
        scores: for each, where `model` is `llama`; higher ones merge first.
        merges: the two parts with a space between, best first, where `model` is `gpt2`.
        ids: role (`bos`, `eos` ...) -> id.
        flags: name of a switch, as in files -> its position.
        templates: name -> chat template; `default` is the one.
        notes: what a user should know about the way it was read.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    ids: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.tokens)) < len(self.tokens):
            text, count = Counter(self.tokens).most_common(1)[0]
            where = [index for index, token in enumerate(self.tokens) if token == text]
            raise UnsupportedError(
                f"{count} tokens of the vocabulary have the same text {text!r}: "
                f"ids {', '.join(map(str, where[:5]))}.",
                why="llama.cpp looks tokens up by their text.",
            )

    def metadata(self) -> dict[str, Any]:
        """All `tokenizer.*` keys of a GGUF file.

        Numbers are to be stored as uint32, those of lists as int32 and float32.
        """
        return dict(self._entries())

    def _entries(self) -> Iterator[tuple[str, Any]]:
        yield f"{_PREFIX}model", self.model
        yield f"{_PREFIX}pre", self.pre
        yield f"{_PREFIX}tokens", list(self.tokens)
        if self.scores:
            yield f"{_PREFIX}scores", list(self.scores)
        yield f"{_PREFIX}token_type", list(self.types)
        if self.model == BYTE_LEVEL:
            yield f"{_PREFIX}merges", list(self.merges)
        for role, key in ID_KEYS.items():
            if role in self.ids:
                yield _PREFIX + key, self.ids[role]
        for key in FLAG_KEYS:
            if key in self.flags:
                yield _PREFIX + key, self.flags[key]
        yield from self._template_entries()

    def _template_entries(self) -> Iterator[tuple[str, Any]]:
        named = {plain_name(name): text for name, text in self.templates.items()}
        default = named.pop("default", None)
        for name, text in named.items():
            yield f"{_TEMPLATE}.{name}", text
        if named:
            yield _TEMPLATE_NAMES, list(named)
        if default is not None:
            yield _TEMPLATE, default


def of_metadata(metadata: Metadata) -> Vocabulary:
    """The vocabulary of a GGUF file; lists may be any sequences.

    Raises:
        ModelError: a key is missing, or lists differ in length.
    """
    model = metadata.get(f"{_PREFIX}model")
    tokens = _list(metadata, "tokens", str)
    if model is None or not tokens:
        raise ModelError(
            "The GGUF file holds no vocabulary.",
            why="tokenizer.ggml.model and tokenizer.ggml.tokens say what its tokens are.",
            hint="Take the tokenizer from the model's own Hugging Face folder.",
        )
    types = _list(metadata, "token_type", int) or [TokenType.NORMAL] * len(tokens)
    scores = _list(metadata, "scores", float)
    for name, values in (("token_type", types), ("scores", scores)):
        if values and len(values) != len(tokens):
            raise ModelError(
                f"The GGUF file has {len(tokens)} tokens and {len(values)} entries in "
                f"{_PREFIX}{name}."
            )
    ids = {**_IMPLIED_IDS.get(model, {}), **_ids(metadata)}
    return Vocabulary(
        model=model,
        pre=metadata.get(f"{_PREFIX}pre") or "default",
        tokens=[token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)],
        types=types,
        scores=scores,
        merges=_list(metadata, "merges", str),
        ids={role: number for role, number in ids.items() if 0 <= number < len(tokens)},
        flags={
            key: bool(metadata[_PREFIX + key]) for key in FLAG_KEYS if _PREFIX + key in metadata
        },
        templates=_templates(metadata),
    )


def _list(metadata: Metadata, name: str, kind: type) -> list[Any]:
    key = _PREFIX + name
    values = metadata.get(key, ())
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ModelError(f"{key} of the GGUF file is no list.")
    found = values.tolist() if hasattr(values, "tolist") else list(values)
    if found and not isinstance(found[0], kind):  # the elements of a list are of one kind
        raise ModelError(
            f"{key} of the GGUF file is a list of {type(found[0]).__name__}, not {kind.__name__}."
        )
    return found


def _ids(metadata: Metadata) -> dict[str, int]:
    keys = ((role, _PREFIX + key) for role, key in ID_KEYS.items())
    found = {role: metadata[key] for role, key in keys if key in metadata}
    return {role: number for role, number in found.items() if isinstance(number, int)}


def _templates(metadata: Metadata) -> dict[str, str]:
    named = {
        key.removeprefix(_TEMPLATE).removeprefix(".") or "default": text
        for key, text in metadata.items()
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")
    }
    return {plain_name(name): text for name, text in named.items() if isinstance(text, str)}


def plain_name(name: str) -> str:
    """A template's name as it may stand in a key or be a file's.

    SECURITY: a name comes from the file and may be a path.
    """
    allowed = string.ascii_letters + string.digits
    return "".join(letter if letter in allowed else "_" for letter in name)


def looks_special(text: str) -> bool:
    """Whether an added token is for control although its tokenizer does not say so.

    Source: llama.cpp, `conversion/base.py` (`does_token_look_special`).
    """
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
