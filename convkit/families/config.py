"""The configuration of a Hugging Face model, read the same whatever its age and spelling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from convkit.errors import ModelError
from convkit.families.defaults import DEFAULTS

_SPELLINGS = (
    ("num_hidden_layers", "n_layer", "num_layers"),
    ("num_attention_heads", "n_head"),
    ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    ("hidden_size", "n_embd", "n_embed"),
    ("intermediate_size", "ffn_hidden_size", "n_inner"),
    ("max_position_embeddings", "n_positions", "n_ctx"),
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    ("num_local_experts", "num_experts"),
)
"""What a number is called in configurations of transformers."""

_ORIGINAL = "original_max_position_embeddings"
"""Where a configuration says it outside of `rope_parameters`, it wins over what is said there."""

_CALLED = {name: names for names in _SPELLINGS for name in names}


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
    def original_context(self) -> int:
        """Tokens that it was trained on before the context was stretched."""
        return int(self.settings[_ORIGINAL])


class Config(Mapping[str, Any]):
    """A `config.json`; a model for images and text is read as its text part.

    Keys that the file leaves out have the value that transformers gives them. Numbers that every
    architecture has are attributes, whatever they are called in the file.

    Attributes:
        whole: the file as it is.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        nested = document.get("text_config")
        outer = {k: v for k, v in document.items() if k not in ("text_config", "vision_config")}
        given = {**outer, **nested} if isinstance(nested, Mapping) else outer
        silent = {
            key: value
            for key, value in DEFAULTS.get(str(given.get("model_type")), {}).items()
            if not any(name in given for name in _CALLED.get(key, (key,)))
        }
        self._values = {**silent, **given}
        self._given = given
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
        return self.count("num_hidden_layers")

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.count("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.count("num_key_value_heads", self.heads)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.count("hidden_size")

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.count("head_dim", max(1, self.hidden // self.heads))

    @property
    def feed_forward(self) -> int:
        """Width inside the feed-forward network."""
        return self.count("intermediate_size")

    @property
    def context(self) -> int:
        """Tokens it was made for."""
        return self.count("max_position_embeddings")

    @property
    def experts(self) -> int:
        """Experts per layer; 0 where there are none."""
        return int(self.number("num_experts", 0))

    @property
    def is_tied(self) -> bool:
        """Whether the output matrix is the embedding; transformers' default is that it is."""
        return bool(self.whole.get("tie_word_embeddings", self.get("tie_word_embeddings", True)))

    def rope(self, layers: str = "full_attention") -> Rope:
        """Rotary positions; of one kind of layers where kinds differ.

        transformers 5 keeps them in `rope_parameters`, 4 in `rope_theta` and `rope_scaling`, and of
        layers that see a window only in `rope_local_base_freq`.
        """
        found = self.get("rope_parameters") or {}
        is_nested = any(isinstance(value, Mapping) for value in found.values())
        is_local = layers == "sliding_attention" and self.get("rope_local_base_freq") is not None
        settings = dict(found.get(layers) or {}) if is_nested else dict(found)
        theta = self.get("rope_local_base_freq") if is_local else self.get("rope_theta")
        if not is_local:
            settings |= self.get("rope_scaling") or {}
            settings |= {_ORIGINAL: self[_ORIGINAL]} if self.get(_ORIGINAL) is not None else {}
        kind = str(settings.get("rope_type") or settings.get("type") or "default")
        if kind == "yarn" and "long_factor" in settings:  # as Phi-3's first configurations call it
            kind = "longrope"
        if kind in ("llama3", "longrope", "su", "yarn") and not settings.get(_ORIGINAL):
            settings[_ORIGINAL] = self.context
        share = settings.get("partial_rotary_factor", self.get("partial_rotary_factor"))
        return Rope(
            theta=float(settings.get("rope_theta") or theta or 10_000.0),
            kind={"su": "longrope", "none": "default"}.get(kind, kind),
            share=1.0 if share is None else float(share),
            settings=settings,
        )

    def says(self, name: str) -> bool:
        """Whether the file itself says a number, under any of its names."""
        return any(self._given.get(key) is not None for key in _names(name))

    def count(self, name: str, default: Any = None) -> int:
        """A number of things, of which there is at least one.

        Raises:
            ModelError: the file does not say it, nor is there a default; or it cannot be meant.
        """
        found = self.number(name, default)
        if int(found) != found or found < 1:
            raise ModelError(
                f"config.json has {name} = {found}, which is no positive whole number.",
                hint="Copy config.json from where the weights come from.",
            )
        return int(found)

    def number(self, name: str, default: Any = None) -> Any:
        """A number under this name, else another of its names.

        Raises:
            ModelError: the file does not say it, nor is there a default.
        """
        names = _names(name)
        found = next((self[key] for key in names if self.get(key) is not None), default)
        is_number = isinstance(found, int | float) and math.isfinite(found)
        if not is_number:
            raise ModelError(
                f"config.json has no number for '{name}'"
                + (f" but {found!r}." if found is not None else "."),
                why=f"It is of model type '{self.model_type}'; looked for: {', '.join(names)}.",
                hint="Copy config.json from where the weights come from.",
            )
        return found


def _names(name: str) -> tuple[str, ...]:
    """A number's name, then its others."""
    return tuple(dict.fromkeys((name, *_CALLED.get(name, ()))))
