"""A configuration that knows what was read of it, so that nothing in it is ignored silently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convkit.errors import ModelError, UnsupportedError

_INERT = frozenset((
    # what it is and who made it
    "architectures", "auto_map", "model_type", "name_or_path", "_name_or_path",
    "_model_name_or_path", "torch_dtype", "dtype", "transformers_version", "transformers.js_config",
    "quantization_config", "task_specific_params", "custom_pipelines", "unsloth_fixed",
    "unsloth_version",
    # tokens and generation
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "max_length",
    "use_cache", "cache_implementation", "pretraining_tp", "is_llama_config",
    # training and analysis
    "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout",
    "embedding_dropout", "initializer_range", "gradient_checkpointing", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise", "output_attentions", "output_hidden_states",
    "return_dict", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "id2label", "label2id", "chunk_size_feed_forward",
    # how transformers computes attention, not what
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "reorder_and_upcast_attn",
    # told again by layer_types
    "_sliding_window_pattern",
))  # fmt: skip
"""Keys that no network's results depend on.

Source: transformers 5.23, `configuration_utils.py` and the modeling files of the families here.
"""

_FORBIDDEN = {
    "add_cross_attention": "it attends to an encoder",
    "is_encoder_decoder": "it has an encoder",
    "use_bidirectional_attention": "its attention looks ahead",
    "pruned_heads": "heads were cut out of it",
    "vision_config": "it sees images",
    "audio_config": "it hears sound",
}
"""Keys that, where they hold anything, make another network of it."""


class Settings:
    """A `config.json`, with the defaults that the reader of a family gives.

    Raises:
        UnsupportedError: it describes more than a decoder of text.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._read: set[str] = set()
        for key, why in _FORBIDDEN.items():
            if self.get(key):
                raise self.refusal(f"{key} = {document[key]!r}", why)

    @property
    def family(self) -> str:
        """The model type."""
        return str(self._document.get("model_type"))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; `default` where it is missing or null."""
        self._read.add(key)
        value = self._document.get(key)
        return default if value is None else value

    def number(self, *keys: str, default: int | None = None) -> int:
        """A positive whole number, under the first of these keys that there is.

        Raises:
            ModelError: there is none, or it is no such number.
        """
        found = [value for value in map(self.get, keys) if value is not None]
        value = found[0] if found else default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(
                f"config.json has '{keys[0]}': {value!r}, which is no positive whole number.",
                hint="Copy config.json from where the weights come from.",
            )
        return value

    def real(self, key: str, default: float) -> float:
        """A number.

        Raises:
            ModelError: it is none.
        """
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ModelError(f"config.json has '{key}': {value!r}, which is no number.")
        return float(value)

    def holds(self, key: str, default: bool = False) -> bool:
        """Whether an option is on."""
        return bool(self.get(key, default))

    def says(self, key: str) -> bool:
        """Whether a key is there, even if it holds null."""
        self._read.add(key)
        return key in self._document

    def repeats(self, key: str, value: Any) -> None:
        """Counts a key that this family does not read as read where it says the same as `value`."""
        if self._document.get(key) == value:
            self._read.add(key)

    def refusal(self, what: str, why: str) -> UnsupportedError:
        """The error for an option that no blueprint expresses."""
        return UnsupportedError(
            f"A {self.family} with {what} cannot be built as a graph: {why}.",
            why="config.json asks for it.",
            option=what,
        )

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys that hold something, that nothing looked at, and that are not known as inert."""
        return tuple(
            key
            for key, value in self._document.items()
            if key not in self._read | _INERT and value not in (None, False, [], {})
        )
