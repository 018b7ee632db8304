"""What the graph of a causal language model takes and gives, its cache of keys and values apart.

Source: optimum, `exporters/onnx/model_configs.py`: `past_key_values.<layer>.key|value` go in and
`present.<layer>.key|value` come out, (batch, heads, length, size) each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import TensorSpec
from convkit.checkpoint.folder_files import architecture, continues_texts
from convkit.errors import ModelError, UnsupportedError
from convkit.runner import Feeds

if TYPE_CHECKING:
    import numpy as np

_PAST = "past_key_values."
_PRESENT = ("present.", "present_key_values.")
_SWITCH = "use_cache_branch"
_TEXT = ("input_ids", "attention_mask", "position_ids")


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

    def completed(self, feeds: Feeds) -> Feeds:
        """A text as the graph itself takes it: with positions, and a cache that holds nothing yet.

        Args:
            feeds: the text as seen from outside; what else they hold stays.
        """
        import numpy as np

        batch, length = feeds[self.ids.name].shape
        made: dict[str, np.ndarray[Any, Any]] = {}
        if self.mask is not None:
            made[self.mask.name] = np.ones((batch, length), self.mask.dtype)
        if self.positions is not None:
            positions = np.arange(length, dtype=self.positions.dtype)
            made[self.positions.name] = np.tile(positions, (batch, 1))
        made |= {spec.name: empty_past(spec, batch) for spec in self.past}
        return {**made, **feeds}

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


def language_graph(
    takes: Sequence[TensorSpec], gives: Sequence[TensorSpec], folder: Path
) -> LanguageGraph | None:
    """The language model in a graph; None where it is another kind of model.

    A graph with a cache shows by itself that it is one; a graph without, by the configuration in
    `folder`.

    Args:
        takes: inputs of the graph.
        gives: its outputs.
        folder: where its configuration lies, if it has one.
    """
    inputs = {spec.name: spec for spec in takes}
    outputs = {spec.name: spec for spec in gives}
    past = tuple(spec for name, spec in inputs.items() if name.startswith(_PAST))
    others = set(inputs) - {spec.name for spec in past} - {*_TEXT, _SWITCH}
    ids, logits = inputs.get("input_ids"), outputs.get("logits")
    if ids is None or logits is None or others or len(ids.shape) != 2 or len(logits.shape) != 3:
        return None
    present = tuple(name for spec in past if (name := _present_of(spec.name, outputs)))
    if not (present if past else is_causal(folder)):
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


def empty_past(spec: TensorSpec, batch: int) -> np.ndarray[Any, Any]:
    """A cache tensor that holds nothing yet: its length, the size that varies, is 0."""
    import numpy as np

    shape = [batch, *(size if isinstance(size, int) else 0 for size in spec.shape[1:])]
    if spec.dtype == "bfloat16":
        import ml_dtypes

        return np.zeros(shape, ml_dtypes.bfloat16)
    return np.zeros(shape, spec.dtype)


def is_causal(folder: Path) -> bool:
    """Whether a folder's configuration names a network that continues texts."""
    return continues_texts(architecture(read_config(folder)))


def read_config(folder: Path) -> Mapping[str, Any]:
    """The configuration; empty where there is none, or what lies there is another program's."""
    from convkit.vocabulary.text_files import read_object

    try:
        return read_object(folder / "config.json")
    except ModelError:
        return {}


def _present_of(past: str, outputs: Mapping[str, TensorSpec]) -> str:
    rest = past.removeprefix(_PAST)
    return next((start + rest for start in _PRESENT if start + rest in outputs), "")
