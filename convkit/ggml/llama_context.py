"""What llama.cpp holds in memory: a model, and contexts that compute with it."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from convkit.checkpoint.rows import Array
from convkit.errors import StepError
from convkit.ggml.llama_abi import UNSPECIFIED, Batch, Library, Parameters

CAPACITY_STEP = 256
"""llama.cpp rounds the length of a context up to a multiple of it."""


class Memory:
    """A model and its contexts, freed in the order that llama.cpp asks for: the model last.

    Attributes:
        library: llama.cpp.
        model: its pointer; None once freed.
    """

    def __init__(self, library: Library, model: int) -> None:
        self.library = library
        self.model: int | None = model
        self._contexts: set[int] = set()

    def new_context(self, parameters: Parameters) -> int:
        """A context's pointer.

        Raises:
            StepError: llama.cpp refuses, with its reason.
        """
        log = self.library.log
        log.taken()
        context: int | None = self.library.call.llama_init_from_model(self.model, parameters)
        if context is None:
            raise StepError("llama.cpp cannot prepare its computation.", why=log.taken())
        self._contexts.add(context)
        return context

    def require(self, context: int) -> None:
        """Makes sure that a context was not freed, by itself or with its model.

        Raises:
            StepError: it was.
        """
        if context not in self._contexts:
            raise StepError("This model was closed.")

    def free_context(self, context: int) -> None:
        """Frees a context, once."""
        if context in self._contexts:
            self._contexts.remove(context)
            self.library.call.llama_free(context)

    def free(self) -> None:
        """Frees everything, once."""
        for context in tuple(self._contexts):
            self.free_context(context)
        if self.model is not None:
            self.library.call.llama_model_free(self.model)
        self.model = None


class Context:
    """Computes one sequence of tokens.

    Args:
        memory: of the model.
        capacity: tokens it can remember, a multiple of `CAPACITY_STEP`.
        batch: tokens computed at a time.
        pooling: `LLAMA_POOLING_TYPE_*`.
        embeds: it gives embeddings; logits otherwise.
        width: length of either.
        threads: that compute.
        threads_for_one: that compute a token by itself.

    Attributes:
        close: gives its memory back; may be called again.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        capacity: int,
        batch: int,
        pooling: int,
        embeds: bool,
        width: int,
        threads: int,
        threads_for_one: int,
    ) -> None:
        self._memory, self._library, self._call = memory, memory.library, memory.library.call
        self.capacity, self._batch, self._width, self._embeds = capacity, batch, width, embeds
        self._address = memory.new_context(
            self._library.context_parameters(capacity=capacity, batch=batch, pooling=pooling)
        )
        self.close = weakref.finalize(self, memory.free_context, self._address)
        self._require_taken(pooling)
        self._call.llama_set_n_threads(self._pointer, threads_for_one, threads)
        self._call.llama_set_embeddings(self._pointer, embeds)

    @property
    def _pointer(self) -> int:
        self._memory.require(self._address)
        return self._address

    def _require_taken(self, pooling: int) -> None:
        """Goes no further where llama.cpp read other parameters than were meant."""
        call, pointer = self._call, self._pointer
        lengths = self.capacity, self._batch, self._batch
        found = call.llama_n_ctx(pointer), call.llama_n_batch(pointer), call.llama_n_ubatch(pointer)
        pooled = call.llama_pooling_type(pointer)
        if found != lengths or pooling not in (UNSPECIFIED, pooled):
            self.close()
            raise self._library.unknown(
                f"A context for {(*lengths, pooling)} came out as {(*found, pooled)}."
            )

    def clear(self) -> None:
        """Forgets all tokens."""
        memory = self._call.llama_get_memory(self._pointer)
        if memory is not None:  # encoders remember nothing
            self._call.llama_memory_clear(memory, True)

    def take_over(self, shorter: Context) -> None:
        """Remembers what a shorter context does.

        Raises:
            StepError: llama.cpp cannot copy it.
        """
        self._library.log.taken()
        size = self._call.llama_state_seq_get_size(shorter._pointer, 0)
        state = np.empty(size, np.uint8)
        address = state.ctypes.data
        written = self._call.llama_state_seq_get_data(shorter._pointer, address, size, 0)
        if not self._call.llama_state_seq_set_data(self._pointer, address, written, 0):
            raise StepError(
                f"llama.cpp cannot move its cache to a context of {self.capacity} tokens.",
                why=self._library.log.taken(),
            )

    def decode(self, tokens: Array) -> Array:
        """Logits or embeddings after each token: float32 (tokens, width).

        Raises:
            StepError: llama.cpp fails, with its reason.
        """
        result = np.empty((len(tokens), self._width), np.float32)
        for begin in range(0, len(tokens), self._batch):
            piece = tokens[begin : begin + self._batch]
            self._compute(piece)
            result[begin : begin + len(piece)] = self._rows(len(piece))
        return result

    def pool(self, tokens: Array) -> Array:
        """The embedding of all tokens, at most a batch: float32 (width,).

        Raises:
            StepError: llama.cpp fails, with its reason.
        """
        self._compute(tokens)
        pooled = self._call.llama_get_embeddings_seq(self._pointer, 0)
        row: Array = self._viewed(pooled, 1)[0].copy()
        return row

    def _compute(self, tokens: Array) -> None:
        """Computes a batch, a row for each token."""
        self._library.log.taken()
        asked = np.ones(len(tokens), np.int8)
        batch = Batch(len(tokens), tokens.ctypes.data, outputs=asked.ctypes.data)
        status = self._call.llama_decode(self._pointer, batch)
        if status:
            raise StepError(
                f"llama.cpp cannot compute {len(tokens)} more tokens (status {status}).",
                why=self._library.log.taken(),
            )

    def _rows(self, count: int) -> Array:
        call = self._call
        read = call.llama_get_embeddings if self._embeds else call.llama_get_logits
        return self._viewed(read(self._pointer), count)

    def _viewed(self, found: Any, count: int) -> Array:
        """Rows where llama.cpp holds them, until it computes again."""
        if not found:
            raise StepError("llama.cpp computed nothing.", why=self._library.log.taken())
        return np.ctypeslib.as_array(found, (count, self._width))
