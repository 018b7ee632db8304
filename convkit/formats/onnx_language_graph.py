"""What the graph of a causal language model takes and gives, its cache of keys and values apart.

Source: optimum, `exporters/onnx/model_configs.py`: `past_key_values.<layer>.key|value` go in and
`present.<layer>.key|value` come out, (batch, heads, length, size) each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convkit.artifact import TensorSpec
from convkit.errors import ModelError, UnsupportedError
from convkit.formats.onnx_header import Header
from convkit.vocabulary.codec import has_tokenizer
from convkit.vocabulary.folder_settings import context_length, read_object, read_settings

_PAST = "past_key_values."
_PRESENT = ("present.", "present_key_values.")
_SWITCH = "use_cache_branch"
_TEXT = ("input_ids", "attention_mask", "position_ids")
_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel)$")


@dataclass(frozen=True)
class LanguageGraph:
    """The inputs and outputs of a graph by what they mean.

    Attributes:
        ids: token ids (batch, sequence).
        mask: 1 where there is text, over the cache and what is new; None where it takes none.
        positions: of the new tokens; None where it takes none.
        past: keys and values so far; empty for a graph without a cache.
        present: output for each of `past`, in the same order.
        logits: (batch, sequence, vocabulary).
        has_switch: takes `use_cache_branch`, two graphs in one.
    """

    ids: TensorSpec
    mask: TensorSpec | None
    positions: TensorSpec | None
    past: tuple[TensorSpec, ...]
    present: tuple[str, ...]
    logits: TensorSpec
    has_switch: bool

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes as seen from outside: ids, and the mask over them."""
        if self.mask is None:
            return (self.ids,)
        return (self.ids, TensorSpec(self.mask.name, self.mask.dtype, self.ids.shape))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives as seen from outside: logits."""
        shape = (*self.ids.shape, *self.logits.shape[2:])
        return (TensorSpec(self.logits.name, self.logits.dtype, shape),)

    def past_shape(self, spec: TensorSpec, batch: int) -> tuple[int, ...]:
        """The shape of a cache tensor that holds nothing yet."""
        sizes = (batch if axis == 0 else size for axis, size in enumerate(spec.shape))
        return tuple(size if isinstance(size, int) else 0 for size in sizes)

    def check(self, model: str) -> None:
        """Whether it can be fed piece by piece.

        Raises:
            UnsupportedError: it is laid out in a way that cannot be.
        """
        if self.has_switch:
            raise UnsupportedError(
                f"{model} is two graphs in one, switched by '{_SWITCH}'.",
                why="Exporters write that no longer; a graph with a cache of length 0 does both.",
                hint="Export the model again:  convkit convert MODEL --to onnx",
            )
        if len(self.present) != len(self.past):
            raise UnsupportedError(
                f"{model} takes {len(self.past)} cache tensors and gives {len(self.present)}."
            )
        for spec in self.past:
            named = sum(isinstance(size, str) for size in spec.shape[1:])
            if named != 1:
                raise UnsupportedError(
                    f"The cache of {model} has {named or 'no'} lengths that vary: {spec}.",
                    why="One is needed, the number of tokens so far.",
                )


def language_graph(header: Header, folder: Path) -> LanguageGraph | None:
    """The language model in a graph; None where it is another kind of model.

    A graph with a cache shows by itself that it is one; a graph without, by the configuration in
    `folder`.
    """
    inputs = {spec.name: spec for spec in header.inputs}
    outputs = {spec.name: spec for spec in header.outputs}
    past = tuple(spec for name, spec in inputs.items() if name.startswith(_PAST))
    others = set(inputs) - {spec.name for spec in past} - {*_TEXT, _SWITCH}
    ids, logits = inputs.get("input_ids"), outputs.get("logits")
    if ids is None or logits is None or others or len(ids.shape) != 2 or len(logits.shape) != 3:
        return None
    present = tuple(name for spec in past if (name := _present_of(spec.name, outputs)))
    if not (present if past else _is_causal(folder)):
        return None
    return LanguageGraph(
        ids,
        inputs.get("attention_mask"),
        inputs.get("position_ids"),
        past,
        present,
        logits,
        _SWITCH in inputs,
    )


def language_details(graph: LanguageGraph, folder: Path) -> dict[str, Any]:
    """What `inspect` tells of a language model beside its graph."""
    config = _config(folder)
    details: dict[str, Any] = {
        "architecture": _architecture(config),
        "model_type": config.get("model_type") or "",
        "context_length": context_length(config),
        "kv_cache": _cache_in_words(graph),
    }
    if has_tokenizer(folder):
        try:
            has_template = bool(read_settings(folder).chat_template)
        except ModelError:
            has_template = False
        details["tokenizer"] = "with a chat template" if has_template else "without chat template"
    return {name: value for name, value in details.items() if value}


def _cache_in_words(graph: LanguageGraph) -> str:
    if not graph.past:
        return "none: every token computes the whole text again"
    first = graph.past[0]
    shape = ", ".join(map(str, first.shape))
    return f"{len(graph.past)} tensors of {first.dtype}[{shape}]"


def _present_of(past: str, outputs: Mapping[str, TensorSpec]) -> str:
    rest = past.removeprefix(_PAST)
    return next((start + rest for start in _PRESENT if start + rest in outputs), "")


def _is_causal(folder: Path) -> bool:
    return bool(_CAUSAL.search(_architecture(_config(folder))))


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _config(folder: Path) -> Mapping[str, Any]:
    """The configuration; empty where there is none, or what lies there is another program's."""
    try:
        return read_object(folder / "config.json")
    except ModelError:
        return {}
