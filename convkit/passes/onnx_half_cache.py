"""The cache of a language model in a graph: what one call gives, the next one takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.artifact import TensorSpec
from convkit.onnx_language_graph import LanguageGraph, language_graph
from convkit.step import Feeds

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Cache:
    """The cache, as far as the graph is a language model.

    Attributes:
        carried: graph output -> the graph input that takes it at the next call.
    """

    carried: Mapping[ir.Value, ir.Value] = field(default_factory=dict)
    _language: LanguageGraph | None = None

    def completed(self, feeds: Feeds) -> Feeds:
        """A sample as the graph itself takes it: that of a language model is a text alone."""
        return feeds if self._language is None else self._language.completed(feeds)


def cache_of(graph: ir.Graph, folder: Path) -> Cache:
    """The cache of a graph whose configuration lies in `folder`."""
    inputs = {value.name or "": value for value in graph.inputs}
    outputs = {value.name or "": value for value in graph.outputs}
    takes = [_spec(value) for value in inputs.values()]
    gives = [_spec(value) for value in outputs.values()]
    language = language_graph(takes, gives, folder)
    if language is None:
        return Cache()
    pairs = zip(language.past, language.present, strict=False)
    return Cache({outputs[name]: inputs[spec.name] for spec, name in pairs}, language)


def _spec(value: ir.Value) -> TensorSpec:
    sizes = value.shape or ()
    shape = [size if isinstance(size, int) else str(size.value) for size in sizes]
    dtype = "unknown" if value.dtype is None else str(value.dtype.numpy())
    return TensorSpec(value.name or "", dtype, tuple(shape))
