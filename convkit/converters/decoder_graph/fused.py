"""Attention in ONNX Runtime's own operators: fewer nodes, less memory for long texts.

GroupQueryAttention takes several rows at once in a first call only; after that, one row, or one
token of each. Padding is told to it as a bias, so that it may be on either side.
"""

from __future__ import annotations

from dataclasses import dataclass

from convkit.converters.decoder_graph.attention import Cache, projected
from convkit.converters.decoder_graph.blueprint import Attention, Norm, Rotary
from convkit.converters.decoder_graph.call import POSITION_IDS, Call
from convkit.converters.decoder_graph.graph import MICROSOFT, Graph
from convkit.converters.decoder_graph.parts import Parts
from convkit.converters.decoder_graph.positions import Turns, pair_tables
from convkit.errors import UnsupportedError

_HEAD_STEP = 8
"""Source: onnxruntime, contrib_ops/cpu/bert/group_query_attention_helper.h."""


@dataclass(frozen=True)
class Fused:
    """Attention as GroupQueryAttention; a sum and its norm in one node."""

    graph: Graph
    call: Call

    def attend(self, parts: Parts, value: str, attention: Attention, cache: Cache) -> str:
        """What attention gives back to the residual path; both (tokens, width)."""
        if attention.size % _HEAD_STEP:
            raise UnsupportedError(
                f"Fused attention needs heads of a multiple of {_HEAD_STEP} numbers; these have "
                f"{attention.size}.",
                hint="Plain attention takes any:  attention=plain",
            )
        graph = self.graph
        query, key, content = projected(parts, value, attention)
        with graph.scope("query"):
            query = self._by_token(parts, query, attention, attention.heads, attention.query_norm)
        with graph.scope("key"):
            key = self._by_token(parts, key, attention, attention.kv_heads, attention.key_norm)
        shape = self.call.shape(attention.kv_heads * attention.size)
        content = graph.add("Reshape", content, shape, name="value_by_token")
        mixed = self._mixed(query, key, content, attention, cache)
        width = attention.heads * attention.size
        mixed = graph.add("Reshape", mixed, graph.ints(-1, width), name="mixed")
        return parts.project(mixed, attention.output, "output")

    def add_and_normalize(
        self, parts: Parts, residual: str, change: str, norm: Norm
    ) -> tuple[str, str]:
        """The norm of the sum, and the sum."""
        graph = self.graph
        if norm.is_centered:
            total = graph.add("Add", residual, change, name="residual")
            return parts.normalize(total, norm, "norm"), total
        even, _, _, total = graph.add_all(
            "SkipSimplifiedLayerNormalization",
            residual,
            change,
            parts.norm_weight(norm, graph.float_type),
            names=("normalized", "", "", "residual"),
            domain=MICROSOFT,
            epsilon=norm.epsilon,
        )
        return even, total

    def _by_token(
        self, parts: Parts, value: str, attention: Attention, count: int, norm: Norm | None
    ) -> str:
        """Queries or keys with their norm and their positions: (batch, sequence, width)."""
        graph, size = self.graph, attention.size
        if norm is not None:
            value = graph.add("Reshape", value, graph.ints(-1, count, size), name="heads")
            value = parts.normalize(value, norm, "norm")
        shape = self.call.shape(count * size)
        value = graph.add("Reshape", value, shape, name="by_token")
        if attention.rotary is None:
            return value
        return self._turned(value, attention.rotary, count, size)

    def _turned(self, value: str, rotary: Rotary, count: int, size: int) -> str:
        graph = self.graph
        tables: Turns = graph.shared(
            ("pairs", rotary), lambda: pair_tables(graph, POSITION_IDS, rotary)
        )
        # The tables have a row for each token of this call, so a token's row is its number.
        return graph.add(
            "RotaryEmbedding",
            value,
            self.call.token_numbers(),
            tables.cosines,
            tables.sines,
            name="turned",
            domain=MICROSOFT,
            num_heads=count,
            rotary_embedding_dim=rotary.width if rotary.width < size else 0,
        )

    def _mixed(self, query: str, key: str, content: str, attention: Attention, cache: Cache) -> str:
        settings: dict[str, float] = {
            "num_heads": attention.heads,
            "kv_num_heads": attention.kv_heads,
            "scale": attention.scale,
        }
        if attention.softcap is not None:
            settings["softcap"] = attention.softcap
        return self.graph.add_all(
            "GroupQueryAttention",
            query,
            key,
            content,
            cache.past_key,
            cache.past_value,
            self.call.last_places(),
            self.call.total_int32(),
            "",  # tables of cosines and sines, and positions: queries and keys are turned already
            "",
            "",
            self.call.bias(attention.window, 1, self.graph.float_type),
            names=["mixed_by_token"],
            outputs=[cache.present_key, cache.present_value],
            domain=MICROSOFT,
            **settings,
        )[0]
