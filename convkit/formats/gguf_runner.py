"""Runs GGUF models on llama.cpp: logits for every token, or a vector for every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact
from convkit.errors import ModelError, StepError
from convkit.formats.gguf_description import gives_embeddings, scheme_of, signature_of
from convkit.formats.language_inputs import padding_mask, text_rows
from convkit.ggml.header import Header, read_header
from convkit.ggml.kinds import require_model
from convkit.ggml.llama import LlamaModel
from convkit.ggml.modelfile import special_tokens
from convkit.samples import size_of
from convkit.step import Feeds, LanguageRunner, Outputs, Runner, Session, Sizes
from convkit.vocabulary.sample_text import SAMPLE_TEXT

if TYPE_CHECKING:
    import numpy as np

_EXACT = ("F32", "F16", "F64", "I8", "I16", "I32", "I64")
"""Types of weights whose products llama.cpp computes without rounding activations further than to
half precision. Source: `vec_dot_type` in ggml-cpu.c."""

_PLAIN_TOKENS = 8
"""Where a vocabulary has no text, ids above the first few are drawn: those tend to be special."""


def open_gguf(artifact: Artifact) -> Runner:
    """A runner for what the file holds.

    Raises:
        ModelError: it is no model by itself, or llama.cpp refuses it.
    """
    header = read_header(artifact.path)
    require_model(header)
    model = LlamaModel(artifact.path)
    if gives_embeddings(header):
        return GgufEmbeddingRunner(header, model)
    return GgufRunner(header, model)


class GgufRunner(LanguageRunner):
    """A causal language model on llama.cpp.

    Args:
        header: of the file.
        model: opened; closed with the runner.
    """

    distributions = frozenset({"logits"})

    def __init__(self, header: Header, model: LlamaModel) -> None:
        self.inputs, self.outputs = signature_of(header)
        self.scheme, self.rounds_activations = scheme_of(header), _rounds(header)
        self.context_length = header.get("ARCH.context_length")
        self.chat_template = model.chat_template or ""
        self.special_tokens = special_tokens(header.metadata)
        self.end_tokens = model.end_of_generation
        self._model = model

    def __call__(self, feeds: Feeds) -> Outputs:
        """`logits` float32 (batch, sequence, vocabulary); zeros where the mask is."""
        return {"logits": _by_row(feeds, self._model.logits, self._model.vocabulary_size)}

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Rows of text; in a batch the last ends in padding."""
        return _example(self._model, sizes, seed)

    def encode(self, text: str, *, is_prompt: bool = True) -> list[int]:
        """Token ids of a text."""
        return self._model.tokenize(text, add_special=is_prompt, parse_special=True)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self._model.detokenize(tokens)

    def session(self) -> Session:
        """A new text with an empty cache."""
        return self._model.session()

    def close(self) -> None:
        """Gives memory back."""
        self._model.close()


class GgufEmbeddingRunner(Runner):
    """A model of embeddings on llama.cpp; what is pooled is not asked for.

    Args:
        header: of the file.
        model: opened; closed with the runner.
    """

    vectors = frozenset({"last_hidden_state"})
    without = frozenset({"pooler_output"})

    def __init__(self, header: Header, model: LlamaModel) -> None:
        self.inputs, self.outputs = signature_of(header)
        self.scheme, self.rounds_activations = scheme_of(header), _rounds(header)
        self._model = model

    def __call__(self, feeds: Feeds) -> Outputs:
        """`last_hidden_state` float32 (batch, sequence, width); zeros where the mask is."""
        width = self._model.embedding_length
        return {"last_hidden_state": _by_row(feeds, self._model.embeddings, width)}

    def can_take(self, feeds: Feeds) -> bool:
        """llama.cpp counts every token as one of the first segment."""
        return "token_type_ids" not in feeds or not feeds["token_type_ids"].any()

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Rows of text; in a batch the last ends in padding."""
        return _example(self._model, sizes, seed)

    def close(self) -> None:
        """Gives memory back."""
        self._model.close()


def _rounds(header: Header) -> bool:
    return any(tensor.kind.name not in _EXACT for tensor in header.tensors)


def _by_row(feeds: Feeds, compute: Any, width: int) -> np.ndarray[Any, Any]:
    """What llama.cpp computes for the tokens of each row that the mask leaves.

    Raises:
        StepError: a mask with gaps, whose positions llama.cpp would count otherwise.
    """
    import numpy as np

    ids = feeds["input_ids"]
    mask = np.asarray(feeds.get("attention_mask", np.ones_like(ids)), bool)
    made = np.zeros((*ids.shape, width), np.float32)
    for row, (tokens, kept) in enumerate(zip(ids, mask, strict=True)):
        places = np.flatnonzero(kept)
        if not len(places):
            continue
        if len(places) != places[-1] + 1:
            raise StepError("llama.cpp takes masks that end in padding, and this one does not.")
        made[row, : len(places)] = compute(tokens[: len(places)].tolist())
    return made


def _example(model: LlamaModel, sizes: Sizes, seed: int) -> Feeds:
    import numpy as np

    shape = (size_of("batch", sizes), size_of("sequence", sizes))
    try:
        text = model.tokenize(SAMPLE_TEXT, add_special=False, parse_special=False)
        whole = model.tokenize("", add_special=True, parse_special=False)
    except ModelError:  # a vocabulary without text
        text, whole = [], []
    beginning = whole[:1] if model.add_bos else []
    if not text:
        count = model.vocabulary_size
        low = min(_PLAIN_TOKENS, count - 1)
        text = np.random.default_rng(seed).integers(low, count, 4 * shape[1]).tolist()
    ids = text_rows(text, beginning, shape, seed)
    return {"input_ids": ids, "attention_mask": padding_mask(ids)}
