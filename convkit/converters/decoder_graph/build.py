"""A decoder language model as an ONNX graph with a cache of keys and values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Precision
from convkit.checkpoint.rows import Rows
from convkit.converters.decoder_graph.attention import Cache, Plain
from convkit.converters.decoder_graph.blueprint import Blueprint, Experts, Layer
from convkit.converters.decoder_graph.call import ATTENTION_MASK, INPUT_IDS, POSITION_IDS, Call
from convkit.converters.decoder_graph.experts import mixture
from convkit.converters.decoder_graph.fused import Fused
from convkit.converters.decoder_graph.graph import BFLOAT16, FLOAT, FLOAT16, INT64, Graph
from convkit.converters.decoder_graph.matrices import Matrix
from convkit.converters.decoder_graph.parts import Parts
from convkit.converters.decoder_graph.weights import CHANGED, Weights, are_equal
from convkit.converters.onnx_stream import (
    EXTERNAL_OVER_BYTES,
    Streamed,
    ir_version_for,
    write_streamed,
)
from convkit.errors import UnsupportedError, UsageError
from convkit.ggml.types import TYPES
from convkit.naming import listed
from convkit.onnx_metadata import CONFIG_KEY, WEIGHTS_KEY

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 18
"""The first in which ReduceMean takes its axes as an input."""

DIALECTS: Mapping[str, Callable[[Graph, Call], Plain | Fused]] = {"plain": Plain, "fused": Fused}

_HALVES = {Precision.FP16: FLOAT16, Precision.BF16: BFLOAT16}

_BATCH, _SEQUENCE, _PAST = "batch_size", "sequence_length", "past_sequence_length"
_TOTAL = f"{_PAST} + {_SEQUENCE}"


@dataclass(frozen=True)
class Built:
    """A model whose weights are still where they come from.

    Attributes:
        proto: all but the weights.
        weights: initializers that are read when they are written.
        seen: sentences on what was seen while building.
        rounded: weights that lost digits; they come in while writing.
    """

    proto: onnx.ModelProto
    weights: tuple[Streamed, ...]
    seen: tuple[str, ...]
    rounded: Collection[str]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report; complete when the model is written."""
        if not self.rounded:
            return self.seen
        names = listed(sorted(self.rounded), 3)
        return (*self.seen, f"rounded, as PyTorch does when it loads them: {names}")

    def write(
        self,
        out: Path,
        *,
        external_over_bytes: int = EXTERNAL_OVER_BYTES,
        progress: Callable[[int], None] = lambda byte_count: None,
    ) -> None:
        """Writes it; see `write_streamed`. The model is used up."""
        write_streamed(
            self.proto,
            self.weights,
            out,
            external_over_bytes=external_over_bytes,
            progress=progress,
        )


def build(
    blueprint: Blueprint,
    tensors: Mapping[str, Rows],
    config: Mapping[str, Any],
    *,
    others: Collection[str] = (),
    precision: Precision = Precision.FP32,
    attention: str = "plain",
    opset: int = 20,
    accuracy_level: int = 4,
) -> Built:
    """The graph of a network, with the tensors of a checkpoint as its weights.

    It takes `input_ids` and, where positions matter, `position_ids`, both (batch, tokens),
    `attention_mask` (batch, past and tokens), and for each layer `past_key_values.N.key` and
    `.value` (batch, heads, past, size); it gives `logits` (batch, tokens, vocabulary) and
    `present.N.key` and `.value` (batch, heads, past and tokens, size).

    Args:
        blueprint: what the network computes.
        tensors: of the checkpoint, under transformers' names; each has to have a place.
        config: what the blueprint was read from; it goes into the model's metadata.
        others: names of what else the checkpoint holds, tables of integers mostly.
        precision: of weights, cache and logits; a quantized one leaves all that is not quantized in
            float32.
        attention: `plain`, or `fused` for operators of ONNX Runtime.
        opset: of the standard operators.
        accuracy_level: of products with block-quantized matrices: 4 rounds what they are multiplied
            with to 8 bits per block, as llama.cpp does, 1 computes in float32, which is slow for
            types of more than 4 bits. Source: onnxruntime, docs/ContribOperators.md, MatMulNBits.

    Raises:
        UsageError: there is no such attention, or the opset is too old.
        ModelError: a tensor is missing or has another shape.
        UnsupportedError: a tensor is left over, or an option has no expression.
    """
    if attention not in DIALECTS:
        raise UsageError(f"attention is one of {', '.join(DIALECTS)}, not '{attention}'.")
    if opset < OLDEST_OPSET:
        raise UsageError(f"A language model needs opset {OLDEST_OPSET} or newer, not {opset}.")
    graph = Graph(opset, _HALVES.get(precision, FLOAT), accuracy_level)
    weights = Weights(tensors, blueprint.unused, others)
    network = _Network(blueprint, graph, weights, DIALECTS[attention](graph, Call(graph)))
    network.build()
    weights.check_all_used()
    return Built(
        _model(blueprint, graph, config),
        tuple(graph.weights.values()),
        tuple(_notes(blueprint, graph)),
        graph.rounded,
    )


def _notes(blueprint: Blueprint, graph: Graph) -> Iterator[str]:
    """What a user should hear of options nobody looked at and of weights kept otherwise."""
    if blueprint.unread:
        yield f"config.json keys without a meaning here: {', '.join(blueprint.unread)}"
    changes = (how.rpartition(CHANGED)[2] for _, how in graph.sources.values() if CHANGED in how)
    for kind, count in Counter(changes).items():
        if TYPES[kind].is_quantized:
            yield f"tensors of type {kind} that became floats: {count}"


@dataclass(frozen=True)
class _Network:
    """The layers of a network, one after the other."""

    blueprint: Blueprint
    graph: Graph
    weights: Weights
    dialect: Plain | Fused

    def build(self) -> None:
        """Adds all nodes."""
        blueprint, graph = self.blueprint, self.graph
        whole = Parts(graph, self.weights)
        table = whole.matrix(f"{blueprint.embedding}.weight", blueprint.vocabulary, blueprint.width)
        with graph.scope("embedding"):
            residual = self._embed(whole, table)
        layers = blueprint.layers
        parts = [whole.within(layer.prefix) for layer in layers]
        with graph.scope("layer_0"):
            value = parts[0].normalize(residual, layers[0].attention_norm, "attention_norm")
        for number, layer in enumerate(layers):
            with graph.scope(f"layer_{number}"):
                change, residual = self._layer(parts[number], layer, value, residual, number)
            is_last = number + 1 == len(layers)
            following = whole if is_last else parts[number + 1]
            norm = blueprint.final_norm if is_last else layers[number + 1].attention_norm
            with graph.scope("final" if is_last else f"layer_{number + 1}"):
                value, residual = self.dialect.add_and_normalize(following, residual, change, norm)
        with graph.scope("head"):
            self._give_logits(whole, value, table)

    def _embed(self, parts: Parts, table: Matrix) -> str:
        blueprint, graph = self.blueprint, self.graph
        flat = graph.add("Reshape", INPUT_IDS, graph.ints(-1), name="tokens")
        value = table.rows(graph, flat, "embedded")
        if blueprint.embedding_scale != 1.0:
            scale = graph.real(blueprint.embedding_scale, graph.float_type)
            value = graph.add("Mul", value, scale, name="scaled")
        if blueprint.positions is not None:
            name, count = blueprint.positions
            places = parts.matrix(f"{name}.weight", count, blueprint.width)
            flat = graph.add("Reshape", POSITION_IDS, graph.ints(-1), name="positions")
            place = places.rows(graph, flat, "placed")
            value = graph.add("Add", value, place, name="with_positions")
        return value

    def _layer(
        self, parts: Parts, layer: Layer, value: str, residual: str, number: int
    ) -> tuple[str, str]:
        """What is to be added to the residual path, and that path so far."""
        graph = self.graph
        cache = Cache(
            f"past_key_values.{number}.key",
            f"past_key_values.{number}.value",
            f"present.{number}.key",
            f"present.{number}.value",
        )
        with graph.scope("attention"):
            change = self.dialect.attend(parts, value, layer.attention, cache)
        if layer.after_attention is not None:
            change = parts.normalize(change, layer.after_attention, "after_attention")
        if layer.is_parallel:
            if layer.feed_forward_norm is not None:
                value = parts.normalize(residual, layer.feed_forward_norm, "feed_forward_norm")
            given = self._feed_forward(parts, layer, value)
            return graph.add("Add", change, given, name="both"), residual
        if layer.feed_forward_norm is None:
            raise UnsupportedError("A layer whose halves follow each other needs two norms.")
        value, residual = self.dialect.add_and_normalize(
            parts, residual, change, layer.feed_forward_norm
        )
        return self._feed_forward(parts, layer, value), residual

    def _feed_forward(self, parts: Parts, layer: Layer, value: str) -> str:
        with self.graph.scope("feed_forward"):
            if isinstance(layer.feed_forward, Experts):
                given = mixture(parts, value, layer.feed_forward)
            else:
                given = parts.feed_forward(value, layer.feed_forward)
        if layer.after_feed_forward is not None:
            given = parts.normalize(given, layer.after_feed_forward, "after_feed_forward")
        return given

    def _give_logits(self, parts: Parts, value: str, table: Matrix) -> None:
        blueprint, graph = self.blueprint, self.graph
        if self._is_tied():
            flat = parts.product(value, table, blueprint.head, "flat_logits")
        else:
            flat = parts.project(value, blueprint.head, "flat_logits")
        if blueprint.softcap is not None:
            flat = parts.cap(flat, blueprint.softcap, graph.float_type)
        shape = self.dialect.call.shape(blueprint.vocabulary)
        graph.add_all("Reshape", flat, shape, outputs=["logits"])

    def _is_tied(self) -> bool:
        """Whether the head uses the table of tokens.

        A checkpoint with both, unequal, is not tied, whatever its configuration says.
        Source: `PreTrainedModel.tie_weights` of transformers 5.23.
        """
        blueprint, weights = self.blueprint, self.weights
        name = f"{blueprint.head.name}.weight"
        if not blueprint.is_tied:
            return False
        if name not in weights:
            return True
        shape = (blueprint.vocabulary, blueprint.width)
        _, head = weights.take(name, shape)
        _, table = weights.take(f"{blueprint.embedding}.weight", shape)
        return are_equal(head, table)


def _model(blueprint: Blueprint, graph: Graph, config: Mapping[str, Any]) -> onnx.ModelProto:
    from onnx import helper

    inputs, outputs = _interface(blueprint, graph.float_type)
    made = helper.make_graph(
        graph.nodes, blueprint.family, inputs, outputs, initializer=graph.constants
    )
    opsets = [helper.make_opsetid("", graph.opset)]
    opsets += [helper.make_opsetid(domain, 1) for domain in sorted(graph.domains)]
    model = helper.make_model(
        made,
        opset_imports=opsets,
        ir_version=ir_version_for(graph.opset),
        producer_name="convkit",
    )
    metadata = {WEIGHTS_KEY: graph.sources, CONFIG_KEY: config}
    helper.set_model_props(
        model, {key: json.dumps(value, separators=(",", ":")) for key, value in metadata.items()}
    )
    return model


def _interface(
    blueprint: Blueprint, float_type: int
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Inputs and outputs, named as optimum names them.

    Source: optimum, `exporters/onnx/model_configs.py`.
    """
    from onnx import helper

    info = helper.make_tensor_value_info
    tokens: list[str | int | None] = [_BATCH, _SEQUENCE]
    inputs = [info(INPUT_IDS, INT64, tokens), info(ATTENTION_MASK, INT64, [_BATCH, _TOTAL])]
    if blueprint.has_positions:
        inputs.append(info(POSITION_IDS, INT64, tokens))
    outputs = [info("logits", float_type, [*tokens, blueprint.vocabulary])]
    for number, layer in enumerate(blueprint.layers):
        heads, size = layer.attention.kv_heads, layer.attention.size
        for kind in ("key", "value"):
            name = f"{number}.{kind}"
            past: list[str | int | None] = [_BATCH, heads, _PAST, size]
            inputs.append(info(f"past_key_values.{name}", float_type, past))
            present: list[str | int | None] = [_BATCH, heads, _TOTAL, size]
            outputs.append(info(f"present.{name}", float_type, present))
    return inputs, outputs
