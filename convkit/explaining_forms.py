"""Layers that would be faster in another form: in int8 instead of float, or the other way round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from convkit.explaining_finding import LEAST_SHARE, Finding, finding_of, named
from convkit.explaining_profile import Node, Profile
from convkit.explaining_trials import (
    BLOCK_LAYERS,
    DYNAMIC_LAYERS,
    FLOAT_LAYERS,
    STATIC_LAYERS,
    Layer,
    Trial,
    Trials,
    layer_of,
    weight_name,
)

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
CONVERSIONS = (QUANTIZE, DEQUANTIZE)

ABSORBED = ("Relu", "Clip")
"""Activations that disappear into the rounding of what they follow."""
_LEAST_OWN = 0.2
"""A prediction below this share of the layer's own time is within what trials are off by."""
_SMALL = 1 << 18
"""Multiplications; about what a core does in the microseconds that quantizing its input takes."""
_SIZES_SHOWN = 3


class Layers:
    """Convolutions and matrix products that might run in another form.

    Attributes:
        claimed: conversions that belong to a layer which is told of.
    """

    def __init__(self, profile: Profile, trials: Trials) -> None:
        self._profile = profile
        self._trials = trials
        self.claimed: set[str] = set()
        least = LEAST_SHARE * profile.total_ms / 10
        self._layers = [
            (node, layer)
            for node in profile.nodes
            if node.ms >= least and (layer := layer_of(node, profile)) is not None
        ]
        kinds = {node.op_type for node in profile.nodes}
        self._is_static = bool(kinds & {*STATIC_LAYERS, *CONVERSIONS})
        self._is_dynamic = bool(kinds & set(DYNAMIC_LAYERS))

    def stayed_float(self) -> Iterator[Finding]:
        """Layers in float while the model is quantized, where int8 would be faster."""
        if not (self._is_static or self._is_dynamic):
            return
        groups: dict[str, list[tuple[Node, float]]] = defaultdict(list)
        beside: dict[str, list[Node]] = defaultdict(list)
        for node, layer in self._layers:
            if node.op_type not in FLOAT_LAYERS:
                continue
            gain, fallen = self._int8_gain(node, layer)
            if gain > 0:
                kind = "Conv" if layer.is_convolution else "MatMul"
                groups[kind].append((node, gain))
                beside[kind] += fallen
        for kind, members in groups.items():
            nodes = [node for node, _ in members]
            around = f", with {len(beside[kind])} Q and DQ around them" if beside[kind] else ""
            yield finding_of(
                self._profile,
                "stayed-float",
                f"{len(nodes)} {kind} compute in float in a quantized model{around}: "
                f"{named(nodes)}",
                [*nodes, *beside[kind]],
                sum(gain for _, gain in members),
                self._remedy(nodes),
            )

    def _lacking(self, nodes: Sequence[Node]) -> list[str]:
        """What of float layers has no Q and DQ; the runtime fuses only what has them on all."""
        lacking: set[str] = set()
        after: set[str] = set()
        for node in nodes:
            consumers = self._profile.consumers(node)
            if not self._is_dequantized(node.inputs[0]):
                lacking.add("their inputs")
            if not self._is_dequantized(weight_name(node)):
                lacking.add("their weights")
            after |= {one.op_type for one in consumers} - {QUANTIZE}
        if after:
            lacking.add(f"their results, before {', '.join(sorted(after))}")
        return sorted(lacking)

    def _remedy(self, nodes: Sequence[Node]) -> str:
        if not self._is_static:
            return "quantize them too; convolutions want static quantization, with calibration data"
        lacking = self._lacking(nodes)
        if lacking:
            return f"put Q and DQ on {', on '.join(lacking)}"
        types = [self._types_around(node) for node in nodes]
        mixed = [f"{took} in, {gave} out" for took, gave in dict.fromkeys(types) if took != gave]
        if mixed:
            # The runtime turns int8 into uint8 on x86, but not where a result is used twice.
            return f"no kernel mixes {'; '.join(mixed)}: quantize all activations to uint8"
        return "Q and DQ stand around them, but no kernel takes these types, scales or axes"

    def _types_around(self, node: Node) -> tuple[str, str]:
        """The types of a layer's quantized input and result."""
        before = self._profile.producer(node.inputs[0])
        after = next(iter(self._profile.consumers(node)), None)
        took = before.input_types[0][0] if before and before.input_types else ""
        gave = after.output_types[0][0] if after and after.output_types else ""
        return took, gave

    def _is_dequantized(self, value: str) -> bool:
        producer = self._profile.producer(value)
        return producer is not None and producer.op_type == DEQUANTIZE

    def _int8_gain(self, node: Node, layer: Layer) -> tuple[float, list[Node]]:
        """What a call saves if a float layer becomes int8, and the conversions that fall away."""
        static = self._is_static or layer.is_convolution
        after = self._trials.static(layer) if static else self._trials.dynamic(layer)
        before = self._trials.float32(layer)
        if before is None or after is None:
            return 0.0, []
        feeders = [self._profile.producer(value) for value in node.inputs]  # the bias as well
        fallen = [one for one in feeders if one is not None and one.op_type == DEQUANTIZE]
        results = self._results(node)
        roundings = [one for one in results if one.op_type == QUANTIZE]
        added = 0.0 if static and feeders[0] in fallen else after.before_ms
        added += 0.0 if static and results and roundings == results else after.after_ms
        scale = node.ms / before.layer_ms
        gain = node.ms + sum(one.ms for one in (*fallen, *roundings))
        gain -= scale * (after.layer_ms + added)
        if gain < _LEAST_OWN * node.ms:
            return 0.0, []
        conversions = [one for one in (*fallen, *roundings) if one.name not in self.claimed]
        self.claimed |= {one.name for one in conversions}
        return gain, conversions

    def _results(self, node: Node) -> list[Node]:
        """What takes a node's result; activations that rounding absorbs are looked through."""
        consumers = self._profile.consumers(node)
        if len(consumers) == 1 and consumers[0].op_type in ABSORBED:
            return self._profile.consumers(consumers[0])
        return consumers

    def unpaying(self) -> Iterator[Finding]:
        """Quantized layers that would be faster in float."""
        members = [
            (node, layer, gain)
            for node, layer in self._layers
            if (form := self._form(node, layer)) is not None
            and (gain := self._float_gain(node, layer, form)) > 0
        ]
        for kind in dict.fromkeys(node.op_type for node, _, _ in members):
            some = [member for member in members if member[0].op_type == kind]
            nodes = [node for node, _, _ in some]
            sizes = ", ".join(dict.fromkeys(layer.words for _, layer, _ in some[:_SIZES_SHOWN]))
            is_small = all(layer.multiplication_count < _SMALL for _, layer, _ in some)
            why = "too small for quantization to pay" if is_small else "slower than in float here"
            yield finding_of(
                self._profile,
                "does-not-pay",
                f"{len(nodes)} {kind} {why}, {sizes}: {named(nodes)}",
                nodes,
                sum(gain for _, _, gain in some),
                "keep these nodes float"
                + ("; convolutions want static quantization" if kind == "ConvInteger" else ""),
            )

    def _form(self, node: Node, layer: Layer) -> Trial | None:
        """A trial of the form in which a quantized layer runs now."""
        if node.op_type in STATIC_LAYERS:
            return self._trials.static(layer)
        if node.op_type in DYNAMIC_LAYERS:
            return self._trials.dynamic(layer)
        if node.op_type in BLOCK_LAYERS:
            return self._trials.blocks(layer, node.attributes.get("accuracy_level", 0))
        return None

    def _float_gain(self, node: Node, layer: Layer, now: Trial) -> float:
        """What a call saves if a quantized layer becomes float."""
        plain = self._trials.float32(layer)
        if plain is None:
            return 0.0
        scale = node.ms / now.layer_ms
        gain = node.ms - scale * plain.layer_ms
        producer = self._profile.producer(node.inputs[0])
        if node.op_type in DYNAMIC_LAYERS:
            gain += self._dynamic_chain_ms(node, producer)
        elif node.op_type in STATIC_LAYERS:
            gain -= scale * (plain.before_ms + plain.after_ms)  # its neighbours keep another layout
            gain += self._edge(producer, QUANTIZE, scale * now.before_ms)
            consumers = self._profile.consumers(node)
            gain += self._edge(
                consumers[0] if len(consumers) == 1 else None, DEQUANTIZE, scale * now.after_ms
            )
        return gain if gain > _LEAST_OWN * node.ms else 0.0

    def _edge(self, neighbour: Node | None, conversion: str, otherwise_ms: float) -> float:
        """A conversion beside the layer falls away; where there is none, one is needed."""
        if neighbour is not None and neighbour.op_type == conversion:
            return neighbour.ms / max(1, len(self._profile.consumers(neighbour)))
        return -otherwise_ms

    def _dynamic_chain_ms(self, node: Node, producer: Node | None) -> float:
        """What quantizes the input, its share if others use it, and what scales the result."""
        ms = 0.0
        if producer is not None and producer.op_type == "DynamicQuantizeLinear":
            ms += producer.ms / max(1, len(self._layer_consumers(producer)))
        if node.op_type in ("ConvInteger", "MatMulInteger"):
            for cast in self._profile.consumers(node):
                if cast.op_type == "Cast":
                    scalings = [
                        one for one in self._profile.consumers(cast) if one.op_type == "Mul"
                    ]
                    ms += cast.ms + sum(one.ms for one in scalings)
        return ms

    def _layer_consumers(self, node: Node) -> list[Node]:
        return [one for one in self._profile.consumers(node) if one.op_type in DYNAMIC_LAYERS]
