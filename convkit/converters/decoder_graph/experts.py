"""Mixtures of experts: each token through the few networks that a router chooses.

Tokens are sorted by expert, so that an expert is an ordinary network on a slice of them; the slice
of one that nobody chose is empty, and nothing is computed on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from convkit.converters.decoder_graph.blueprint import Experts, FeedForward, Linear
from convkit.converters.decoder_graph.graph import BOOL, FLOAT, INT64, Graph
from convkit.converters.decoder_graph.matrices import Matrix, matrix_of
from convkit.converters.decoder_graph.parts import Parts
from convkit.converters.decoder_graph.weights import slab


def mixture(parts: Parts, value: str, experts: Experts) -> str:
    """What the chosen experts give, weighted, plus what the shared one gives."""
    graph = parts.graph
    shares, chosen = _route(parts, value, experts)
    visits = _sorted(graph, chosen, experts)
    slices = graph.add_all(
        "Split",
        graph.add("Gather", value, visits.tokens, name="visitors", axis=0),
        visits.counts,
        names=[f"visitors_{number}" for number in range(experts.count)],
        axis=0,
    )
    given = _visit(parts, slices, experts)
    by_visit = graph.add("Reshape", shares, graph.ints(-1, 1), name="shares_by_visit")
    share = graph.add("Gather", by_visit, visits.order, name="sorted_shares", axis=0)
    weighted = graph.add("Mul", given, share, name="weighted")
    back = graph.add("Gather", weighted, visits.inverse, name="by_token", axis=0)
    shape = graph.ints(-1, experts.chosen, experts.router.inputs)
    back = graph.add("Reshape", back, shape, name="token_experts")
    total = graph.add("ReduceSum", back, graph.ints(1), name="mixed", keepdims=0)
    return _with_shared(parts, value, total, experts)


def _route(parts: Parts, value: str, experts: Experts) -> tuple[str, str]:
    """Shares and numbers of the chosen experts: both (tokens, chosen)."""
    graph = parts.graph
    scores = graph.cast(parts.project(value, experts.router, "router"), FLOAT)
    chances = graph.add("Softmax", scores, name="chances", axis=-1)
    shares, chosen = graph.add_all(
        "TopK", chances, graph.ints(experts.chosen), names=("shares", "chosen"), axis=-1
    )
    if experts.is_normalized:
        total = graph.add("ReduceSum", shares, graph.ints(-1), name="total", keepdims=1)
        shares = graph.add("Div", shares, total, name="normalized_shares")
    return graph.cast(shares, graph.float_type, of=FLOAT), chosen


@dataclass(frozen=True)
class _Visits:
    """Visits of tokens to experts, sorted by expert.

    Attributes:
        order: which visit comes at each place.
        inverse: the place of each visit.
        tokens: the token of each place.
        counts: visits to each expert.
    """

    order: str
    inverse: str
    tokens: str
    counts: str


def _sorted(graph: Graph, chosen: str, experts: Experts) -> _Visits:
    flat = graph.add("Reshape", chosen, graph.ints(-1), name="visits")
    shape = graph.add("Shape", flat, name="visit_shape")
    count = graph.add("Size", flat, name="visit_count")
    numbers = graph.add("Range", graph.whole(0), count, graph.whole(1), name="visit_numbers")
    # Keys are unique, so the order does not depend on how a runtime breaks ties.
    spread = graph.add("Mul", flat, count, name="spread")
    keys = graph.add("Add", spread, numbers, name="keys")
    order = _ascending(graph, keys, shape, "order")
    tokens = graph.add("Div", order, graph.whole(experts.chosen), name="tokens")
    each = graph.add("Reshape", flat, graph.ints(-1, 1), name="each_visit")
    every = graph.ints(*range(experts.count))
    hits = graph.cast(graph.add("Equal", each, every, name="hits"), INT64, of=BOOL)
    counts = graph.add("ReduceSum", hits, graph.ints(0), name="counts", keepdims=0)
    return _Visits(order, _ascending(graph, order, shape, "inverse"), tokens, counts)


def _ascending(graph: Graph, keys: str, count: str, name: str) -> str:
    """The places of keys in rising order."""
    return graph.add_all("TopK", keys, count, names=(f"{name}_keys", name), largest=0)[1]


def _visit(parts: Parts, slices: Sequence[str], experts: Experts) -> str:
    """What every expert gives to its visitors, behind each other."""
    given = []
    for number, visitors in enumerate(slices):
        with parts.graph.scope(f"expert_{number}"):
            given.append(_one(parts, visitors, experts, number))
    return parts.graph.add("Concat", *given, name="given", axis=0)


def _one(parts: Parts, value: str, experts: Experts, number: int) -> str:
    expert = experts.expert
    if f"{parts.prefix}{experts.stacked[0]}" in parts.weights:
        return _one_of_stack(parts, value, experts, number)
    return parts.feed_forward(
        value,
        FeedForward(
            expert.activation,
            up=_numbered(expert.up, number),
            down=_numbered(expert.down, number),
            gate=None if expert.gate is None else _numbered(expert.gate, number),
        ),
    )


def _one_of_stack(parts: Parts, value: str, experts: Experts, number: int) -> str:
    """An expert whose matrices lie among those of all others in two tensors."""
    graph, expert = parts.graph, experts.expert
    inner, width = expert.up.outputs, expert.up.inputs
    joint = _slab(parts, experts.stacked[0], (experts.count, 2 * inner, width), number)
    down = _slab(parts, experts.stacked[1], (experts.count, width, inner), number)
    both = parts.product(value, joint, Linear("", width, 2 * inner), "gate_and_up")
    gate, up = graph.add_all("Split", both, graph.ints(inner, inner), names=("gate", "up"), axis=-1)
    gated = graph.add("Mul", parts.activate(gate, expert.activation), up, name="gated")
    return parts.product(gated, down, expert.down, "down")


def _slab(parts: Parts, name: str, shape: tuple[int, int, int], number: int) -> Matrix:
    found, rows = parts.weights.take(f"{parts.prefix}{name}", shape)
    begin = number * shape[1]
    part = slab(rows, begin, begin + shape[1])
    return matrix_of(parts.graph, f"{found}.{number}", part, found, f"matrix {number}")


def _numbered(linear: Linear, number: int) -> Linear:
    return replace(linear, name=linear.name.format(number))


def _with_shared(parts: Parts, value: str, total: str, experts: Experts) -> str:
    if experts.shared is None:
        return total
    graph = parts.graph
    with graph.scope("shared"):
        given = parts.feed_forward(value, experts.shared)
        if experts.shared_gate is not None:
            gate = parts.project(value, experts.shared_gate, "share")
            given = graph.add("Mul", graph.add("Sigmoid", gate, name="open"), given, name="given")
        return graph.add("Add", total, given, name="sum")
