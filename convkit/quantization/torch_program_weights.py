"""Weights of exported programs as integers or 4-bit codes, in operators that PyTorch itself has.

Nothing but PyTorch is needed to load and run the result. Linear layers at eight bits multiply
integers: weights have a scale per row, inputs one per token, found while it runs. Every other
weight is unpacked while it runs.

Source: Dettmers et al., "LLM.int8()", 2022, section 3.1 (vector-wise quantization; outliers are not
taken apart here); codes are those of `convkit.quantization.bitsandbytes_blocks`.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.quantization import bitsandbytes_blocks as blocks
from convkit.quantization.bitsandbytes_layers import Layers, chosen
from convkit.quantization.torch_program_editing import ProgramEditor

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

_LEAST_ELEMENTS = 1024
"""Smaller weights cost more to unpack than they save."""

_LEVELS = 127.0
_LEAST_SCALE = 1e-12


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        modules: the layers that were quantized.
        multiplied: how many of their uses multiply integers.
        unpacked: how many unpack the whole weight on every call.
        element_count: of all weights, as before.
    """

    modules: tuple[str, ...]
    multiplied: int
    unpacked: int
    element_count: int


def quantize_program(
    program: ExportedProgram, scheme: str, skipped: Sequence[str], block_size: int
) -> Outcome:
    """Quantizes the weights of a program in place.

    Args:
        program: of plain PyTorch operators.
        scheme: `llm_int8`, `nf4` or `fp4`.
        skipped: names or patterns of layers that stay as they are.
        block_size: of 4-bit codes: weights that share a scale.

    Raises:
        UnsupportedError: no weight can be quantized.
        UsageError: a layer to be left as it is does not exist.
    """
    editor = ProgramEditor(program)
    counts = [editor.tensor(n).numel() for n in editor.weights if n in program.state_dict]
    found = {
        name: name.removesuffix(".weight")
        for name, node in editor.weights.items()
        if name in program.state_dict and node.users and _is_weight(editor.tensor(name))
    }
    weights = chosen(Layers(found, left_out=()), skipped)
    multiplied = unpacked = 0
    for name in weights:
        packed: _Packed
        if scheme == "llm_int8":
            packed = _Rows(editor, name)
        else:
            packed = _Blocks(editor, name, scheme, block_size)
        for user in list(editor.weights[name].users):
            with editor.graph.inserting_before(user):
                is_direct = packed.replace(user)
            multiplied += is_direct
            unpacked += not is_direct
        editor.drop(name)
    editor.finish()
    return Outcome(tuple(weights.values()), multiplied, unpacked, sum(counts))


def _is_weight(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() >= _LEAST_ELEMENTS


class _Packed(abc.ABC):
    """A weight in its new form, and how its users come by it."""

    def __init__(self, editor: ProgramEditor, name: str) -> None:
        import torch

        self._editor, self._aten = editor, torch.ops.aten
        self._node = editor.weights[name]
        tensor = editor.tensor(name)
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype
        self._values = tensor.float().numpy()

    def replace(self, user: Node) -> bool:
        """Gives a user what it needs; whether the weight stays packed in it."""
        aten = self._aten
        made = None
        if user.target is aten.embedding.default and user.args[0] is self._node:
            made = self.gathered(user.args[1])
        elif user.target is aten.linear.default and user.args[1] is self._node:
            made = self.multiplied(*user.args)
        if made is None:
            user.replace_input_with(self._node, self.unpacked())
            return False
        self._editor.replace(user, made)
        return True

    @abc.abstractmethod
    def unpacked(self) -> Node:
        """The whole weight."""

    @abc.abstractmethod
    def gathered(self, indices: Any) -> Node | None:
        """Some rows of an embedding."""

    def multiplied(self, *arguments: Any) -> Node | None:
        """A linear layer."""
        return None

    def _as(self, node: Node, dtype: Any) -> Node:
        if node.meta["val"].dtype is dtype:
            return node
        return self._editor.call(self._aten.to.dtype, node, dtype)


class _Rows(_Packed):
    """Integers of eight bits with a scale per row."""

    def __init__(self, editor: ProgramEditor, name: str) -> None:
        import torch

        super().__init__(editor, name)
        rows = self._values.reshape(self.shape[0], -1)
        absmax = np.abs(rows).max(axis=1)
        scales = np.maximum(absmax / np.float32(_LEVELS), np.float32(_LEAST_SCALE))
        integers = np.rint(rows / scales[:, None]).astype(np.int8).reshape(self.shape)
        column = (-1, *(1 for _ in self.shape[1:]))
        self._integers = editor.add(f"{name}_int8", torch.from_numpy(integers), self._node)
        self._scales = editor.add(
            f"{name}_scale", torch.from_numpy(scales).reshape(column), self._integers
        )

    def unpacked(self) -> Node:
        """The whole weight."""
        values = self._as(self._integers, self._torch_float())
        product = self._editor.call(self._aten.mul.Tensor, values, self._scales)
        return self._as(product, self.dtype)

    def gathered(self, indices: Any) -> Node | None:
        """Some rows of an embedding."""
        call, aten = self._editor.call, self._aten
        rows = self._as(call(aten.embedding.default, self._integers, indices), self._torch_float())
        scales = call(aten.embedding.default, self._scales, indices)
        return self._as(call(aten.mul.Tensor, rows, scales), self.dtype)

    def multiplied(self, *arguments: Any) -> Node | None:
        """A linear layer: integers times integers, then both scales."""
        import torch

        inputs, _, bias = (*arguments, None)[:3]
        call, aten = self._editor.call, self._aten
        if inputs.meta["val"].ndim < 2:
            return None
        rows = self._flat(self._as(inputs, torch.float32))
        largest = call(aten.amax.default, call(aten.abs.default, rows), [-1], True)
        steps = call(aten.div.Tensor, largest, _LEVELS)
        steps = call(aten.clamp_min.default, steps, _LEAST_SCALE)
        integers = call(aten.round.default, call(aten.div.Tensor, rows, steps))
        integers = self._as(integers, torch.int8)
        product = call(aten._int_mm.default, integers, call(aten.t.default, self._integers))
        result = call(aten.mul.Tensor, self._as(product, torch.float32), steps)
        result = call(aten.mul.Tensor, result, call(aten.t.default, self._scales))
        if bias is not None:
            result = call(aten.add.Tensor, result, self._as(bias, torch.float32))
        return self._as(self._shaped(result, inputs), inputs.meta["val"].dtype)

    def _flat(self, inputs: Node) -> Node:
        if inputs.meta["val"].ndim == 2:
            return inputs
        return self._editor.call(self._aten.reshape.default, inputs, [-1, self.shape[1]])

    def _shaped(self, result: Node, like: Node) -> Node:
        sizes = like.meta["val"].shape[:-1]
        if len(sizes) == 1:
            return result
        call, aten = self._editor.call, self._aten
        leading = [
            size if isinstance(size, int) else call(aten.sym_size.int, like, axis)
            for axis, size in enumerate(sizes)
        ]
        return call(aten.reshape.default, result, [*leading, self.shape[0]])

    def _torch_float(self) -> Any:
        import torch

        return torch.float32


class _Blocks(_Packed):
    """Codes of four bits in blocks with a scale each; two of them are looked up at a time."""

    def __init__(self, editor: ProgramEditor, name: str, kind: str, block_size: int) -> None:
        import torch

        super().__init__(editor, name)
        self._block_size = block_size
        flat = self._values.reshape(-1)
        whole = np.zeros(-(-flat.size // block_size) * block_size, np.float32)
        whole[: flat.size] = flat
        codes, scales = blocks.four_bits(whole, kind, block_size)
        pairs = np.array(list(itertools.product(blocks.CODES[kind], repeat=2)), np.float32)
        added = editor.add(f"{name}_{kind}", torch.from_numpy(codes.copy()), self._node)
        self._codes = added
        self._scales = editor.add(f"{name}_absmax", torch.from_numpy(scales), added)
        table = f"pairs_{kind}"
        self._pairs = editor.weights.get(table) or editor.add(
            table, torch.from_numpy(pairs), self._scales
        )

    def unpacked(self) -> Node:
        """The whole weight."""
        call, aten = self._editor.call, self._aten
        values = self._looked_up(self._codes)
        column = call(aten.reshape.default, self._scales, [-1, 1])
        grouped = call(aten.reshape.default, values, [-1, self._block_size])
        product = call(aten.mul.Tensor, grouped, column)
        count = math.prod(self.shape)
        if count % self._block_size:
            flat = call(aten.reshape.default, product, [-1])
            product = call(aten.slice.Tensor, flat, 0, 0, count)
        return self._as(call(aten.reshape.default, product, list(self.shape)), self.dtype)

    def gathered(self, indices: Any) -> Node | None:
        """Some rows of an embedding, where rows begin with a block."""
        height, width = self.shape
        if width % self._block_size:
            return None
        call, aten = self._editor.call, self._aten
        rows = call(aten.reshape.default, self._codes, [height, width // 2])
        values = self._looked_up(call(aten.embedding.default, rows, indices))
        scales = call(aten.reshape.default, self._scales, [height, width // self._block_size])
        scales = call(aten.embedding.default, scales, indices)
        scales = call(aten.repeat_interleave.self_int, scales, self._block_size, -1)
        pairs = call(aten.flatten.using_ints, values, -2, -1)
        return self._as(call(aten.mul.Tensor, pairs, scales), self.dtype)

    def _looked_up(self, codes: Node) -> Node:
        import torch

        return self._editor.call(
            self._aten.embedding.default, self._pairs, self._as(codes, torch.int32)
        )
