"""Runs a causal language model in ONNX with its cache: text in pieces, each token computed once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, Precision
from convkit.errors import UnsupportedError
from convkit.formats.folder_language import FolderLanguage, RecomputingSession, check_context
from convkit.formats.language_inputs import padding_mask
from convkit.formats.onnx_header import read_header
from convkit.formats.onnx_session import (
    RUNTIME_TYPES,
    SessionRunner,
    check_feeds,
    from_value,
    import_runtime,
    run_error,
    to_value,
)
from convkit.formats.onnx_true_half import TrueHalfRunner
from convkit.onnx_folder import graph_file, text_folder
from convkit.onnx_language_graph import LanguageGraph, empty_past, language_graph
from convkit.step import Feeds, Outputs, Runner, Session, Sizes

if TYPE_CHECKING:
    import numpy as np

_INT8_ACCURACY = 4
_DEFAULT_VOCABULARY_SIZE = 100
"""For random ids where nothing tells how many there are."""


def open_onnx(artifact: Artifact, kind: type[SessionRunner] | type[TrueHalfRunner]) -> Runner:
    """A runner on a file or folder: of `kind`, or on top of one where it is a language model.

    Raises:
        ModelError, UnsafeError, UnsupportedError: see `SessionRunner`.
    """
    file = graph_file(artifact.path)
    folder = text_folder(artifact.path)
    header = read_header(file)
    language = language_graph(header.inputs, header.outputs, folder)
    if language is not None:
        language.check(artifact.path.name)
    runner = kind(replace(artifact, path=file))
    if language is None:
        return runner
    made = OnnxLanguageRunner(runner, language, folder)
    made.rounds_activations = _rounds_activations(file)
    if artifact.precision.bits <= Precision.INT8.bits:
        made.distributions = frozenset((language.logits.name,))
    return made


def _rounds_activations(file: Path) -> bool:
    """Whether products with quantized weights round what they multiply to eight bits.

    Source: onnxruntime, docs/ContribOperators.md, MatMulNBits: accuracy_level 4 is int8.
    """
    nodes = read_header(file, with_nodes=True).nodes
    return any(
        node.op_type == "MatMulNBits" and node.ints.get("accuracy_level", 0) == _INT8_ACCURACY
        for node in nodes
    )


class OnnxLanguageRunner(FolderLanguage):
    """A language model as seen from outside: `input_ids` and `attention_mask` in, `logits` out.

    A call feeds its texts in pieces, each with the cache of those before, and the last token alone,
    as it is when texts are generated: whoever compares its logits compares the cache as well.

    Args:
        runner: what computes the graph.
        graph: what its inputs and outputs mean.
        folder: where configuration and tokenizer lie.
    """

    def __init__(
        self, runner: SessionRunner | TrueHalfRunner, graph: LanguageGraph, folder: Path
    ) -> None:
        super().__init__(folder)
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self.has_cache = bool(graph.past)
        self._runner = runner
        self._graph = graph
        self._name = folder.name
        self._outputs = [graph.logits.name, *graph.present]
        self._dtypes = {argument.name: _dtype(argument) for argument in runner.session.get_inputs()}

    def __call__(self, feeds: Feeds) -> Outputs:
        """Logits (batch, sequence, vocabulary).

        Raises:
            SamplesError: names, dtypes or shapes are not the model's.
            StepError: the runtime fails on these inputs.
        """
        import numpy as np

        check_feeds(self._name, self.inputs, feeds)
        ids = feeds[self._graph.ids.name]
        mask = None if self._graph.mask is None else feeds[self._graph.mask.name]
        pieces, cache = [], None
        for begin, end in self._pieces(*ids.shape):
            seen = None if mask is None else mask[:, :end]
            logits, cache = self.continued(ids[:, begin:end], begin, cache, seen)
            pieces.append(logits)
        logits = np.concatenate(pieces, axis=1)  # (batch, sequence, vocabulary)
        return {self._graph.logits.name: _narrowed(logits, self.outputs[0].dtype)}

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Rows of real text where there is a tokenizer beside the model, else random ids."""
        from convkit.samples import draw

        last = self.outputs[0].shape[-1]
        vocabulary_size = last if isinstance(last, int) else _DEFAULT_VOCABULARY_SIZE
        name = self._graph.ids.name
        feeds = dict(draw(self.inputs, sizes, seed, {name: (0, vocabulary_size - 1)}))
        ids = feeds[name]
        rows = self.rows_of_text((ids.shape[0], ids.shape[1]), seed, vocabulary_size)
        if rows is not None:
            feeds[name] = rows.astype(ids.dtype)
        if self._graph.mask is not None:
            feeds[self._graph.mask.name] = padding_mask(feeds[self._graph.mask.name])
        return feeds

    def session(self) -> Session:
        """A new text; a graph without a cache computes all of it again at each token."""
        import numpy as np

        if self.has_cache:
            return _CachedSession(self)

        def compute(tokens: Sequence[int]) -> np.ndarray[Any, Any]:
            logits, _ = self.continued(np.asarray([tokens], np.int64), 0, None, None)
            found: np.ndarray[Any, Any] = logits[0].astype(np.float32, copy=False)
            return found

        return RecomputingSession(compute, self.context_length)

    def close(self) -> None:
        """Gives the session's memory back."""
        self._runner.close()

    def continued(
        self,
        ids: np.ndarray[Any, Any],
        begin: int,
        cache: Sequence[Any] | None,
        mask: np.ndarray[Any, Any] | None,
    ) -> tuple[np.ndarray[Any, Any], Sequence[Any]]:
        """Logits (batch, tokens, vocabulary) after what the cache holds, and the cache with them.

        The cache stays in the runtime's own values: what comes out is put in again as it is.

        Args:
            ids: what comes next, (batch, tokens).
            begin: tokens in the cache.
            cache: what the call before gave; None to begin.
            mask: over the cache and what comes next; None for ones.

        Raises:
            StepError: the runtime fails on them.
        """
        import numpy as np

        batch, count = ids.shape
        graph, runtime = self._graph, import_runtime()
        arrays = {graph.ids.name: ids}
        if graph.mask is not None:
            ones = np.ones((batch, begin + count), np.int64)
            arrays[graph.mask.name] = ones if mask is None else mask
        if graph.positions is not None:
            positions = np.arange(begin, begin + count)[None, :]
            arrays[graph.positions.name] = np.broadcast_to(positions, (batch, count))
        values = {
            name: to_value(runtime, array.astype(self._dtypes[name]), self._dtypes[name])
            for name, array in arrays.items()
        }
        values |= {
            spec.name: value
            for spec, value in zip(graph.past, cache or self._empty(batch), strict=True)
        }
        try:
            found = self._runner.session.run_with_ort_values(self._outputs, values)
        except Exception as cause:  # the runtime's exceptions share no base class of their own
            raise run_error(self._name, cause) from cause
        return from_value(graph.logits.name, found[0]), found[1:]

    def _pieces(self, batch: int, length: int) -> list[tuple[int, int]]:
        """Begin and end of the pieces that texts of this length are fed in.

        A batch goes on token by token: ONNX Runtime's fused attention takes no more at a time.
        """
        within = {max(0, length - 1)} if self.has_cache else set()
        if self.has_cache and batch == 1:
            within.add(length // 2)
        return list(itertools.pairwise(sorted({0, *within, length})))

    def _empty(self, batch: int) -> list[Any]:
        """A cache of length 0."""
        runtime = import_runtime()
        specs = [replace(spec, dtype=self._dtypes[spec.name]) for spec in self._graph.past]
        return [to_value(runtime, empty_past(spec, batch), spec.dtype) for spec in specs]


class _CachedSession(Session):
    def __init__(self, runner: OnnxLanguageRunner) -> None:
        self._runner = runner
        self._cache: Sequence[Any] | None = None
        self._count = 0

    def feed(self, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
        import numpy as np

        check_context(self._count + len(tokens), self._runner.context_length)
        ids = np.asarray([tokens], np.int64)
        logits, self._cache = self._runner.continued(ids, self._count, self._cache, None)
        self._count += len(tokens)
        found: np.ndarray[Any, Any] = logits[0].astype(np.float32, copy=False)
        return found


def _dtype(argument: Any) -> str:
    """The dtype of one of the runtime's arguments.

    Raises:
        UnsupportedError: numpy has none like it.
    """
    inner = argument.type[len("tensor(") : -1]
    if inner not in RUNTIME_TYPES:
        raise UnsupportedError(f"The cache tensor '{argument.name}' is {argument.type}.")
    return RUNTIME_TYPES[inner]


def _narrowed(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """At the graph's own dtype, where a runner that rounds truly gave fp32; nothing is lost."""
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(dtype, copy=False) if dtype == "float16" else array
