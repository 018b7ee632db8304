"""Tables of tensors: a line each, names on both sides, and a shape in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from convkit.families.changes import SAME, Change
from convkit.families.config import Config
from convkit.families.family import Entry, Source

COUNTED: Mapping[str, Callable[[Config], int]] = {
    "{expert}": lambda config: config.experts,
    "{head}": lambda config: config.heads,
    "{kv_head}": lambda config: config.kv_heads,
}
"""What stands in a name for the numbers of all of them."""

Size = Callable[[Config], int]

SIZES: Mapping[str, Size] = {
    "vocabulary": lambda config: int(config.number("vocab_size")),
    "hidden": lambda config: config.hidden,
    "head": lambda config: config.head_size,
    "heads": lambda config: config.heads,
    "kv_heads": lambda config: config.kv_heads,
    "queries": lambda config: config.heads * config.head_size,
    "keys": lambda config: config.kv_heads * config.head_size,
    "fused": lambda config: (config.heads + 2 * config.kv_heads) * config.head_size,
    "inner": lambda config: config.feed_forward,
    "gate+up": lambda config: 2 * config.feed_forward,
    "experts": lambda config: config.experts,
    "expert_inner": lambda config: int(config.number("moe_intermediate_size")),
    "shared_inner": lambda config: int(config.number("shared_expert_intermediate_size")),
    "positions": lambda config: config.context,
    "types": lambda config: int(config.number("type_vocab_size")),
    "1": lambda config: 1,
}
"""What a word in a shape means."""


def always(config: Config) -> bool:
    """Every model of the family has it."""
    return True


def is_untied(config: Config) -> bool:
    """Whether there is an output matrix besides the embedding."""
    return not config.is_tied


@dataclass(frozen=True)
class Line:
    """A tensor.

    Attributes:
        gguf: its name in GGUF, behind the layer's.
        torch: its name in a checkpoint, behind the layer's; with a word of `COUNTED`, the names of
            several.
        shape: in GGUF, words of `SIZES`.
        change: how the one becomes the other, where it depends on the configuration, as a function.
        when: which models have it.
        others: further spellings, with their changes.
    """

    gguf: str
    torch: str
    shape: str
    change: Change | Callable[[Config], Change] = SAME
    when: Callable[[Config], bool] = always
    others: tuple[tuple[str, Change], ...] = ()


@dataclass(frozen=True)
class Table:
    """The tensors of a family; called with a configuration, those of a model.

    Attributes:
        outside: lines outside the layers.
        layer: lines of a layer.
        layers: how names of layers begin in a checkpoint; the number follows.
        sizes: words with another meaning than usual.
    """

    outside: tuple[Line, ...]
    layer: tuple[Line, ...]
    layers: str = "model.layers"
    sizes: Mapping[str, Size] | None = None

    def __call__(self, config: Config) -> Iterator[Entry]:
        """The tensors of a model, from its configuration."""
        sizes = {**SIZES, **(self.sizes or {})}
        yield from _entries(self.outside, config, sizes, "", "")
        for number in range(config.layers):
            layer = f"{self.layers}.{number}."
            yield from _entries(self.layer, config, sizes, f"blk.{number}.", layer)


def _entries(
    lines: Iterable[Line], config: Config, sizes: Mapping[str, Size], gguf: str, torch: str
) -> Iterator[Entry]:
    for line in lines:
        if not line.when(config):
            continue
        change = line.change(config) if callable(line.change) else line.change
        sources = ((line.torch, change), *line.others)
        yield Entry(
            gguf + line.gguf,
            tuple(sizes[word](config) for word in line.shape.split()),
            tuple(Source(_names(torch + name, config), how) for name, how in sources),
        )


def _names(name: str, config: Config) -> tuple[str, ...]:
    """One name, or one for each expert or head."""
    for part, count in COUNTED.items():
        if part in name:
            return tuple(name.replace(part, str(number)) for number in range(count(config)))
    return (name,)
