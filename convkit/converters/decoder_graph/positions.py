"""Tables of cosines and sines, computed once from the positions of a call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convkit.converters.decoder_graph.blueprint import Growth, Rotary
from convkit.converters.decoder_graph.graph import FLOAT, INT64, Graph


@dataclass(frozen=True)
class Turns:
    """Cosines and sines of a rotation.

    A rotated number is `number x cosine + partner x sine`; where nothing is rotated, the cosine is
    1 and the sine 0, and where the partner enters negatively, the sine has its sign.
    """

    cosines: str
    sines: str


def turns(graph: Graph, positions: str, rotary: Rotary, size: int) -> Turns:
    """For heads of `size` numbers, from positions (batch, sequence): (batch, sequence, 1, size)."""
    with graph.scope("positions"):
        rest = size - rotary.width
        frequencies = _frequencies(graph, positions, rotary, 2, rest)
        column = graph.add("Reshape", positions, graph.ints(0, 0, 1, 1), name="column")
        angles = _angles(graph, column, frequencies)
        half = np.full(rotary.width // 2, rotary.magnitude)
        signs = np.concatenate([-half, half, np.zeros(rest)])
        sines = graph.add("Sin", angles, name="sines")
        sines = graph.add("Mul", sines, graph.floats(signs, "signs"), name="signed_sines")
        cosines = graph.add("Cos", angles, name="cosines")
        if rotary.magnitude != 1.0:
            factors = np.concatenate([half, half, np.ones(rest)])
            factors_name = graph.floats(factors, "magnitudes")
            cosines = graph.add("Mul", cosines, factors_name, name="scaled_cosines")
        return Turns(*(graph.cast(v, graph.float_type, of=FLOAT) for v in (cosines, sines)))


def pair_tables(graph: Graph, positions: str, rotary: Rotary) -> Turns:
    """Unsigned, one number per pair, a row for each token of the call: (tokens, pairs)."""
    with graph.scope("positions"):
        frequencies = _frequencies(graph, positions, rotary, 1, 0)
        column = graph.add("Reshape", positions, graph.ints(-1, 1), name="column")
        angles = _angles(graph, column, frequencies)
        tables = []
        for kind, name in (("Cos", "cosines"), ("Sin", "sines")):
            table = graph.add(kind, angles, name=name)
            if rotary.magnitude != 1.0:
                table = graph.add("Mul", table, graph.real(rotary.magnitude), name=f"scaled_{name}")
            tables.append(graph.cast(table, graph.float_type, of=FLOAT))
        return Turns(*tables)


def _angles(graph: Graph, column: str, frequencies: str) -> str:
    numbers = graph.cast(column, FLOAT, of=INT64)
    return graph.add("Mul", numbers, frequencies, name="angles")


def _frequencies(graph: Graph, positions: str, rotary: Rotary, repeats: int, rest: int) -> str:
    """A frequency for each number: those of the pairs, `repeats` times, then zeros."""

    def spread(values: tuple[float, ...], name: str) -> str:
        repeated = np.tile(np.array(values, np.float32), repeats)
        return graph.floats(np.concatenate([repeated, np.zeros(rest)]), name)

    if rotary.growth is not None:
        exponents = tuple(np.arange(0, rotary.width, 2, dtype=np.float32) / rotary.width)
        base = _grown_base(graph, positions, rotary.growth, rotary.width)
        powers = graph.add("Pow", base, spread(exponents, "exponents"), name="powers")
        ones = spread((1.0,) * len(exponents), "rotated")
        return graph.add("Div", ones, powers, name="frequencies")
    short = spread(rotary.frequencies, "frequencies")
    if not rotary.long_frequencies:
        return short
    length = _length(graph, positions)
    is_long = graph.add("Greater", length, graph.whole(rotary.long_over), name="is_long")
    long = spread(rotary.long_frequencies, "long_frequencies")
    return graph.add("Where", is_long, long, short, name="frequencies")


def _grown_base(graph: Graph, positions: str, growth: Growth, width: int) -> str:
    """The base that a text of this length asks for."""
    length = graph.add("Max", _length(graph, positions), graph.whole(growth.limit), name="at_least")
    length = graph.cast(length, FLOAT, of=INT64)
    stretched = graph.add("Mul", length, graph.real(growth.factor), name="stretched")
    ratio = graph.add("Div", stretched, graph.real(growth.limit), name="ratio")
    excess = graph.add("Sub", ratio, graph.real(growth.factor - 1), name="excess")
    power = graph.add("Pow", excess, graph.real(width / (width - 2)), name="power")
    return graph.add("Mul", power, graph.real(growth.base), name="base")


def _length(graph: Graph, positions: str) -> str:
    """Tokens of the longest text: its last position and one."""
    last = graph.add("ReduceMax", positions, name="last", keepdims=0)
    return graph.add("Add", last, graph.whole(1), name="length")
