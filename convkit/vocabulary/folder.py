"""The tokenizer's files in a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from convkit.errors import ModelError
from convkit.vocabulary.assembly import assembled
from convkit.vocabulary.folder_settings import AddedToken, FolderSettings, read_settings
from convkit.vocabulary.text_files import read_object, read_text

LOOKED_FOR = ("tokenizer.json", "tokenizer.model", "vocab.json and merges.txt", "vocab.txt")


class TokenizerFolder:
    """What a folder says about its tokenizer; files are read when they are asked for.

    Args:
        path: the folder.
        model_type: of the model's configuration; it tells how text is cut where no file does.
    """

    def __init__(self, path: Path, model_type: str = "") -> None:
        self.path = path
        self._model_type = model_type

    @cached_property
    def tokenizer(self) -> Mapping[str, Any]:
        """`tokenizer.json`, or what it would be for older files; empty where there is neither.

        Raises:
            ModelError: a file is damaged, or holds no tokenizer.
            UnsupportedError: files are older, and their tokenizer's class is not known.
        """
        tokenizer = self.json("tokenizer.json") or assembled(self, self._model_type)
        model = tokenizer.get("model")
        if tokenizer and not (isinstance(model, Mapping) and model.get("vocab")):
            raise ModelError(
                f"{self.path / 'tokenizer.json'} holds no tokenizer.",
                why="Its model has no vocabulary.",
            )
        return tokenizer

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """`tokenizer_config.json`."""
        return self.json("tokenizer_config.json")

    @cached_property
    def settings(self) -> FolderSettings:
        """What the other files say."""
        return read_settings(self.path)

    @cached_property
    def model(self) -> Path | None:
        """`tokenizer.model`, SentencePiece's file."""
        path = self.path / "tokenizer.model"
        return path if path.is_file() else None

    @cached_property
    def own_tokens(self) -> Mapping[int, AddedToken]:
        """The added tokens of `tokenizer.json`."""
        entries = self.tokenizer.get("added_tokens", ())
        return {entry["id"]: AddedToken.of(entry) for entry in entries}

    @cached_property
    def added_tokens(self) -> Mapping[int, AddedToken]:
        """All added tokens; what `tokenizer_config.json` says of one counts."""
        return {**self.own_tokens, **self.settings.added_tokens}

    def special_text(self, role: str) -> str:
        """The text of the token with a role (`bos`, `pad` ...); empty where none has it."""
        return self.settings.special_tokens.get(f"{role}_token", "")

    def json(self, name: str) -> Mapping[str, Any]:
        """An object of a file, empty where there is no such file.

        Raises:
            ModelError: the file is damaged.
        """
        return read_object(self.path / name)

    def text(self, name: str) -> str:
        """A text file as it is.

        Raises:
            ModelError: the file is no text.
        """
        return read_text(self.path / name)

    def has(self, *names: str) -> bool:
        """Whether all these files are there."""
        return all((self.path / name).is_file() for name in names)
