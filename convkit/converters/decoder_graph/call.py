"""What all layers of a call share: its inputs, shapes made of their sizes, and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convkit.converters.decoder_graph.graph import BOOL, INT32, INT64, Graph

INPUT_IDS, ATTENTION_MASK, POSITION_IDS = "input_ids", "attention_mask", "position_ids"

_MASKED = float(np.finfo(np.float32).min)
"""Added to a masked score. Not minus infinity: a row that sees nothing stays finite."""


@dataclass(frozen=True)
class Call:
    """Values that depend on the inputs alone; each is computed once, when first asked for."""

    graph: Graph

    def shape(self, *tail: int) -> str:
        """(batch, sequence, *tail), to reshape (tokens, width) with."""
        graph = self.graph
        sizes = graph.shared("sizes", lambda: graph.add("Shape", INPUT_IDS, name="sizes"))
        if not tail:
            return sizes
        return graph.shared(
            ("shape", tail),
            lambda: graph.add("Concat", sizes, graph.ints(*tail), name="shape", axis=0),
        )

    def total(self) -> str:
        """Tokens of past and present together, int64 without axes."""
        graph = self.graph

        def make() -> str:
            shape = graph.add("Shape", ATTENTION_MASK, name="mask_sizes", start=1)
            return graph.add("Squeeze", shape, name="total")

        return graph.shared("total", make)

    def bias(self, window: int | None, group: int) -> str:
        """What is added to scores, float32: (batch, 1, group x sequence, total).

        A token sees itself and what came before it in the cache, at most `window` tokens in all,
        except where `attention_mask` is 0. Rows come `group` times, as the queries of a group do.
        """
        return self.graph.shared(("bias", window, group), lambda: self._bias(window, group))

    def _bias(self, window: int | None, group: int) -> str:
        graph = self.graph
        masked = graph.real(_MASKED)
        seen = graph.shared(("seen", window), lambda: self._seen(window))
        bias = graph.add("Where", seen, graph.real(0.0), masked, name="bias")
        if group == 1:
            return bias
        return graph.add("Concat", *[bias] * group, name="bias_of_group", axis=2)

    def _seen(self, window: int | None) -> str:
        """(batch, 1, sequence, total), bool."""
        graph = self.graph
        keys = graph.shared("keys", self._keys)
        queries = graph.shared("queries", self._queries)
        seen = graph.add("LessOrEqual", keys, queries, name="is_past")
        if window is not None:
            first = graph.add("Sub", queries, graph.whole(window), name="window")
            near = graph.add("Greater", keys, first, name="is_near")
            seen = graph.add("And", seen, near, name="is_seen")
        kept = graph.shared("kept", self._kept)
        return graph.add("And", seen, kept, name="is_visible")

    def _keys(self) -> str:
        graph = self.graph
        return graph.add("Range", graph.whole(0), self.total(), graph.whole(1), name="keys")

    def _queries(self) -> str:
        """Places of this call's tokens in the cache: (sequence, 1)."""
        graph = self.graph
        shape = graph.add("Shape", INPUT_IDS, name="id_sizes", start=1)
        count = graph.add("Squeeze", shape, name="count")
        past = graph.add("Sub", self.total(), count, name="past")
        places = graph.add("Range", past, self.total(), graph.whole(1), name="places")
        return graph.add("Reshape", places, graph.ints(-1, 1), name="queries")

    def _kept(self) -> str:
        """Where the mask is not 0: (batch, 1, 1, total), bool."""
        graph = self.graph
        kept = graph.cast(ATTENTION_MASK, BOOL, of=INT64)
        return graph.add("Unsqueeze", kept, graph.ints(1, 2), name="is_kept")

    def lengths(self) -> str:
        """Tokens of each row that are no padding, less one: (batch), int32."""
        graph = self.graph

        def make() -> str:
            count = graph.add("ReduceSum", ATTENTION_MASK, graph.ints(1), name="kept", keepdims=0)
            last = graph.add("Sub", count, graph.whole(1), name="last_kept")
            return graph.cast(last, INT32, of=INT64)

        return graph.shared("lengths", make)

    def total_int32(self) -> str:
        """As `total`, int32."""
        graph = self.graph
        return graph.shared("total32", lambda: graph.cast(self.total(), INT32, of=INT64))

    def token_numbers(self) -> str:
        """The number of each token of the call, counted over all rows: (batch, sequence)."""
        graph = self.graph

        def make() -> str:
            count = graph.add("Size", INPUT_IDS, name="token_count")
            numbers = graph.add("Range", graph.whole(0), count, graph.whole(1), name="numbers")
            return graph.add("Reshape", numbers, self.shape(), name="token_numbers")

        return graph.shared("token_numbers", make)
