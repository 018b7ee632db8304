"""Why a model is slow: what its profile shows, each with its time and what a change would save."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from convkit.explaining_finding import LEAST_SHARE, Finding, finding_of, named
from convkit.explaining_forms import ABSORBED, CONVERSIONS, DEQUANTIZE, QUANTIZE, Layers
from convkit.explaining_profile import Node, Profile
from convkit.explaining_trials import (
    BLOCK_LAYERS,
    DYNAMIC_LAYERS,
    STATIC_LAYERS,
    Trials,
    layer_of,
)

_MOVING = (
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "ReorderInput", "ReorderOutput",
)  # fmt: skip
_ACCURATE = (0, 1, 2, 3)
"""Levels at which MatMulNBits computes in float. Source: onnxruntime, docs/ContribOperators.md."""


def find(
    profile: Profile, instruction_sets: Sequence[str], wanted: str, trial_s: float = 0.1
) -> list[Finding]:
    """Everything that is worth a hundredth of the time, the largest gain first.

    Args:
        profile: of the model.
        instruction_sets: of this processor.
        wanted: the provider that all nodes should run on.
        trial_s: for each layer that is tried in another form.
    """
    total = profile.total_ms
    trials = Trials(trial_s)
    layers = Layers(profile, trials)
    found = [
        *layers.stayed_float(),
        *layers.unpaying(),
        *_levels(profile, trials),
        *_conversions(profile, layers.claimed),
        *_half_casts(profile),
        *_foreign(profile, wanted),
        *_instructions(profile, instruction_sets),
    ]
    worth = [
        one
        for one in found
        if (one.share if one.gain_ms is None else one.gain_ms / total) >= LEAST_SHARE
    ]
    return sorted(worth, key=lambda one: -(one.gain_ms or 0.0))


def _levels(profile: Profile, trials: Trials) -> Iterator[Finding]:
    """MatMulNBits that unpack their weights and compute in float."""
    gains: list[tuple[Node, float]] = []
    for node in profile.nodes:
        level = node.attributes.get("accuracy_level", 0)
        layer = layer_of(node, profile) if node.op_type in BLOCK_LAYERS else None
        if layer is None or level not in _ACCURATE:
            continue
        now, fast = trials.blocks(layer, level), trials.blocks(layer, 4)
        if now is not None and fast is not None and fast.layer_ms < now.layer_ms:
            gains.append((node, node.ms * (1 - fast.layer_ms / now.layer_ms)))
    if gains:
        nodes = [node for node, _ in gains]
        yield finding_of(
            profile,
            "accuracy-level",
            f"{len(nodes)} MatMulNBits without accuracy_level 4 compute in float: {named(nodes)}",
            nodes,
            sum(gain for _, gain in gains),
            "set accuracy_level=4: products in int8",
        )


def _conversions(profile: Profile, claimed: set[str]) -> Iterator[Finding]:
    """QuantizeLinear and DequantizeLinear that nothing absorbed, by the reason for it."""
    groups: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in profile.nodes:
        if node.op_type in CONVERSIONS and node.name not in claimed and node.inputs:
            reason = _reason(node, profile)
            if reason is not None:
                groups[_sorted_out(*reason)].append(node)
    for (kind, cause), nodes in groups.items():
        if kind == "padding":
            nodes += [node for node in profile.nodes if _is_between(node, nodes, profile)]
        what, remedy = _CONVERSION_WORDS[kind]
        yield finding_of(
            profile,
            "unfused-qdq",
            f"{len(nodes)} {what.format(cause=cause)}: {named(nodes)}",
            nodes,
            sum(node.ms for node in nodes),
            remedy.format(cause=cause),
        )


_CONVERSION_WORDS = {
    "rounding": (
        "Q and DQ between float operators ({cause}) only round, at the price of two passes",
        "leave {cause} out of quantization, no int8 kernel takes these pairs",
    ),
    "weights": (
        "DQ unpack weights in every call, for {cause}",
        "keep these weights float, or quantize what {cause} takes and gives as well",
    ),
    "island": (
        "Q and DQ go from int8 to float and back for {cause}, which runs in float here",
        "use an operator with an int8 kernel in place of {cause}, or keep its neighbours float",
    ),
    "types": (
        "Q and DQ turn one 8-bit type or scale into another",
        "quantize all activations to one type, uint8 on x86, and shared values with one scale",
    ),
    "padding": (
        "Q, DQ and the {cause} between them stand before convolutions",
        "fold {cause} into the convolution behind it before quantizing: Conv pads by itself",
    ),
    "activation": (
        "Q and DQ stand before and behind {cause}",
        "quantize the result of {cause} only, with its lowest value as zero point: it falls away",
    ),
}


def _reason(node: Node, profile: Profile) -> tuple[str, str] | None:
    """Why a conversion remained, and for which operator; None at the ends of the model."""
    consumers = profile.consumers(node)
    if node.op_type == DEQUANTIZE:
        if node.inputs[0] in profile.weights:
            return "weights", _types_of(consumers)
        producer = profile.producer(node.inputs[0])
        if producer is not None and producer.op_type == QUANTIZE:
            return "rounding", _types_of([_giver(producer, profile)])
        if not consumers:
            return None  # what the model gives
        return "island", _types_of([_taker(one, profile) for one in consumers])
    giver = _giver(node, profile)
    if consumers and all(one.op_type == DEQUANTIZE for one in consumers):
        return "rounding", _types_of([giver])
    return None if giver is None else ("island", giver.op_type)


def _is_between(node: Node, conversions: Sequence[Node], profile: Profile) -> bool:
    """Whether a Pad stands between some of these conversions; it falls away with them."""
    giver = profile.producer(node.inputs[0]) if node.inputs else None
    return node.op_type == "Pad" and (
        giver in conversions or any(one in conversions for one in profile.consumers(node))
    )


def _sorted_out(kind: str, cause: str) -> tuple[str, str]:
    """The same with what the operator tells beyond it."""
    if cause in CONVERSIONS:
        return "types", ""
    if kind == "island" and (cause == "Pad" or cause in ABSORBED):
        return ("padding" if cause == "Pad" else "activation"), cause
    return kind, cause


def _giver(quantize: Node, profile: Profile) -> Node | None:
    """The operator whose result is quantized; those that only move numbers are looked through."""
    node = profile.producer(quantize.inputs[0])
    while node is not None and node.op_type in _MOVING:
        node = profile.producer(node.inputs[0])
    return node


def _taker(node: Node, profile: Profile) -> Node:
    """The operator that a value is for; those that only move numbers are looked through."""
    while node.op_type in _MOVING and len(after := profile.consumers(node)) == 1:
        node = after[0]
    return node


def _types_of(nodes: Sequence[Node | None]) -> str:
    return ", ".join(dict.fromkeys("inputs" if one is None else one.op_type for one in nodes))


def _half_casts(profile: Profile) -> Iterator[Finding]:
    """Casts between half precision and float, which the runtime inserts where kernels lack."""
    casts = [
        node
        for node in profile.nodes
        if node.op_type == "Cast"
        and any(dtype == "float16" for dtype, _ in (*node.input_types, *node.output_types))
    ]
    if casts:
        yield finding_of(
            profile,
            "half-casts",
            f"{len(casts)} Cast between float16 and float32: this processor computes in float32",
            casts,
            sum(node.ms for node in casts),
            "use the fp32 model on CPUs; fp16 pays on GPUs",
        )


def _foreign(profile: Profile, wanted: str) -> Iterator[Finding]:
    """Nodes that run on another provider than the one that was asked for, and copies for them."""
    foreign = [node for node in profile.nodes if node.provider and node.provider != wanted]
    copies = [node for node in profile.nodes if node.op_type.startswith("Memcpy")]
    if foreign or copies:
        where = ", ".join(dict.fromkeys(node.provider for node in foreign)) or wanted
        nodes = list(dict.fromkeys([node.name for node in (*foreign, *copies)]))
        members = [node for node in profile.nodes if node.name in nodes]
        yield finding_of(
            profile,
            "fallback-provider",
            f"{len(foreign)} nodes fell back to {where}, with {len(copies)} copies between: "
            f"{_types_of(foreign)}",
            members,
            sum(node.ms for node in copies),
            f"use operators that {wanted} has",
        )


def _instructions(profile: Profile, instruction_sets: Sequence[str]) -> Iterator[Finding]:
    """Integer layers on a processor without dot products of bytes."""
    dots = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
    layers = [
        node
        for node in profile.nodes
        if node.op_type in (*STATIC_LAYERS, *DYNAMIC_LAYERS)
        or (node.op_type in BLOCK_LAYERS and node.attributes.get("accuracy_level", 0) == 4)
    ]
    if layers and not any(name in instruction_sets for name in dots):
        yield finding_of(
            profile,
            "missing-instructions",
            f"this processor has no dot products of bytes (VNNI): {len(layers)} integer layers "
            "take several instructions for each",
            layers,
            None,
            "measure on the machine that will run it; here fp32 may be as fast",
        )
