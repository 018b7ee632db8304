"""Runs a causal language model of transformers on PyTorch's eager CPU kernels, text in and out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import TensorSpec
from convkit.checkpoint.folder_files import continues_texts, read_config
from convkit.checkpoint.quantization import quantization_of
from convkit.errors import UnsupportedError
from convkit.formats.folder_language import FolderLanguage, RecomputingSession, check_context
from convkit.formats.torch_runner import Example, TorchRunner
from convkit.step import Feeds, Session, Sizes
from convkit.torch_values import parameters_of

if TYPE_CHECKING:
    import numpy as np
    import torch

_TEXT = {"input_ids", "attention_mask"}
_BOTH_WAYS = ("XLNetLMHeadModel", "XLMWithLMHeadModel")
"""Look at both sides of a token, whatever their names say."""


def is_causal(network: torch.nn.Module, inputs: Sequence[TensorSpec]) -> bool:
    """Whether a network continues texts: each token is judged by those before it alone."""
    name = type(network).__name__
    config = network.config
    if not continues_texts(name) or name in _BOTH_WAYS or {s.name for s in inputs} - _TEXT:
        return False
    # BERT and its kind have a head for this use, but look both ways unless they are set to it.
    is_encoder = hasattr(config, "add_cross_attention") and not getattr(config, "is_decoder", True)
    return "input_ids" in {spec.name for spec in inputs} and not is_encoder


class TorchLanguageRunner(TorchRunner, FolderLanguage):
    """A causal language model out of a Hugging Face folder, at the precision of its weights."""

    def __init__(
        self, network: torch.nn.Module, inputs: Sequence[TensorSpec], example: Example, folder: Path
    ) -> None:
        TorchRunner.__init__(self, network, inputs, example)
        FolderLanguage.__init__(self, folder)
        self.scheme = _scheme_of(folder)
        if self.scheme:  # logits of quantized weights differ where predictions do not
            self.distributions = frozenset(("logits",))
        self._takes_cache = "past_key_values" in parameters_of(network)

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Rows of real text where the folder has a tokenizer, else random ids."""
        feeds = dict(super().example(sizes, seed))
        ids = feeds["input_ids"]
        network: Any = self.network
        vocabulary_size = int(network.config.get_text_config().vocab_size)
        rows = self.rows_of_text((ids.shape[0], ids.shape[1]), seed, vocabulary_size)
        return feeds if rows is None else feeds | {"input_ids": rows}

    def session(self) -> Session:
        """A new text; without keys and values to keep, as in Mamba, it is computed anew."""
        if self._takes_cache:
            return _CachedSession(self)
        return RecomputingSession(lambda ids: self.continued(ids, None)[0], self.context_length)

    def continued(self, tokens: Sequence[int], cache: Any) -> tuple[np.ndarray[Any, Any], Any]:
        """Logits float32 (tokens, vocabulary) after what `cache` holds, and the cache with them.

        Args:
            tokens: what comes next.
            cache: transformers' own object; None to begin, or for a network that has none.
        """
        import torch

        named = {"past_key_values": cache, "use_cache": True} if self._takes_cache else {}
        with torch.inference_mode():
            result = self.network(input_ids=torch.tensor([list(tokens)]), **named)
        kept = result.past_key_values if self._takes_cache else None
        return result.logits[0].float().numpy(), kept


def _scheme_of(folder: Path) -> str:
    """How the weights are quantized, of the schemes there are limits for; else empty."""
    try:
        found = quantization_of(read_config(folder), folder)
    except UnsupportedError:  # transformers reads it
        return ""
    return found.scheme if found else ""


class _CachedSession(Session):
    def __init__(self, runner: TorchLanguageRunner) -> None:
        self._runner = runner
        self._cache: Any = None
        self._count = 0

    def feed(self, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
        check_context(self._count + len(tokens), self._runner.context_length)
        logits, self._cache = self._runner.continued(tokens, self._cache)
        self._count += len(tokens)
        return logits
