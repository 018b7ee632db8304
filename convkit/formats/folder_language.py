"""A language model whose configuration and tokenizer lie in a folder, whatever computes it.

Tokenizers are imported when a text comes: every command imports this module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.errors import MissingRequirementError, ModelError, StepError
from convkit.formats.language_inputs import text_rows
from convkit.step import LanguageRunner, Session

if TYPE_CHECKING:
    import numpy as np

    from convkit.vocabulary.codec import Codec


class FolderLanguage(LanguageRunner):
    """Text in and out as the files of a folder say; what computes is up to a subclass.

    Args:
        folder: holds `config.json` and tokenizer files, as far as there are any.

    Raises:
        ModelError: one of its JSON files is damaged.
    """

    def __init__(self, folder: Path) -> None:
        from convkit.vocabulary.folder_settings import read_settings

        settings = read_settings(folder)
        self.context_length = settings.context_length
        self.chat_template = settings.chat_template
        self.special_tokens = settings.special_tokens
        self._folder = folder
        self._end_ids = settings.end_ids

    @functools.cached_property
    def end_tokens(self) -> frozenset[int]:  # type: ignore[override]
        """Ids that end a text; looked up when they are needed, which reads the tokenizer."""
        from convkit.vocabulary.codec import has_tokenizer

        return self._codec.end_tokens if has_tokenizer(self._folder) else self._end_ids

    def encode(self, text: str, *, is_prompt: bool = True) -> list[int]:
        """Token ids of a text; a prompt gets the beginning that the folder states.

        Raises:
            ModelError: there is no tokenizer beside the model, or it is damaged.
            MissingRequirementError: the package that reads it is missing.
        """
        beginning = self._codec.beginning if is_prompt else ()
        return [*beginning, *self._codec.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones left out."""
        return self._codec.decode(tokens)

    def rows_of_text(
        self, shape: tuple[int, int], seed: int, vocabulary_size: int
    ) -> np.ndarray[Any, Any] | None:
        """Ids int64 (batch, sequence) of real text; None where the folder has no usable tokenizer.

        Ids that the network has no embedding for are left out.
        """
        from convkit.vocabulary.codec import has_tokenizer
        from convkit.vocabulary.sample_text import SAMPLE_TEXT

        if not has_tokenizer(self._folder):
            return None
        try:
            text = [i for i in self._codec.encode(SAMPLE_TEXT) if i < vocabulary_size]
            beginning = [i for i in self._codec.beginning if i < vocabulary_size]
        except (ModelError, MissingRequirementError):  # numbers can be compared all the same
            return None
        return text_rows(text, beginning, shape, seed) if text else None

    @functools.cached_property
    def _codec(self) -> Codec:
        from convkit.vocabulary.codec import Codec

        return Codec(self._folder)


class RecomputingSession(Session):
    """A text in the making for a network without a cache: everything is computed again each time.

    Args:
        compute: logits float32 (tokens, vocabulary) of ids.
        context_length: tokens the network takes; None where nothing says.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[int]], np.ndarray[Any, Any]],
        context_length: int | None,
    ) -> None:
        self._compute = compute
        self._context_length = context_length
        self._tokens: list[int] = []

    def feed(self, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
        """Logits after each of these tokens: float32 (tokens, vocabulary).

        Raises:
            StepError: the context is full.
        """
        check_context(len(self._tokens) + len(tokens), self._context_length)
        self._tokens += tokens
        return self._compute(self._tokens)[-len(tokens) :]


def check_context(wanted: int, context_length: int | None) -> None:
    """Whether a text of so many tokens fits.

    Raises:
        StepError: it does not.
    """
    if context_length is not None and wanted > context_length:
        raise StepError(
            f"The context is full: it holds {context_length} tokens, {wanted} are wanted.",
            hint="Ask for fewer tokens:  -n 32",
        )
