"""The configuration of a Hugging Face model, read the same whatever its age and spelling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from convkit.errors import ModelError

_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "hidden": ("hidden_size", "n_embd"),
    "feed_forward": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "context": ("max_position_embeddings", "n_positions", "n_ctx"),
    "norm_epsilon": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    "experts": ("num_local_experts", "num_experts"),
    "experts_used": ("num_experts_per_tok",),
    "activation": ("hidden_act", "hidden_activation", "activation", "activation_function"),
}
"""What a number is called here -> in configurations of transformers, newest first."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions.

    Attributes:
        theta: the base of the frequencies.
        kind: `default`, `linear`, `dynamic`, `yarn`, `llama3`, `longrope`.
        share: of a head's numbers that are turned.
        settings: the kind's own numbers, as transformers calls them.
    """

    theta: float
    kind: str = "default"
    share: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def factor(self) -> float:
        """How much longer the context became; 1 where it did not."""
        return float(self.settings.get("factor") or 1.0)


class Config(Mapping[str, Any]):
    """A `config.json`; a model for images and text is read as its text part.

    Numbers that every architecture has are attributes, whatever they are called in the file.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        nested = document.get("text_config")
        outer = {k: v for k, v in document.items() if k not in ("text_config", "vision_config")}
        self._values = {**outer, **nested} if isinstance(nested, Mapping) else outer
        self.whole = document

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def model_type(self) -> str:
        """`llama` ...; "" where the file does not say."""
        return str(self.get("model_type") or "")

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self._number("layers"))

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self._number("heads"))

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return int(self._number("kv_heads", self.heads))

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self._number("hidden"))

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return int(self.get("head_dim") or self.hidden // self.heads)

    @property
    def feed_forward(self) -> int:
        """Width inside the feed-forward network."""
        return int(self._number("feed_forward"))

    @property
    def context(self) -> int:
        """Tokens it was made for."""
        return int(self._number("context"))

    @property
    def norm_epsilon(self) -> float:
        """What norms add before the root."""
        return float(self._number("norm_epsilon"))

    @property
    def experts(self) -> int:
        """Experts per layer; 0 where there are none."""
        return int(self._number("experts", 0))

    @property
    def experts_used(self) -> int:
        """Experts that a token visits."""
        return int(self._number("experts_used", 0))

    @property
    def activation(self) -> str:
        """Name of the activation function."""
        return str(self._number("activation", ""))

    @property
    def is_tied(self) -> bool:
        """Whether the output matrix is the embedding; transformers' default is that it is."""
        return bool(self.whole.get("tie_word_embeddings", self.get("tie_word_embeddings", True)))

    def rope(self, layers: str = "full_attention") -> Rope:
        """Rotary positions; of one kind of layers where kinds differ.

        transformers 5 keeps them in `rope_parameters`, 4 in `rope_theta` and `rope_scaling`.
        """
        found = self.get("rope_parameters") or {}
        if isinstance(found.get(layers), Mapping):
            found = found[layers]
        settings = {**(self.get("rope_scaling") or {}), **found}
        kind = str(settings.get("rope_type") or settings.get("type") or "default")
        share = settings.get("partial_rotary_factor", self.get("partial_rotary_factor"))
        return Rope(
            theta=float(settings.get("rope_theta") or self.get("rope_theta") or 10_000.0),
            kind={"su": "longrope", "none": "default"}.get(kind, kind),
            share=1.0 if share is None else float(share),
            settings=settings,
        )

    def _number(self, name: str, default: Any = None) -> Any:
        spellings = _SPELLINGS[name]
        value = next((self[key] for key in spellings if self.get(key) is not None), default)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise ModelError(
                f"config.json does not say '{spellings[0]}'.",
                why=f"It is a model of type '{self.model_type}'; the number was looked for as "
                f"{', '.join(spellings)}.",
                hint="Copy config.json from where the weights come from.",
            )
        return value
