"""Attention in standard operators: it runs anywhere, and any row may be padded on either side."""

from __future__ import annotations

from dataclasses import dataclass

from convkit.converters.decoder_graph.blueprint import Attention, Norm, Rotary
from convkit.converters.decoder_graph.call import POSITION_IDS, Call
from convkit.converters.decoder_graph.graph import FLOAT, Graph
from convkit.converters.decoder_graph.parts import Parts
from convkit.converters.decoder_graph.positions import Turns, turns


@dataclass(frozen=True)
class Cache:
    """Names of a layer's keys and values: what comes in and what goes out.

    Each is (batch, heads, tokens, size).
    """

    past_key: str
    past_value: str
    present_key: str
    present_value: str


@dataclass(frozen=True)
class Plain:
    """Attention and sums in operators of the ONNX standard alone."""

    graph: Graph
    call: Call

    def attend(self, parts: Parts, value: str, attention: Attention, cache: Cache) -> str:
        """What attention gives back to the residual path; both (tokens, width)."""
        graph = self.graph
        query, key, content = projected(parts, value, attention)
        with graph.scope("query"):
            query = self._by_head(parts, query, attention, attention.heads, attention.query_norm)
        with graph.scope("key"):
            key = self._by_head(parts, key, attention, attention.kv_heads, attention.key_norm)
        shape = self.call.shape(attention.kv_heads, attention.size)
        content = graph.add("Reshape", content, shape, name="value_heads")
        content = graph.add("Transpose", content, name="value_by_head", perm=[0, 2, 1, 3])
        (key,) = graph.add_all("Concat", cache.past_key, key, outputs=[cache.present_key], axis=2)
        (content,) = graph.add_all(
            "Concat", cache.past_value, content, outputs=[cache.present_value], axis=2
        )
        mixed = self._mixed(parts, query, key, content, attention)
        mixed = graph.add("Transpose", mixed, name="mixed_by_token", perm=[0, 2, 1, 3])
        width = attention.heads * attention.size
        mixed = graph.add("Reshape", mixed, graph.ints(-1, width), name="mixed")
        return parts.project(mixed, attention.output, "output")

    def add_and_normalize(
        self, parts: Parts, residual: str, change: str, norm: Norm
    ) -> tuple[str, str]:
        """The norm of the sum, and the sum."""
        total = self.graph.add("Add", residual, change, name="residual")
        return parts.normalize(total, norm, "norm"), total

    def _by_head(
        self, parts: Parts, value: str, attention: Attention, count: int, norm: Norm | None
    ) -> str:
        """Queries or keys with their norm and their positions: (batch, heads, sequence, size)."""
        graph, size = self.graph, attention.size
        value = graph.add("Reshape", value, self.call.shape(count, size), name="heads")
        if norm is not None:
            value = parts.normalize(value, norm, "norm")
        if attention.rotary is not None:
            value = self._turned(value, attention.rotary, size)
        return graph.add("Transpose", value, name="by_head", perm=[0, 2, 1, 3])

    def _turned(self, value: str, rotary: Rotary, size: int) -> str:
        """Rotates (batch, sequence, heads, size); the first half is paired with the second."""
        graph, half = self.graph, rotary.width // 2
        tables: Turns = graph.shared(
            ("turns", rotary, size), lambda: turns(graph, POSITION_IDS, rotary, size)
        )
        sizes = [half, half, size - 2 * half] if size > 2 * half else [half, half]
        names = ["first", "second", "rest"][: len(sizes)]
        first, second, *rest = graph.add_all(
            "Split", value, graph.ints(*sizes), names=names, axis=-1
        )
        partners = graph.add("Concat", second, first, *rest, name="partners", axis=-1)
        kept = graph.add("Mul", value, tables.cosines, name="kept")
        crossed = graph.add("Mul", partners, tables.sines, name="crossed")
        return graph.add("Add", kept, crossed, name="turned")

    def _mixed(self, parts: Parts, query: str, key: str, content: str, attention: Attention) -> str:
        """Values weighted by scores: (batch, heads, sequence, size).

        Queries of a group lie behind each other, so that keys are not repeated.
        """
        graph, group = self.graph, attention.group
        if group > 1:
            shape = graph.ints(0, attention.kv_heads, -1, attention.size)
            query = graph.add("Reshape", query, shape, name="query_by_group")
        turned = graph.add("Transpose", key, name="key_turned", perm=[0, 1, 3, 2])
        scores = graph.add("MatMul", query, turned, name="scores")
        if attention.scale != 1.0:
            scale = graph.real(attention.scale, graph.float_type)
            scores = graph.add("Mul", scores, scale, name="scaled_scores")
        scores = graph.cast(scores, FLOAT)
        if attention.softcap is not None:
            scores = parts.cap(scores, attention.softcap, FLOAT)
        bias = self.call.bias(attention.window, group, FLOAT)
        scores = graph.add("Add", scores, bias, name="masked_scores")
        shares = graph.add("Softmax", scores, name="shares", axis=-1)
        shares = graph.cast(shares, graph.float_type, of=FLOAT)
        mixed = graph.add("MatMul", shares, content, name="mixed_by_group")
        if group > 1:
            shape = graph.ints(0, attention.heads, -1, attention.size)
            mixed = graph.add("Reshape", mixed, shape, name="mixed_by_head")
        return mixed


def projected(parts: Parts, value: str, attention: Attention) -> tuple[str, ...]:
    """Queries, keys and values: each (tokens, heads x size)."""
    graph, group, size = parts.graph, attention.group, attention.size
    names = ("query", "key", "value")
    if len(attention.projections) == len(names):
        return tuple(
            parts.project(value, linear, name)
            for linear, name in zip(attention.projections, names, strict=True)
        )
    joint = parts.project(value, attention.projections[0], "joint")
    if not attention.is_interleaved:
        counts = (attention.heads, attention.kv_heads, attention.kv_heads)
        widths = graph.ints(*(count * size for count in counts))
        return graph.add_all("Split", joint, widths, names=names, axis=-1)
    shape = graph.ints(-1, attention.kv_heads, (group + 2) * size)
    groups = graph.add("Reshape", joint, shape, name="groups")
    widths = graph.ints(group * size, size, size)
    by_group = graph.add_all(
        "Split", groups, widths, names=[f"{name}_by_group" for name in names], axis=-1
    )
    return tuple(
        graph.add("Flatten", part, name=name, axis=1)
        for part, name in zip(by_group, names, strict=True)
    )
