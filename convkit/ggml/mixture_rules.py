"""Which tensors get another type than a scheme's default: llama.cpp's rules, as a table.

Tensors that a model suffers from most get more bits: values and what fuses them, the way down out
of the feed-forward network, the output; all the more in the first and last layers.

Source: llama.cpp, `src/llama-quant.cpp` (`tensor_get_category`, `llama_tensor_get_type_impl`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from convkit.ggml.types import TYPES, GgmlType, Scheme
from convkit.ggml.values import Value


class Role(Enum):
    """What a tensor does in the network, as far as its type depends on it."""

    OUTPUT = auto()
    EMBEDDING = auto()
    VALUE = auto()
    KEY = auto()
    ATTENTION_OUTPUT = auto()
    DOWN = auto()
    OTHER = auto()


_WHOLE_NAMES = {
    "output.weight": Role.OUTPUT,
    "token_embd.weight": Role.EMBEDDING,
    "per_layer_token_embd.weight": Role.EMBEDDING,
}
_NAME_PARTS = {
    "attn_qkv.weight": Role.VALUE,
    "attn_kv_b.weight": Role.VALUE,
    "attn_v.weight": Role.VALUE,
    "attn_k.weight": Role.KEY,
    "attn_output.weight": Role.ATTENTION_OUTPUT,
    "ffn_down": Role.DOWN,
}


def role_of(name: str) -> Role:
    """The role that a tensor's name says."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    return next((role for part, role in _NAME_PARTS.items() if part in name), Role.OTHER)


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask of a model's metadata.

    Attributes:
        architecture: in llama.cpp's spelling.
        layer_count: blocks.
        head_count: heads of queries, of the first block.
        kv_head_count: heads of keys and values, of the first block.
        expert_count: 0 for a dense model.
    """

    architecture: str
    layer_count: int
    head_count: int
    kv_head_count: int
    expert_count: int = 0

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> ModelFacts:
        """Reads them out of GGUF metadata, typed or plain; what is missing counts as 0."""

        def number(key: str, default: int = 0) -> int:
            value = _plain(metadata.get(f"{architecture}.{key}", default))
            first = value[0] if isinstance(value, list | tuple) and value else value
            return int(first) if isinstance(first, int | float) else default

        architecture = str(_plain(metadata.get("general.architecture", "")))
        head_count = number("attention.head_count")
        return cls(
            architecture,
            number("block_count"),
            head_count,
            number("attention.head_count_kv", head_count),
            number("expert_count"),
        )

    @property
    def group_size(self) -> int:
        """Heads of queries that share one head of keys and values."""
        return self.head_count // self.kv_head_count if self.kv_head_count else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes the model for one of 70 billion parameters.

        Source: llama.cpp, `src/models/*.cpp` (`LLM_TYPE_70B`).
        """
        if self.architecture in ("llama", "llama-embed") and self.group_size == 1:
            return False
        return _LAYERS_OF_70B.get(self.architecture) == self.layer_count


_LAYERS_OF_70B = {
    "llama": 80, "llama-embed": 80, "deci": 80, "qwen2": 80, "olmo": 80, "jais2": 68,
}  # fmt: skip


def _plain(value: Any) -> Any:
    return value.plain() if isinstance(value, Value) else value


@dataclass(frozen=True)
class Position:
    """Where a tensor stands among those of its role.

    Attributes:
        index: from 0, in the order of the layers.
        count: how many they are.
        facts: of the model.
        has_importance: whether the model is quantized with an importance matrix.
    """

    index: int
    count: int
    facts: ModelFacts
    has_importance: bool


Condition = Callable[[Position], bool]
Rules = tuple[tuple[Condition, str], ...]
"""Tried in order; where none holds, the default remains."""


def _always(_: Position) -> bool:
    return True


def _is_among(count: int) -> Condition:
    """Among the first `count`."""
    return lambda at: at.index < count


def _is_within(fraction: int) -> Condition:
    """In the first 1/`fraction` of the layers."""
    return lambda at: at.index < at.count // fraction


def _is_sensitive(at: Position) -> bool:
    """In the first or last eighth, and every third in between."""
    eighth = at.count // 8
    return at.index < eighth or at.index >= 7 * at.count // 8 or (at.index - eighth) % 3 == 2


def _is_grouped(at: Position) -> bool:
    """The tensor is small: four heads or more share its values."""
    return at.facts.group_size >= 4


def _is_early_and_informed(at: Position) -> bool:
    return at.has_importance and at.index < at.count // 8


def _is_early_and_uninformed(at: Position) -> bool:
    return not at.has_importance and at.index < at.count // 8


_SENSITIVE: Rules = ((_is_sensitive, "Q6_K"),)
_RULES: Mapping[Role, Mapping[str, Rules]] = {
    Role.VALUE: {
        "q2_k": ((_is_grouped, "Q4_K"), (_always, "Q3_K")),
        "q3_k_m": ((_is_among(2), "Q5_K"), (_always, "Q4_K")),
        "q4_k_s": ((_is_among(4), "Q5_K"),),
        "q4_k_m": _SENSITIVE,
        "q5_k_m": _SENSITIVE,
        "iq4_nl": ((_is_grouped, "Q5_K"),),
        "iq4_xs": ((_is_grouped, "Q5_K"),),
    },
    Role.DOWN: {
        "q4_0": ((_is_early_and_informed, "Q4_1"),),
        "q5_0": ((_is_early_and_informed, "Q5_1"),),
        "q2_k": ((_always, "Q3_K"),),
        "q3_k_m": ((_is_within(16), "Q5_K"), (_always, "Q4_K")),
        "q4_k_s": ((_is_within(8), "Q5_K"),),
        "q4_k_m": _SENSITIVE,
        "q5_k_m": _SENSITIVE,
        "iq4_nl": ((_is_early_and_uninformed, "Q5_K"),),
        "iq4_xs": ((_is_early_and_uninformed, "Q5_K"),),
    },
    Role.ATTENTION_OUTPUT: {
        "q2_k": ((_always, "Q3_K"),),
        "q3_k_m": ((_always, "Q4_K"),),
    },
}
_FALCON: Mapping[Role, Mapping[str, Rules]] = {
    Role.DOWN: {
        **_RULES[Role.DOWN],
        "q3_k_m": ((_is_within(16), "Q5_K"), (_is_sensitive, "Q4_K")),
        "q4_k_s": (),
        "q4_k_m": ((_is_within(16), "Q6_K"), (_is_sensitive, "Q5_K")),
    },
    Role.ATTENTION_OUTPUT: {},
}
_EIGHT_EXPERTS: Mapping[Role, Mapping[str, Rules]] = {
    Role.ATTENTION_OUTPUT: dict.fromkeys(
        ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"),
        ((_always, "Q5_K"),),
    ),
}
"""Attention is a small part of such a model."""


def type_in_mixture(role: Role, scheme: Scheme, at: Position) -> GgmlType:
    """The type of a tensor inside the layers, before its shape is looked at."""
    facts = at.facts
    if facts.expert_count == 8 and role in (Role.VALUE, Role.KEY):
        return TYPES["Q8_0"]
    table = _RULES
    if facts.architecture == "falcon":
        table = {**_RULES, **_FALCON}
    elif facts.expert_count == 8:
        table = {**_RULES, **_EIGHT_EXPERTS}
    rules = table.get(role, {}).get(scheme.name, ())
    names = (name for condition, name in rules if condition(at))
    chosen = TYPES[next(names, scheme.default.name)]
    if role is Role.VALUE and facts.is_70b and chosen.name in ("Q3_K", "Q4_K"):
        return TYPES["Q5_K"]
    return chosen


def type_of_output(scheme: Scheme, facts: ModelFacts) -> GgmlType:
    """The type of the output, or of the embeddings that serve as output."""
    if facts.architecture == "falcon" or scheme.default.name == "Q8_0":
        return TYPES["Q8_0"]
    return TYPES["Q6_K"]


_BLOCK = re.compile(r"blk\.(\d+)")


def layer_of(name: str) -> int:
    """The block that a tensor belongs to, -1 outside the blocks."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else -1
