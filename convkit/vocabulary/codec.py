"""Text to token ids and back, as the tokenizer files of a folder say; without transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from convkit.errors import MissingRequirementError, ModelError
from convkit.vocabulary.assembly import dumped
from convkit.vocabulary.folder import TokenizerFolder
from convkit.vocabulary.folder_settings import FolderSettings, read_settings
from convkit.vocabulary.text_files import read_object

_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
_PLAIN_CLASSES = frozenset(
    ("", "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizer",
     "TokenizersBackend", "SentencePieceBackend")
)  # fmt: skip
"""Tokenizers whose ids are those of their SentencePiece model; others move them (XGLM's by one).

Source: transformers, `models/*/tokenization_*.py`.
"""


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that `Codec` reads."""
    return bool(_files_of(folder))


def _files_of(folder: Path) -> tuple[str, ...]:
    """The files that are read, the first set of them that is there."""
    sets = (names for names in _FILES if all((folder / name).is_file() for name in names))
    return next(sets, ())


class _Vocabulary(Protocol):
    """Pieces of text and their ids, whatever package reads them."""

    beginning: tuple[int, ...]
    ending: tuple[int, ...]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...

    def id_of(self, piece: str) -> int | None: ...


class Codec:
    """The two ways between text and token ids.

    Args:
        folder: holds `tokenizer.json`, else `vocab.json` with `merges.txt`, or `tokenizer.model`.

    Attributes:
        settings: what the folder's JSON files say.
        beginning: ids that the folder puts before a text (`<s>`); often none.
        ending: ids that it puts behind a text.
        end_tokens: ids that end a text that is being generated, ends of a chat turn included.

    Raises:
        ModelError: there is no tokenizer, or it is damaged.
        MissingRequirementError: the package that reads it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.settings = read_settings(folder)
        self._vocabulary = _vocabulary(folder, self.settings)
        self.beginning = self._vocabulary.beginning
        self.ending = self._vocabulary.ending
        named = map(self._vocabulary.id_of, self.settings.end_texts)
        self.end_tokens = self.settings.end_ids | {number for number in named if number is not None}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added before or behind it; special tokens in it count as such."""
        return self._vocabulary.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids, special ones left out; U+FFFD stands for bytes that are no character."""
        return self._vocabulary.decode(tokens)


def _vocabulary(folder: Path, settings: FolderSettings) -> _Vocabulary:
    files = _files_of(folder)
    if not files:
        names = ", ".join(" with ".join(names) for names in _FILES)
        raise ModelError(
            f"There is no tokenizer in {folder.resolve()}.",
            why=f"Looked for: {names}",
            hint="Copy the tokenizer files from where the model comes from. "
            "A conversion into a folder brings them along:  -o FOLDER",
        )
    file = folder / files[0]
    if files[0] == "tokenizer.model":
        return _SentencePiece(file, settings)
    if files[0] == "tokenizer.json":
        return _Tokenizers(file, file.read_bytes(), settings)
    model_type = str(read_object(folder / "config.json").get("model_type") or "")
    assembled = TokenizerFolder(folder, model_type).tokenizer
    return _Tokenizers(file, dumped(dict(assembled)).encode(), settings)


class _Tokenizers:
    """A `tokenizer.json`, or what it would be for the older `file`."""

    def __init__(self, file: Path, content: bytes, settings: FolderSettings) -> None:
        try:
            import tokenizers
        except ImportError as cause:
            raise _missing("tokenizers", file) from cause
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as cause:  # the package raises Exception itself
            raise _damaged(file, cause) from cause
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._add(tokenizers.AddedToken, settings)
        self.beginning, self.ending = self._around()

    def encode(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def id_of(self, piece: str) -> int | None:
        number: int | None = self._tokenizer.token_to_id(piece)
        return number

    def _add(self, kind: Any, settings: FolderSettings) -> None:
        """Tokens that only the settings beside the file know, as transformers adds them."""
        known = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        for _, token in sorted(settings.added_tokens.items()):
            if token.text not in known:
                added = kind(token.text, special=token.is_special, **token.options)
                self._tokenizer.add_tokens([added])
                known.add(token.text)
        named = [text for text in settings.special_tokens.values() if text not in known]
        self._tokenizer.add_special_tokens(
            [kind(text, special=True, normalized=False) for text in dict.fromkeys(named)]
        )

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the file's post-processor puts before and behind a text."""
        probe = self._tokenizer.encode("a", add_special_tokens=True)
        own = [index for index, special in enumerate(probe.special_tokens_mask) if not special]
        if not own:
            return (), ()
        return tuple(probe.ids[: own[0]]), tuple(probe.ids[own[-1] + 1 :])


class _SentencePiece:
    """A `tokenizer.model` that has no `tokenizer.json` beside it."""

    def __init__(self, file: Path, settings: FolderSettings) -> None:
        kind = settings.tokenizer_class.removesuffix("Fast")
        if kind not in _PLAIN_CLASSES:
            raise ModelError(
                f"{file} belongs to a {kind}, whose ids need not be those of the file.",
                hint='Write a tokenizer.json beside it:  python -c "from transformers import '
                f"AutoTokenizer; AutoTokenizer.from_pretrained('{file.parent}')"
                f".save_pretrained('{file.parent}')\"",
            )
        try:
            import sentencepiece
        except ImportError as cause:
            raise _missing("sentencepiece", file) from cause
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except Exception as cause:  # RuntimeError, or OSError on Windows
            raise _damaged(file, cause) from cause
        self._added = {token.text: number for number, token in settings.added_tokens.items()}
        self._added |= {piece: i for i, piece in enumerate(self._pieces()) if self._is_control(i)}
        self._texts = {number: text for text, number in self._added.items()}
        self._special = {i for i in self._texts if self._is_hidden(i, settings)}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self.beginning = self._stated(settings, "bos_token", settings.adds_beginning, usual=True)
        self.ending = self._stated(settings, "eos_token", settings.adds_ending, usual=False)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._splitter.split(text) if self._added else [text]:
            if part in self._added:
                ids.append(self._added[part])
            elif part:
                ids += self._model.encode(part)
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        pieces = [""]
        run: list[int] = []
        for token in (*tokens, None):
            if token is not None and token not in self._texts:
                run.append(token)
                continue
            pieces.append(self._model.decode(run) if run else "")
            run = []
            if token is not None and token not in self._special:
                pieces.append(self._texts[token])
        return "".join(pieces)

    def id_of(self, piece: str) -> int | None:
        if piece in self._added:
            return self._added[piece]
        number: int = self._model.piece_to_id(piece)
        return None if number == self._model.unk_id() and piece != self._unknown() else number

    def _pieces(self) -> list[str]:
        return [self._model.id_to_piece(index) for index in range(len(self._model))]

    def _is_control(self, index: int) -> bool:
        return bool(self._model.is_control(index) or self._model.is_unknown(index))

    def _is_hidden(self, index: int, settings: FolderSettings) -> bool:
        if index in settings.added_tokens:
            token = settings.added_tokens[index]
            return token.is_special or token.text in settings.special_tokens.values()
        return True

    def _unknown(self) -> str:
        piece: str = self._model.id_to_piece(self._model.unk_id())
        return piece

    def _stated(
        self, settings: FolderSettings, role: str, stated: bool | None, *, usual: bool
    ) -> tuple[int, ...]:
        """The id of a role if texts get it; what nobody states is as in transformers' Llama."""
        if not (usual if stated is None else stated):
            return ()
        default = self._model.bos_id() if role == "bos_token" else self._model.eos_id()
        number = self.id_of(settings.special_tokens.get(role, ""))
        number = default if number is None else number
        return (number,) if number >= 0 else ()


def _missing(package: str, file: Path) -> MissingRequirementError:
    return MissingRequirementError(
        f"Reading {file} needs {package}, which is not installed.", hint=f"pip install {package}"
    )


def _damaged(file: Path, cause: Exception) -> ModelError:
    return ModelError(
        f"{file} is no tokenizer.",
        why=f"{type(cause).__name__}: {str(cause)[:200]}",
        hint="Copy or download it again.",
    )
