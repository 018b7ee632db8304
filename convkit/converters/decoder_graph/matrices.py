"""Matrices of a checkpoint, float or block-quantized: products with them, and rows of them."""

from __future__ import annotations

from dataclasses import dataclass

from convkit.checkpoint.rows import Rows
from convkit.converters.decoder_graph.graph import FLOAT, MICROSOFT, UINT8, Graph
from convkit.converters.decoder_graph.packed import Form, form_of, streams
from convkit.converters.decoder_graph.weights import streamed


@dataclass(frozen=True)
class FloatMatrix:
    """A matrix in floats.

    Attributes:
        name: of its initializer.
        is_turned: it lies (inputs, outputs), else (outputs, inputs).
    """

    name: str
    is_turned: bool = False

    def product(self, graph: Graph, value: str, bias: str, name: str) -> str:
        """The value (tokens, inputs) times the matrix, plus the bias, if there is one."""
        inputs = [value, self.name, *filter(None, [bias])]
        return graph.add("Gemm", *inputs, name=name, transB=int(not self.is_turned))

    def rows(self, graph: Graph, numbers: str, name: str) -> str:
        """Rows by their numbers (tokens)."""
        return graph.add("Gather", self.name, numbers, name=name, axis=0)


@dataclass(frozen=True)
class PackedMatrix:
    """A block-quantized matrix, (outputs, inputs).

    Attributes:
        levels, scales: names of initializers.
        offsets: likewise; "" where blocks have none.
        form: how it is packed.
        outputs, inputs: its shape.
    """

    levels: str
    scales: str
    offsets: str
    form: Form
    outputs: int
    inputs: int

    def product(self, graph: Graph, value: str, bias: str, name: str) -> str:
        """The value (tokens, inputs) times the matrix, plus the bias, if there is one."""
        form = self.form
        given = [value, self.levels, self.scales]
        if bias:
            given += ["", "", bias]
        product = graph.add(
            "MatMulNBits",
            *given,
            name=f"{name}_of_levels" if self.offsets else name,
            domain=MICROSOFT,
            K=self.inputs,
            N=self.outputs,
            bits=form.bits,
            block_size=form.block,
            accuracy_level=graph.accuracy_level,
        )
        if not self.offsets:
            return product
        sums = self._block_sums(graph, value)
        return graph.add("Gemm", sums, self.offsets, product, name=name, transB=1)

    def _block_sums(self, graph: Graph, value: str) -> str:
        """Sums over blocks of a value, shared by all matrices it is multiplied with."""
        block = self.form.block

        def make() -> str:
            shape = graph.ints(-1, self.inputs // block, block)
            blocks = graph.add("Reshape", value, shape, name="blocks")
            return graph.add("ReduceSum", blocks, graph.ints(2), name="block_sums", keepdims=0)

        return graph.shared(("block_sums", value, block), make)

    def rows(self, graph: Graph, numbers: str, name: str) -> str:
        """Rows by their numbers (tokens), dequantized: float32 (tokens, inputs)."""
        form, blocks = self.form, self.inputs // self.form.block
        levels = graph.add("Gather", self.levels, numbers, name="levels", axis=0)
        if form.bits == 4:
            levels = self._unpacked(graph, levels, blocks)
        centred = graph.cast(levels, FLOAT, of=UINT8)
        centred = graph.add("Sub", centred, graph.real(form.middle), name="centred")
        value = graph.add(
            "Mul", centred, self._of_blocks(graph, self.scales, numbers), name="scaled"
        )
        if self.offsets:
            offsets = self._of_blocks(graph, self.offsets, numbers)
            value = graph.add("Add", value, offsets, name="moved")
        return graph.add("Reshape", value, graph.ints(-1, self.inputs), name=name)

    def _unpacked(self, graph: Graph, packed: str, blocks: int) -> str:
        """Both halves of bytes, one after the other: (tokens, blocks, elements)."""
        halves = [
            graph.add("BitwiseAnd", packed, graph.byte(15), name="lower"),
            graph.add("BitShift", packed, graph.byte(4), name="upper", direction="RIGHT"),
        ]
        last = graph.ints(3)
        pairs = [graph.add("Unsqueeze", half, last, name="half") for half in halves]
        joined = graph.add("Concat", *pairs, name="pairs", axis=3)
        shape = graph.ints(-1, blocks, self.form.block)
        return graph.add("Reshape", joined, shape, name="unpacked")

    def _of_blocks(self, graph: Graph, numbers_of_blocks: str, rows: str) -> str:
        """One number for each block of the rows: (tokens, blocks, 1)."""
        gathered = graph.add("Gather", numbers_of_blocks, rows, name="of_blocks", axis=0)
        return graph.add("Unsqueeze", gathered, graph.ints(2), name="of_elements")


Matrix = FloatMatrix | PackedMatrix


def matrix_of(
    graph: Graph, name: str, rows: Rows, source: str, how: str = "", *, is_turned: bool = False
) -> Matrix:
    """A matrix as initializers: packed where its type allows, else float.

    Args:
        graph: where initializers go.
        name: of the initializer.
        rows: the tensor.
        source: its name in the checkpoint.
        how: which part of that it is, where it is not all.
        is_turned: it lies (inputs, outputs).
    """
    is_float = is_turned or graph.float_type != FLOAT  # scales have the type of what they scale
    form = None if is_float else form_of(rows.dtype)
    if form is None:
        weight, change = streamed(name, rows, graph.float_type, graph.rounded.add)
        told = ", ".join(filter(None, (how, change)))
        return FloatMatrix(graph.weight(weight, source, told), is_turned)
    told = ", ".join(filter(None, (how, rows.dtype)))
    levels, scales, offsets = (
        graph.weight(part, source, told) if part else "" for part in streams(name, rows, form)
    )
    outputs, inputs = rows.shape
    return PackedMatrix(levels, scales, offsets, form, outputs, inputs)
