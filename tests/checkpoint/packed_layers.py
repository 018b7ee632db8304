"""Layers as GPTQ and AWQ pack them, made of known integers, digit by digit, as is published.

Integers are put into words by arithmetic on Python's whole numbers, so that nothing is shared with
what unpacks them. The product of a small integer and a scale of 16 bits is exact in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

INPUTS, OUTPUTS, GROUP = 96, 64, 32


def words_of(integers: Any, bits: int) -> list[int]:
    """32-bit words with integer i in the bits from `bits * i` on."""
    number = sum(int(integer) << (bits * i) for i, integer in enumerate(integers))
    return [number >> 32 * i & 0xFFFFFFFF for i in range(len(integers) * bits // 32)]


def int32(words: Any) -> Any:
    return torch.from_numpy(np.array(words, np.uint32).view(np.int32).copy())


def less_one(zeros: Any, bits: int) -> list[int]:
    """Words of zero points, each less one, as GPTQModel writes them."""
    if bits == 3:
        return words_of([(zero - 1) % 8 for zero in zeros], 3)
    ones = sum(1 << i for i in range(0, 32, bits))
    return [(word - ones) % (1 << 32) for word in words_of(zeros, bits)]


class Packed:
    """A layer of known integers, zero points and scales; `weight` is what they stand for."""

    def __init__(
        self,
        bits: int,
        *,
        is_symmetric: bool,
        has_order: bool = False,
        inputs: int = INPUTS,
        outputs: int = OUTPUTS,
        seed: int = 1,
    ) -> None:
        draw = np.random.default_rng(seed)
        self.bits = bits
        self.q = draw.integers(0, 1 << bits, (inputs, outputs))
        groups = np.arange(inputs) // GROUP
        self.groups = draw.permutation(groups) if has_order else groups
        shape = (inputs // GROUP, outputs)
        middle = np.full(shape, 1 << (bits - 1))
        self.z = middle if is_symmetric else draw.integers(0, 1 << bits, shape)
        self.s = torch.from_numpy(draw.uniform(0.2, 0.9, shape) / (1 << bits)).half()
        scales = self.s.double().numpy()
        weight = (self.q - self.z[self.groups]) * scales[self.groups]
        self.weight = torch.from_numpy(weight.T.astype(np.float32))

    def gptq(self, write_zeros: Any = less_one, name: str = "a") -> dict[str, Any]:
        """The four tensors."""
        columns = [words_of(column, self.bits) for column in self.q.T]
        return {
            f"{name}.qweight": int32(np.array(columns).T),
            f"{name}.qzeros": int32([write_zeros(row, self.bits) for row in self.z]),
            f"{name}.scales": self.s,
            f"{name}.g_idx": torch.from_numpy(self.groups.astype(np.int32)),
        }

    def awq(self, name: str = "a") -> dict[str, Any]:
        """The three tensors of version GEMM."""

        def pack(row: Any) -> list[int]:
            order = (0, 2, 4, 6, 1, 3, 5, 7)
            return [
                sum(int(word[output]) << 4 * i for i, output in enumerate(order))
                for word in row.reshape(-1, 8)
            ]

        return {
            f"{name}.qweight": int32([pack(row) for row in self.q]),
            f"{name}.qzeros": int32([pack(row) for row in self.z]),
            f"{name}.scales": self.s,
        }


def packed_state(state: dict[str, Any], method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A state dict with packed layers, and the plain one that they stand for."""
    packed, plain = {}, {}
    for seed, (name, tensor) in enumerate(state.items()):
        if tensor.ndim != 2 or not ("proj" in name or ".experts." in name):
            packed[name] = plain[name] = tensor
            continue
        outputs, inputs = tensor.shape
        layer = Packed(4, is_symmetric=False, inputs=inputs, outputs=outputs, seed=seed)
        stem = name.removesuffix(".weight")
        packed |= layer.awq(stem) if method == "awq" else layer.gptq(name=stem)
        plain[name] = layer.weight
    return packed, plain
