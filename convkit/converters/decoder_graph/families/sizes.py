"""Numbers that every configuration has, with the defaults of its family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convkit.converters.decoder_graph.settings import Settings
from convkit.families.windows import FULL, SLIDING


@dataclass(frozen=True)
class Sizes:
    """How wide and how deep a network is.

    Attributes:
        width: of the residual path.
        layers: how many.
        heads, kv_heads: of queries, of keys and values.
        head: numbers of a head.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head: int


def sizes_of(
    settings: Settings,
    *,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int | None = None,
    head: int | None = None,
) -> Sizes:
    """Sizes under their usual keys; arguments are what the family takes where a key is missing.

    Args:
        settings: the configuration.
        width: of the residual path.
        layers: how many.
        heads: of queries.
        kv_heads: of keys and values; None for as many as heads, which is also what null means.
        head: numbers of a head; None for what heads leave of the width.

    Raises:
        UnsupportedError: heads do not divide into groups.
    """
    width = settings.number("hidden_size", default=width)
    heads = settings.number("num_attention_heads", default=heads)
    if kv_heads is None or settings.says("num_key_value_heads"):
        kv_heads = settings.number("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise settings.refusal(
            f"{heads} heads on {kv_heads} heads of keys", "they do not divide into groups"
        )
    return Sizes(
        width=width,
        layers=settings.number("num_hidden_layers", default=layers),
        heads=heads,
        kv_heads=kv_heads,
        head=settings.number("head_dim", default=head or width // heads),
    )


def window_of(settings: Settings, default: int | None, *, is_on: bool = True) -> int | None:
    """The width of sliding attention; null means that nothing slides, as where it is off."""
    is_said = settings.says("sliding_window")
    if not is_on or (is_said and settings.get("sliding_window") is None):
        return None
    return settings.number("sliding_window") if is_said else default


def layer_kinds(settings: Settings, slides: Sequence[Any], window: int | None) -> list[int | None]:
    """The window of each layer, or None where it sees everything.

    Args:
        settings: the configuration; its `layer_types` win.
        slides: which layers slide where it has none.
        window: of those that slide.

    Raises:
        UnsupportedError: a kind that is neither full nor sliding, or not one for each layer.
    """
    kinds = settings.get("layer_types") or [SLIDING if is_on else FULL for is_on in slides]
    odd = set(kinds) - {FULL, SLIDING}
    if odd:
        raise settings.refusal(f"layers of kind '{odd.pop()}'", "that attention is not known")
    if len(kinds) != len(slides):
        raise settings.refusal(
            f"{len(kinds)} layer_types for {len(slides)} layers", "they do not belong together"
        )
    if SLIDING in kinds and window is None:
        raise settings.refusal("sliding layers without a window", "sliding_window is missing")
    return [window if kind == SLIDING else None for kind in kinds]
