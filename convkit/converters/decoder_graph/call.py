"""What all layers of a call share: its inputs, shapes made of their sizes, and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convkit.converters.decoder_graph.graph import (
    BFLOAT16,
    BOOL,
    FLOAT,
    FLOAT16,
    INT32,
    INT64,
    Graph,
)

INPUT_IDS, ATTENTION_MASK, POSITION_IDS = "input_ids", "attention_mask", "position_ids"

_MASKED = {FLOAT: float(np.finfo(np.float32).min), FLOAT16: -65504.0, BFLOAT16: -3.38e38}
"""Added to a masked score, by type: its least number, or nearly. Not minus infinity, so that a row
that sees nothing stays finite."""


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

    def bias(self, window: int | None, group: int, float_type: int) -> str:
        """What is added to scores: (batch, 1, group x sequence, total).

        A token sees itself and what came before it in the cache, at most `window` tokens in all,
        except where `attention_mask` is 0. Rows come `group` times, as the queries of a group do.
        """
        return self.graph.shared(
            ("bias", window, group), lambda: self._bias(window, group, float_type)
        )

    def _bias(self, window: int | None, group: int, float_type: int) -> str:
        graph = self.graph
        masked = graph.real(_MASKED[float_type], float_type)
        seen = graph.shared(("seen", window), lambda: self._seen(window))
        bias = graph.add("Where", seen, graph.real(0.0, float_type), masked, name="bias")
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

    def last_places(self) -> str:
        """The place of each row's last token in the cache, padding counted: (batch), int32."""
        graph = self.graph

        def make() -> str:
            last = graph.add("Sub", self.total(), graph.whole(1), name="last")
            last = graph.cast(last, INT32, of=INT64)
            batch = graph.add("Shape", INPUT_IDS, name="batch", end=1)
            return graph.add("Expand", last, batch, name="last_places")

        return graph.shared("last_places", make)

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
