"""What the JSON files of a Hugging Face folder say about its texts, beside the vocabulary itself.

Read with the standard library alone, so that a folder can be described where nothing is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convkit.vocabulary.chat_templates import default_template
from convkit.vocabulary.text_files import read_object

_TOKEN_OPTIONS = ("lstrip", "rstrip", "single_word", "normalized")

_LENGTHS = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length",
    "seq_length", "max_target_positions",
)  # fmt: skip
"""Keys of `config.json` that hold the number of positions a model was made for, in the order they
are believed. Source: the configurations of transformers (Llama, GPT-2, CTRL, MPT, Bloom, XGLM)."""

_TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>",
    "<|call|>", "<|endoftext|>", "<|end_of_text|>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>",
    "<end_of_utterance>", "<|EOT|>", "<EOT>", "[EOT]", "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
"""Tokens that end a turn in chat templates. Source: llama.cpp, src/llama-vocab.cpp (end of
generation), and the templates of the models named there."""


@dataclass(frozen=True)
class AddedToken:
    """A token that stands beside the vocabulary proper.

    Attributes:
        text: as it is written out.
        is_special: controls the model instead of being text.
        options: how it is looked for (lstrip, rstrip, single_word, normalized).
    """

    text: str
    is_special: bool
    options: Mapping[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> AddedToken:
        """The token that an object in a JSON file tells, as far as it tells its options."""
        options = {name: bool(entry[name]) for name in _TOKEN_OPTIONS if name in entry}
        return cls(_text(entry), bool(entry.get("special")), options)


@dataclass(frozen=True)
class FolderSettings:
    """How the texts of a model begin, end and are laid out.

    Attributes:
        special_tokens: role -> text (`bos_token` -> `<s>`); what chat templates refer to.
        added_tokens: id -> token.
        chat_template: Jinja source; "" where there is none.
        tokenizer_class: of transformers; "" where nothing says.
        adds_beginning: whether a text begins with `bos_token`; None where nothing says. A
            `tokenizer.json` knows better.
        adds_ending: the same for `eos_token` at the end.
        end_ids: ids that the model's configuration names as ends of a text.
        context_length: tokens the model was made for; None where nothing says.
    """

    special_tokens: Mapping[str, str]
    added_tokens: Mapping[int, AddedToken]
    chat_template: str
    tokenizer_class: str
    adds_beginning: bool | None
    adds_ending: bool | None
    end_ids: frozenset[int]
    context_length: int | None

    @property
    def end_texts(self) -> tuple[str, ...]:
        """Tokens that end a text or, as far as the chat template has them, a turn."""
        turns = [text for text in _TURN_ENDS if text in self.chat_template]
        if "<|return|>" in turns and "<|end|>" in turns:
            turns.remove("<|end|>")  # ends one of several messages of a turn there
        ends = (self.special_tokens.get("eos_token", ""), *turns)
        return tuple(dict.fromkeys(text for text in ends if text))


def read_settings(folder: Path) -> FolderSettings:
    """The settings of a folder; what it lacks is left empty.

    Raises:
        ModelError: a file is no JSON object.
    """
    tokenizer = read_object(folder / "tokenizer_config.json")
    mapped = read_object(folder / "special_tokens_map.json")
    config = read_object(folder / "config.json")
    generation = read_object(folder / "generation_config.json")
    return FolderSettings(
        special_tokens=dict(_special_tokens({**mapped, **tokenizer})),
        added_tokens=dict(_added_tokens(folder, tokenizer)),
        chat_template=default_template(folder, tokenizer),
        tokenizer_class=str(tokenizer.get("tokenizer_class") or ""),
        adds_beginning=_truth(tokenizer.get("add_bos_token")),
        adds_ending=_truth(tokenizer.get("add_eos_token")),
        end_ids=frozenset((*_end_ids(config), *_end_ids(generation))),
        context_length=context_length(config),
    )


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model of this `config.json` was made for; None where it does not say."""
    parts = (config, config.get("text_config"))
    for part in parts:
        for key in _LENGTHS:
            length = part.get(key) if isinstance(part, Mapping) else None
            if type(length) is int and length > 0:
                return length
    return None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(token: Any) -> str:
    """A token is written as text, or as an object with its text in `content`."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else ""


def _special_tokens(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for role, token in settings.items():
        if role.endswith("_token") and _text(token):
            yield role, _text(token)


def _added_tokens(folder: Path, tokenizer: Mapping[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    """Tokens of `added_tokens.json`, then of `tokenizer_config.json`, which knows more of them."""
    for text, number in read_object(folder / "added_tokens.json").items():
        if isinstance(number, int):
            yield number, AddedToken(text, is_special=False)
    stated = tokenizer.get("added_tokens_decoder")
    for number, token in stated.items() if isinstance(stated, Mapping) else ():
        if _text(token) and isinstance(token, Mapping) and str(number).isdigit():
            yield int(number), AddedToken.of(token)


def _end_ids(config: Mapping[str, Any]) -> Iterator[int]:
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        stated = part.get("eos_token_id")
        for number in stated if isinstance(stated, list) else [stated]:
            if isinstance(number, int):
                yield number
