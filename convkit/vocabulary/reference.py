"""The tokenizer of a folder as its own library runs it, to compare with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.errors import ModelError
from convkit.vocabulary.assembly import dumped
from convkit.vocabulary.folder import TokenizerFolder
from convkit.vocabulary.limits import Limit, limits_of
from convkit.vocabulary.reading import missing
from convkit.vocabulary.special_tokens import SpecialTokens, special_tokens
from convkit.vocabulary.tokens import looks_special

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BARE, _ENCLOSED, _AS_TEXT, _ENCLOSED_AS_TEXT = (
    (False, True), (True, True), (False, False), (True, False)
)  # fmt: skip

_FOUND_ANYWAY = frozenset(("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"))
"""Tokens that llama.cpp finds in text whatever a file says. Source: src/llama-vocab.cpp."""


@dataclass(frozen=True)
class Reference:
    """A tokenizer to compare with.

    Attributes:
        library: what runs it.
        encode: text, whether tokens are put around it, whether control tokens are found in it
            -> ids.
        modes: the two switches of `encode`, as far as the library has them.
        added: tokens that are found before anything else is done: id -> text.
        limits: what is not compared.
    """

    library: str
    encode: Callable[[str, bool, bool], list[int]]
    modes: Sequence[tuple[bool, bool]]
    added: Mapping[int, str] = field(default_factory=dict)
    limits: Sequence[Limit] = ()


def reference_of(path: Path) -> Reference | str:
    """The reference for a folder, or a sentence that says why there is none.

    Raises:
        ModelError: there is no tokenizer, or its library cannot read it.
    """
    model_type = TokenizerFolder(path).json("config.json").get("model_type", "")
    folder = TokenizerFolder(path, str(model_type))
    if not folder.tokenizer and not folder.model:
        raise missing(folder)
    library = "tokenizers" if folder.tokenizer else "sentencepiece"
    if importlib.util.find_spec(library) is None:
        return f"The tokenizer was not proven: {library} is not installed."
    return _of_tokenizers(folder) if folder.tokenizer else _of_sentencepiece(folder)


def _of_tokenizers(folder: TokenizerFolder) -> Reference:
    tokenizer = _loaded(folder)
    added = folder.added_tokens
    ends = None
    if _overrides_ends(folder):
        numbers = tokenizer.get_vocab(with_added_tokens=True)
        ends = _ends(special_tokens(folder, folder.json("config.json"), numbers))

    def encode(text: str, is_enclosed: bool, finds_control: bool) -> list[int]:
        tokenizer.encode_special_tokens = not finds_control
        if ends is None:
            return list(tokenizer.encode(text, add_special_tokens=is_enclosed).ids)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [*ends[0], *ids, *ends[1]] if is_enclosed else list(ids)

    # What llama.cpp alone takes for control tokens, or for none, differs where they are not looked
    # for.
    differ = any(
        token.text in _FOUND_ANYWAY or (looks_special(token.text) and not token.is_special)
        for token in added.values()
    )
    return Reference(
        library="tokenizers",
        encode=encode,
        modes=(_BARE, _ENCLOSED) if differ else (_BARE, _ENCLOSED, _AS_TEXT),
        added={number: token.text for number, token in added.items()},
        limits=list(limits_of(folder)),
    )


def _loaded(folder: TokenizerFolder) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer

    try:
        if folder.has("tokenizer.json"):
            tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
        else:
            tokenizer = Tokenizer.from_str(dumped(folder.tokenizer))
    except Exception as error:  # the library raises no class of its own
        raise ModelError(
            f"tokenizers cannot read the tokenizer in {folder.path}.", why=str(error)[:200]
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for number, token in sorted(folder.added_tokens.items()):
        if number not in folder.own_tokens:
            added = AddedToken(token.text, special=token.is_special, **token.options)
            tokenizer.add_tokens([added])
            if tokenizer.token_to_id(token.text) != number:
                raise ModelError(
                    f"The added token {token.text!r} cannot have the id {number} in {folder.path}.",
                    why=f"tokenizer.json has {tokenizer.get_vocab_size()} tokens of its own.",
                )
    return tokenizer


def _overrides_ends(folder: TokenizerFolder) -> bool:
    """Whether the configuration says what is put around a text, whatever `tokenizer.json` does."""
    settings = folder.settings
    is_said = settings.adds_beginning is not None or settings.adds_ending is not None
    return is_said and folder.tokenizer["model"].get("type") != "WordPiece"


def _ends(special: SpecialTokens) -> tuple[list[int], list[int]]:
    first, last = (
        [special.ids[role]] if special.flags[f"add_{role}_token"] else [] for role in ("bos", "eos")
    )
    return first, last


def _of_sentencepiece(folder: TokenizerFolder) -> Reference:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(folder.model))
    numbers: Mapping[str, int] = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    implied = {"bos": model.bos_id(), "eos": model.eos_id()}
    config = folder.json("config.json")
    special = special_tokens(folder, config, numbers, adds_bos=True, implied=implied)
    first, last = _ends(special)

    def encode(text: str, is_enclosed: bool, finds_control: bool) -> list[int]:
        ids = model.encode(text)
        return [*first, *ids, *last] if is_enclosed else list(ids)

    # SentencePiece knows no tokens that were added later, and never looks for control tokens.
    added = [token.text for token in folder.added_tokens.values()]
    later = [text for text in added if text not in numbers]
    limit = Limit("", lambda text: any(token in text for token in later))
    return Reference("sentencepiece", encode, (_AS_TEXT, _ENCLOSED_AS_TEXT), limits=[limit])
