"""Runs GGUF files with llama.cpp: logits and embeddings of tokens, generation with a cache.

It computes as exactly as llama.cpp can: on the CPU, the cache in F32, attention not fused. An F32
file then agrees with PyTorch to rounding. A quantized one does not, because llama.cpp quantizes
what it multiplies with quantized weights as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convkit.checkpoint.rows import Array
from convkit.errors import SamplesError, StepError, UnsupportedError
from convkit.ggml.llama_abi import POOLING_NONE, POOLING_RANK, UNSPECIFIED, threads_sleep
from convkit.ggml.llama_context import CAPACITY_STEP, Context
from convkit.ggml.llama_file import LlamaFile
from convkit.processors import usable_processors

_LONGEST_BATCH = 512
_BATCH_LOGITS = 1 << 24
"""Logits held for a batch: 64 MiB, whatever the vocabulary."""

_SMALL_MODEL_PARAMETERS = 1 << 22
"""Below, threads would wait for each other, spinning, longer than they compute."""
_LARGE_MODEL_PARAMETERS = 1_000_000_000
"""From here on, threads that sleep are worth waking for a single token.

Measured on two processors, tokens/s with one thread and two: SmolLM2-135M (Q4_1) 113 and 35, a
Llama of 1.07 billion weights (Q4_K_M) 31 and 28.
"""


class LlamaModel(LlamaFile):
    """A GGUF file opened by llama.cpp, to be computed. A context manager; for one thread at a time.

    Args:
        path: the file; of a split model, the first part.
        vocab_only: leaves the weights alone: enough for metadata, tokens and the chat template.
        threads: that compute; None for as many as the model and the processors are good for.

    Raises:
        ModelError: there is no such file, or llama.cpp refuses it, with its reason.
        MissingRequirementError: llama.cpp is missing or cannot be called.
    """

    def __init__(self, path: Path, *, vocab_only: bool = False, threads: int | None = None) -> None:
        super().__init__(path, vocab_only=vocab_only)
        self._has_weights = not vocab_only
        self._threads = threads or self._suitable_thread_count()
        self._threads_for_one = threads or self._suitable_thread_count_for_one()
        self._contexts: dict[tuple[int, bool], Context] = {}

    def close(self) -> None:
        """Gives memory back, that of its sessions too; nothing can be asked of it afterwards."""
        self._free()
        self._contexts.clear()

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits after each of these tokens, which begin a text: float32 (tokens, vocabulary).

        Raises:
            SamplesError: a token is not in the vocabulary.
            StepError: more tokens than the model was trained on, or llama.cpp fails.
            UnsupportedError: the model gives embeddings only.
        """
        self._require_logits()
        ids = self._ids(tokens)
        return self._emptied(len(ids), POOLING_NONE, embeds=False).decode(ids)

    def session(self) -> LlamaSession:
        """A text in the making: tokens once fed stay in its cache.

        Raises:
            UnsupportedError: the model gives embeddings only.
        """
        self._require_logits()
        return LlamaSession(self)

    def embeddings(self, tokens: Sequence[int]) -> Array:
        """Hidden states behind the last norm: float32 (tokens, width).

        Raises:
            SamplesError: a token is not in the vocabulary.
            StepError: more tokens than the model was trained on, or llama.cpp fails.
        """
        self._require_weights()
        ids = self._ids(tokens)
        return self._emptied(len(ids), POOLING_NONE, embeds=True).decode(ids)

    def pooled(self, tokens: Sequence[int]) -> Array:
        """One embedding of all tokens, pooled as the file says, not normalized: float32 (width,).

        Raises:
            SamplesError: no token, or one that is not in the vocabulary.
            StepError: more tokens than the model was trained on, or llama.cpp fails.
            UnsupportedError: the file says no way of pooling, or ranks instead.
        """
        self._require_weights()
        if self.pooling in (POOLING_NONE, POOLING_RANK):
            raise UnsupportedError(
                f"{self.path} does not say how embeddings are pooled.",
                why=f"Its {self.architecture}.pooling_type is {self.pooling}.",
            )
        ids = self._ids(tokens)
        if not len(ids):
            raise SamplesError("There are no tokens to pool.")
        return self._emptied(len(ids), UNSPECIFIED, embeds=True).pool(ids)

    def _emptied(self, count: int, pooling: int, *, embeds: bool) -> Context:
        """A context without tokens, long enough for so many: the last of its kind if possible."""
        self._require_room(count)
        kind = pooling, embeds
        context = self._contexts.get(kind)
        if context is None or context.capacity < count:
            if context is not None:
                context.close()
            context = self._contexts[kind] = self._new_context(count, pooling, embeds=embeds)
        context.clear()
        return context

    def _new_context(self, count: int, pooling: int, *, embeds: bool) -> Context:
        capacity = -(-max(count, 1) // CAPACITY_STEP) * CAPACITY_STEP
        batch = capacity  # tokens that see later ones, or are pooled, are computed together
        width = int(self._call.llama_model_n_embd_out(self._model))
        if not embeds:
            width = self.vocabulary_size
            longest = min(_LONGEST_BATCH, _BATCH_LOGITS // width // 32 * 32)
            batch = min(capacity, max(32, longest))
        return Context(
            self._memory,
            capacity=capacity,
            batch=batch,
            pooling=pooling,
            embeds=embeds,
            width=width,
            threads=self._threads,
            threads_for_one=self._threads_for_one,
        )

    def _suitable_thread_count(self) -> int:
        if self._call.llama_model_n_params(self._model) < _SMALL_MODEL_PARAMETERS:
            return 1
        return usable_processors()

    def _suitable_thread_count_for_one(self) -> int:
        """Threads for a token by itself, as texts are generated."""
        is_large = self._call.llama_model_n_params(self._model) >= _LARGE_MODEL_PARAMETERS
        return self._threads if is_large or not threads_sleep() else 1

    def _require_room(self, count: int) -> None:
        """Refuses more positions than the model has, over which llama.cpp may end the process."""
        if self.training_context and count > self.training_context:
            raise StepError(
                f"The context is full: {count} tokens are too many for {self.path}.",
                why=f"It was trained on {self.training_context} at a time.",
                context_length=self.training_context,
            )

    def _require_logits(self) -> None:
        self._require_weights()
        if not self.has_decoder:
            raise UnsupportedError(
                f"{self.path} gives embeddings, no logits.",
                why=f"In this {self.architecture} model, tokens see those that follow.",
            )

    def _require_weights(self) -> None:
        if not self._has_weights:
            raise StepError(f"{self.path} was opened for its vocabulary only.")
        if self._call.llama_model_has_encoder(self._model):
            raise UnsupportedError(
                f"{self.path} has an encoder beside its decoder ({self.architecture}).",
                why="convkit runs models that are one or the other.",
            )


class LlamaSession:
    """A text in the making, whose cache grows with it. `LlamaModel.session` makes one."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._context: Context | None = None
        self._position = 0

    @property
    def position(self) -> int:
        """Tokens fed so far."""
        return self._position

    def feed(self, tokens: Sequence[int]) -> Array:
        """Logits after each of these tokens: float32 (tokens, vocabulary).

        Args:
            tokens: ids that follow those fed before.

        Raises:
            SamplesError: a token is not in the vocabulary.
            StepError: the context is full, the model was closed, or llama.cpp fails.
        """
        ids = self._model._ids(tokens)
        logits = self._room(len(ids)).decode(ids)
        self._position += len(ids)
        return logits

    def close(self) -> None:
        """Gives the cache's memory back; what is fed afterwards begins a new text."""
        if self._context is not None:
            self._context.close()
        self._context, self._position = None, 0

    def _room(self, count: int) -> Context:
        """The context, long enough for so many more tokens; it doubles where it is not."""
        needed = self._position + count
        self._model._require_room(needed)
        old = self._context
        if old is not None and needed <= old.capacity:
            return old
        length = needed if old is None else max(needed, 2 * old.capacity)
        self._context = self._model._new_context(length, POOLING_NONE, embeds=False)
        if old is not None:
            self._context.take_over(old)
            old.close()
        return self._context
