"""Models that are open: arrays in, arrays out; and of language models, text in and out."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from convkit.artifact import TensorSpec

if TYPE_CHECKING:
    import numpy as np

Feeds = Mapping[str, "np.ndarray[Any, Any]"]
"""Input name -> array."""
Outputs = Mapping[str, "np.ndarray[Any, Any]"]
"""Output name -> array."""
Sizes = Mapping[str, int]
"""Name of a dynamic dimension -> size."""


class Runner(abc.ABC):
    """An opened model that computes: arrays in, arrays out. A context manager.

    Attributes:
        inputs, outputs: specs; a dynamic dimension has a name. `outputs` may be empty until the
            first call where the format does not carry them.
        resolution: output name -> absolute error of the runtime itself, where it computes a number
            relative to another scale than the number's own; a smaller difference says nothing.
        channels_last: inputs and outputs whose channels were moved from the second axis to the
            last, when the model was converted, because its user asked for it.
        distributions: outputs that are logits and are judged as what they mean, probabilities: the
            runtime computes them in another way than a sum of products in float32.
        vectors: outputs that are embeddings and are judged by their direction, likewise.
        scheme: how its weights are quantized (`q4_k_m`), where the precision alone does not tell.
        rounds_activations: whether the runtime rounds activations, to eight bits or to bfloat16,
            whatever the weights are worth.
        without: outputs that other formats of this model have and this one has no place for.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    resolution: Mapping[str, float] = MappingProxyType({})
    channels_last: frozenset[str] = frozenset()
    distributions: frozenset[str] = frozenset()
    vectors: frozenset[str] = frozenset()
    scheme: str = ""
    rounds_activations: bool = False
    without: frozenset[str] = frozenset()

    @abc.abstractmethod
    def __call__(self, feeds: Feeds) -> Outputs:
        """Outputs by name, in the model's order. State a model keeps is reset before each call."""

    @abc.abstractmethod
    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Seeded inputs the model makes sense of, with these sizes for its dynamic dimensions.

        A name missing from `sizes` gets a default; a name the model does not have is ignored.
        """

    def can_take(self, feeds: Feeds) -> bool:
        """Whether the model can be asked this at all; what it cannot is not compared."""
        return True

    def synchronize(self) -> None:  # noqa: B027 - most runners have nothing to wait for
        """Waits until the device has finished; nothing to wait for on a CPU."""

    def close(self) -> None:  # noqa: B027 - most runners are freed with the object
        """Gives memory back. Also called on leaving the context."""

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session(Protocol):
    """A text in the making: what was fed stays in the model's cache."""

    def feed(self, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
        """Logits after each of these tokens: float32 (tokens, vocabulary).

        Raises:
            StepError: the context is full.
        """


class LanguageRunner(Runner):
    """A causal language model: token ids in, logits over a vocabulary out, and text both ways.

    It takes `input_ids` and maybe `attention_mask`, int64[batch, sequence], and gives `logits`
    float[batch, sequence, vocabulary].

    Attributes:
        end_tokens: ids that end a text.
        context_length: tokens it was made for; None where nothing says.
        chat_template: a Jinja template that turns messages into a prompt; "" where there is none.
        special_tokens: role -> text (`bos_token` -> `<s>`), for the chat template.
    """

    end_tokens: frozenset[int] = frozenset()
    context_length: int | None = None
    chat_template: str = ""
    special_tokens: Mapping[str, str] = MappingProxyType({})

    @abc.abstractmethod
    def encode(self, text: str, *, is_prompt: bool = True) -> list[int]:
        """Token ids of a text; a prompt gets the beginning that the model was trained with.

        Special tokens written out in the text (`<|im_start|>`) count as such.

        Raises:
            ModelError: there is no tokenizer beside the model.
        """

    @abc.abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones left out."""

    @abc.abstractmethod
    def session(self) -> Session:
        """A new text with an empty cache."""
