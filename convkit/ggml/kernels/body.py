"""The body of a kernel under construction: loops, variables, and memory by vectors.

Python runs once, when a kernel is built: a Python loop repeats instructions, a Python condition
chooses them, and a function called from it is part of the kernel. `Body.loop` and `Variable` are
for what happens while the kernel runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic

from llvmlite import ir

from convkit.ggml.kernels.values import (
    BYTE,
    FLOAT,
    INDEX,
    INT,
    LANES,
    Floats,
    Ints,
    L,
    Mask,
    Number,
    V,
    Whole,
    constant,
    index_of,
    spread,
    transposed,
    vector_of,
)

_VECTOR_BYTES = 4 * LANES


class Body:
    """What is built: instructions, and how much memory they work in.

    Attributes:
        builder: writes instructions.
        workspace_bytes: that the rooms taken so far need.
    """

    def __init__(self, builder: Any, workspace: Any) -> None:
        self.builder = builder
        self.workspace_bytes = 0
        self._workspace = workspace

    def floats(self, number: float) -> Floats:
        """A number in every lane."""
        return Floats(self.builder, constant(FLOAT, number))

    def ints(self, number: int) -> Ints:
        """A number in every lane."""
        return Ints(self.builder, constant(INT, number))

    def counted(self, number: Number) -> Floats:
        """A count, in every lane."""
        return Floats(self.builder, spread(self.builder, self.builder.sitofp(number.raw, FLOAT)))

    def float_room(self, row_count: int) -> Tile[Floats]:
        """Memory for vectors while the kernel runs."""
        return Tile(self.builder, self._take(FLOAT, row_count), Floats)

    def int_room(self, row_count: int) -> Tile[Ints]:
        """Memory for vectors while the kernel runs."""
        return Tile(self.builder, self._take(INT, row_count), Ints)

    def _take(self, element: Any, row_count: int) -> Any:
        place = self.builder.gep(self._workspace, [ir.Constant(INDEX, self.workspace_bytes)])
        self.workspace_bytes += row_count * _VECTOR_BYTES
        return self.builder.bitcast(place, element.as_pointer())

    @contextmanager
    def loop(self, begin: Whole, end: Whole, step: int = 1) -> Iterator[Number]:
        """Repeats what is built inside for begin, begin + step ... below `end`; at least once."""
        builder = self.builder
        before, inside = builder.block, builder.append_basic_block()
        builder.branch(inside)
        builder.position_at_end(inside)
        count = builder.phi(INDEX)
        count.add_incoming(index_of(begin), before)
        yield Number(builder, count)
        following = builder.add(count, ir.Constant(INDEX, step))
        count.add_incoming(following, builder.block)
        after = builder.append_basic_block()
        builder.cbranch(builder.icmp_signed("<", following, index_of(end)), inside, after)
        builder.position_at_end(after)

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Runs what is built inside only if a condition holds."""
        with self.builder.if_then(condition):
            yield


class Variable(Generic[V]):
    """A value that changes while the kernel runs."""

    def __init__(self, first: V) -> None:
        self._builder, self._kind = first.builder, type(first)
        with self._builder.goto_entry_block():
            self._place = self._builder.alloca(first.raw.type)
        self.value = first

    @property
    def value(self) -> V:
        """The present value."""
        return self._kind(self._builder, self._builder.load(self._place))

    @value.setter
    def value(self, new: V) -> None:
        self._builder.store(new.raw, self._place)


@dataclass(frozen=True)
class Tile(Generic[L]):
    """Vectors in memory, one after another; `tile[i]` is the i-th.

    A tile of elements holds 16 blocks side by side: its i-th vector is the i-th element of all 16.
    """

    builder: Any
    pointer: Any
    kind: type[L]

    def __getitem__(self, row: Whole) -> L:
        return self.kind(self.builder, self.builder.load(self._place(row), align=4))

    def __setitem__(self, row: Whole, value: L) -> None:
        self.builder.store(value.raw, self._place(row), align=4)

    def rows_from(self, row: Whole) -> Tile[L]:
        """The tile from a vector on."""
        return Tile(self.builder, self._element(row, 0), self.kind)

    def spread(self, row: Whole, lane: Whole) -> L:
        """One number, in every lane."""
        scalar = self.builder.load(self._element(row, lane))
        return self.kind(self.builder, spread(self.builder, scalar))

    def column(self, row: Whole, lane: Whole) -> L:
        """One lane of 16 vectors, as a vector."""
        raw = ir.Constant(vector_of(self.pointer.type.pointee), ir.Undefined)
        for i in range(LANES):
            scalar = self.builder.load(self._element(Number(self.builder, index_of(row)) + i, lane))
            raw = self.builder.insert_element(raw, scalar, ir.Constant(INT, i))
        return self.kind(self.builder, raw)

    def is_zero(self, row: Whole, lane: Whole) -> Any:
        """Whether one float is zero: a condition for `Body.when`."""
        scalar = self.builder.load(self._element(row, lane))
        return self.builder.fcmp_ordered("==", scalar, ir.Constant(FLOAT, 0.0))

    def _element(self, row: Whole, lane: Whole) -> Any:
        index = Number(self.builder, index_of(row)) * LANES + lane
        return self.builder.gep(self.pointer, [index.raw])

    def _place(self, row: Whole) -> Any:
        place = self._element(row, 0)
        return self.builder.bitcast(place, vector_of(place.type.pointee).as_pointer())


@dataclass(frozen=True)
class Elements:
    """float32 in memory."""

    builder: Any
    pointer: Any

    def from_element(self, index: Whole) -> Elements:
        """The elements from one on."""
        return Elements(self.builder, self.builder.gep(self.pointer, [index_of(index)]))

    def vector(self, index: Whole) -> Floats:
        """16 elements from an index."""
        return Floats(self.builder, self.builder.load(self._place(index), align=4))

    def write(self, index: Whole, values: Floats) -> None:
        """Writes 16 elements from an index."""
        self.builder.store(values.raw, self._place(index), align=4)

    def spread(self, index: Whole) -> Floats:
        """One element, in every lane."""
        scalar = self.builder.load(self.from_element(index).pointer)
        return Floats(self.builder, spread(self.builder, scalar))

    def _place(self, index: Whole) -> Any:
        place = self.from_element(index).pointer
        return self.builder.bitcast(place, vector_of(FLOAT).as_pointer())


@dataclass(frozen=True)
class Bytes:
    """Bytes to write."""

    builder: Any
    pointer: Any

    def from_byte(self, index: Whole) -> Bytes:
        """The bytes from one on."""
        return Bytes(self.builder, self.builder.gep(self.pointer, [index_of(index)]))

    def write(self, index: Whole, values: Ints, count: int = LANES) -> None:
        """Writes the lowest 8 bits of the first `count` lanes."""
        narrow = self.builder.trunc(values.raw, vector_of(BYTE))
        if count < LANES:
            lanes = ir.Constant(ir.VectorType(INT, count), list(range(count)))
            narrow = self.builder.shuffle_vector(narrow, narrow, lanes)
        place = self.from_byte(index).pointer
        self.builder.store(narrow, self.builder.bitcast(place, narrow.type.as_pointer()), align=1)

    def write_pairs(self, index: Whole, values: Ints) -> None:
        """Writes the lowest 16 bits of each lane, the lower byte first."""
        narrow = self.builder.trunc(values.raw, vector_of(ir.IntType(16)))
        place = self.from_byte(index).pointer
        self.builder.store(narrow, self.builder.bitcast(place, narrow.type.as_pointer()), align=1)

    def write_mask(self, index: Whole, mask: Mask) -> None:
        """Writes two bytes, a bit for each lane, the first lane's lowest."""
        packed = self.builder.bitcast(mask.raw, ir.IntType(LANES))
        place = self.from_byte(index).pointer
        self.builder.store(packed, self.builder.bitcast(place, packed.type.as_pointer()), align=1)


def gathered(places: list[Elements]) -> Floats:
    """One element of each of 16 places."""
    builder = places[0].builder
    raw = ir.Constant(vector_of(FLOAT), ir.Undefined)
    for lane, place in enumerate(places):
        raw = builder.insert_element(raw, builder.load(place.pointer), ir.Constant(INT, lane))
    return Floats(builder, raw)


def turned(blocks: list[Elements], offset: Whole) -> list[Floats]:
    """16 elements of each of 16 blocks, as 16 vectors: the i-th holds every block's i-th."""
    return transposed([block.vector(offset) for block in blocks])
