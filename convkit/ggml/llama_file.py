"""A GGUF file as llama.cpp reads it: metadata, and text to tokens and back."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from convkit.checkpoint.rows import Array
from convkit.errors import ModelError, SamplesError, StepError
from convkit.ggml.llama_abi import POOLING_NONE, library
from convkit.ggml.llama_context import Memory
from convkit.ggml.llama_refusals import alphabet, readable_header, refuse_file, refuse_text

_NO_VOCABULARY = 0
"""`LLAMA_VOCAB_TYPE_NONE`."""


class LlamaFile:
    """A GGUF file opened by llama.cpp.

    Args:
        path: the file; of a split model, the first part.
        vocab_only: leaves the weights alone.

    Raises:
        ModelError: there is no such file, or llama.cpp refuses it, with its reason.
        MissingRequirementError: llama.cpp is missing or cannot be called.
    """

    def __init__(self, path: Path, *, vocab_only: bool) -> None:
        self.path = path
        self._library = library()
        self._call = self._library.call
        self._memory = Memory(self._library, self._load(vocab_only))
        self._free = weakref.finalize(self, self._memory.free)
        self._vocabulary_pointer: int = self._call.llama_model_get_vocab(self._memory.model)

    def _load(self, vocab_only: bool) -> int:
        if not self.path.is_file():
            raise ModelError(f"There is no file {self.path}.")
        header = readable_header(self.path)
        if header is not None:
            refuse_file(header)
        self._alphabet = alphabet(header) if header is not None else None
        self._library.log.taken()
        parameters = self._library.model_parameters(vocabulary_only=vocab_only)
        model: int | None = self._call.llama_model_load_from_file(
            os.fsencode(self.path), parameters
        )
        if model is None:
            raise ModelError(f"llama.cpp cannot load {self.path}.", why=self._library.log.taken())
        return model

    def metadata(self, key: str) -> str | None:
        """A single value as text, `true` and `false` for Booleans; None where there is none.

        `ARCH` in the key stands for the architecture. Arrays are not among them.
        """
        name = key.replace("ARCH", self.architecture) if "ARCH" in key else key
        size = self._call.llama_model_meta_val_str(self._model, name.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        self._call.llama_model_meta_val_str(self._model, name.encode(), buffer, size + 1)
        return buffer.value.decode(errors="replace")

    @cached_property
    def architecture(self) -> str:
        """`llama`, `gemma2`, `bert` ..."""
        return self.metadata("general.architecture") or ""

    @cached_property
    def vocabulary_size(self) -> int:
        """Tokens in the vocabulary; as many logits."""
        return int(self._call.llama_vocab_n_tokens(self._vocabulary))

    @cached_property
    def embedding_length(self) -> int:
        """Width of the hidden states."""
        return int(self.metadata("ARCH.embedding_length") or 0)

    @cached_property
    def training_context(self) -> int:
        """Tokens it was trained on at a time; more are refused."""
        return int(self.metadata("ARCH.context_length") or 0)

    @cached_property
    def pooling(self) -> int:
        """How one embedding is made of many: `LLAMA_POOLING_TYPE_*`; 0 where nothing says."""
        return max(POOLING_NONE, int(self.metadata("ARCH.pooling_type") or POOLING_NONE))

    @cached_property
    def has_decoder(self) -> bool:
        """Whether tokens see earlier ones only, so that there are logits for the next."""
        return self.metadata("ARCH.attention.causal") != "false"

    @property
    def add_bos(self) -> bool:
        """Whether texts begin with a token of their own."""
        return bool(self._call.llama_vocab_get_add_bos(self._vocabulary))

    @cached_property
    def end_of_generation(self) -> frozenset[int]:
        """Tokens after which nothing is generated: ends of texts, of turns, of messages."""
        vocabulary, ends = self._vocabulary, self._call.llama_vocab_is_eog
        return frozenset(token for token in range(self.vocabulary_size) if ends(vocabulary, token))

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja template that turns messages into a prompt; None where there is none."""
        template: bytes | None = self._call.llama_model_chat_template(self._model, None)
        return None if template is None else template.decode(errors="replace")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text.

        Args:
            text: the text.
            add_special: puts the tokens before and behind it that the file asks for.
            parse_special: reads `<|im_start|>` and its like as the tokens they name, not as text.

        Raises:
            SamplesError: a character has no token, nor have its bytes.
            ModelError: the file has no tokenizer.
        """
        tokenizer = self._tokenizer
        if self._alphabet is not None:
            refuse_text(text, self._alphabet, self.path)
        content = text.encode(errors="replace")

        def fill(buffer: Array) -> int:
            address, room = buffer.ctypes.data, len(buffer)
            length: int = self._call.llama_tokenize(
                tokenizer, content, len(content), address, room, add_special, parse_special
            )
            return length

        tokens: list[int] = _filled(fill, len(content) + 16, np.int32).tolist()
        return tokens

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            tokens: ids.
            special: spells out control tokens.

        Raises:
            SamplesError: a token is not in the vocabulary.
            ModelError: the file has no tokenizer.
        """
        tokenizer, ids = self._tokenizer, self._ids(tokens)

        def fill(buffer: Array) -> int:
            address, room = buffer.ctypes.data, len(buffer)
            length: int = self._call.llama_detokenize(
                tokenizer, ids.ctypes.data, len(ids), address, room, not special, special
            )
            return length

        return _filled(fill, 16 * len(ids) + 64, np.uint8).tobytes().decode(errors="replace")

    def _ids(self, tokens: Sequence[int]) -> Array:
        """Ids as int32, contiguous, all known: llama.cpp ends the process over others."""
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise SamplesError(
                f"Tokens are whole numbers in a row, not {ids.dtype}{list(ids.shape)}."
            )
        unknown = (ids < 0) | (ids >= self.vocabulary_size)
        if unknown.any():
            raise SamplesError(
                f"There is no token {ids[unknown][0]} in {self.path}.",
                why=f"Its vocabulary has {self.vocabulary_size} tokens, counted from 0.",
            )
        return np.ascontiguousarray(ids, np.int32)

    @property
    def _model(self) -> int:
        if self._memory.model is None:
            raise StepError("This model was closed.")
        return self._memory.model

    @property
    def _vocabulary(self) -> int:
        return self._vocabulary_pointer if self._model else 0

    @property
    def _tokenizer(self) -> int:
        vocabulary = self._vocabulary
        if self._call.llama_vocab_type(vocabulary) == _NO_VOCABULARY:
            raise ModelError(f"{self.path} has no tokenizer.")
        return vocabulary


def _filled(fill: Callable[[Array], int], guess: int, dtype: type[Any]) -> Array:
    """What `fill` puts into a buffer; it answers the length, negative where that is too long."""
    buffer = np.empty(guess, dtype)
    length = fill(buffer)
    if length < 0:
        buffer = np.empty(-length, dtype)
        length = fill(buffer)
    return buffer[: max(length, 0)]
