"""Numbers that GGUF's metadata and a configuration hold alike, as tables that are read both ways.

Source: llama.cpp, `conversion/base.py` (`TextModel.set_gguf_parameters`) and `src/llama-arch.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convkit.errors import ModelError, UnsupportedError
from convkit.families.config import Config
from convkit.families.family import Stored


@dataclass(frozen=True)
class Key:
    """A number on both sides.

    Attributes:
        gguf: its key; `ARCH` stands for the architecture.
        torch: its key in the configurations of a family.
        kind: what it is.
        otherwise: the key in GGUF that says it where this one is missing.
        default: what it is where GGUF does not say.
    """

    gguf: str
    torch: str
    kind: type[int] | type[float] = int
    otherwise: str = ""
    default: float | None = None


def named(key: Key, torch: str) -> Key:
    """A key that is called otherwise in the configurations of a family."""
    return replace(key, torch=torch)


LAYERS = Key("ARCH.block_count", "num_hidden_layers")
CONTEXT = Key("ARCH.context_length", "max_position_embeddings")
HIDDEN = Key("ARCH.embedding_length", "hidden_size")
INNER = Key("ARCH.feed_forward_length", "intermediate_size")
HEADS = Key("ARCH.attention.head_count", "num_attention_heads")
KV_HEADS = Key(
    "ARCH.attention.head_count_kv", "num_key_value_heads", otherwise="ARCH.attention.head_count"
)
EXPERTS_ALL = Key("ARCH.expert_count", "num_experts")
EXPERTS_USED = Key("ARCH.expert_used_count", "num_experts_per_tok")
EXPERT_INNER = Key("ARCH.expert_feed_forward_length", "moe_intermediate_size")
RMS_EPSILON = Key("ARCH.attention.layer_norm_rms_epsilon", "rms_norm_eps", float)
LAYER_NORM_EPSILON = Key("ARCH.attention.layer_norm_epsilon", "layer_norm_eps", float)

DECODER = (LAYERS, CONTEXT, HIDDEN, INNER, HEADS, KV_HEADS)
"""What decoders with heads of keys and values have."""


def metadata_of(config: Config, keys: Iterable[Key]) -> dict[str, Any]:
    """The metadata of a table.

    Raises:
        ModelError: the configuration lacks one.
    """
    return {key.gguf: key.kind(config.number(key.torch)) for key in keys}


def config_of(stored: Stored, keys: Iterable[Key]) -> dict[str, Any]:
    """The configuration of a table.

    Raises:
        ModelError: the file lacks one.
        UnsupportedError: layers differ in one.
    """
    return {key.torch: _read(stored, key) for key in keys}


def _read(stored: Stored, key: Key) -> int | float:
    value = stored.get(key.gguf)
    if value is None and key.otherwise:
        value = stored.get(key.otherwise)
    if value is None:
        value = key.default
    if isinstance(value, list):
        value = _same(key, value)
    if not isinstance(value, int | float) or value <= 0:
        raise ModelError(
            f"The file has no number for {key.gguf.replace('ARCH.', '')}"
            + ("." if value is None else f", but {value!r}."),
            why=f"A configuration needs it as {key.torch}.",
            hint="Download or convert the file again.",
        )
    if key.kind is int and key.gguf != CONTEXT.gguf and value > _greatest(stored):
        raise ModelError(
            f"The file says {key.gguf.replace('ARCH.', '')} = {value}, which its tensors are not.",
            why=f"There are {len(stored.shapes)}, and {_greatest(stored)} is their greatest size.",
            hint="Download or convert the file again.",
        )
    return key.kind(shortest(value) if key.kind is float else value)


def _greatest(stored: Stored) -> int:
    """What no count in a file exceeds: its tensors, and their sizes."""
    return max(len(stored.shapes), *(max(shape) for shape in stored.shapes.values()))


def _same(key: Key, values: list[Any]) -> Any:
    if len(set(values)) != 1:
        raise UnsupportedError(
            f"The layers of this model differ in {key.gguf.replace('ARCH.', '')}: {values}.",
            why=f"transformers has one {key.torch} for all of them.",
        )
    return values[0]


def shortest(value: float) -> float:
    """The shortest number that float32 holds as this one: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
