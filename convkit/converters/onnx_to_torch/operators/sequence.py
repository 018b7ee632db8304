"""Sequences, which are Python lists of tensors, and optionals, which are None when absent."""

from __future__ import annotations

import torch

from convkit.converters.onnx_to_torch.operators.values import Int, Ints, as_int, as_ints


def sequence_construct(*inputs: torch.Tensor) -> list[torch.Tensor]:
    """ONNX SequenceConstruct."""
    return list(inputs)


def sequence_empty(*, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """ONNX SequenceEmpty."""
    return []


def sequence_length(input_sequence: list[torch.Tensor]) -> torch.Tensor:
    """ONNX SequenceLength."""
    return torch.tensor(len(input_sequence), dtype=torch.int64)


def sequence_at(input_sequence: list[torch.Tensor], position: Int) -> torch.Tensor:
    """ONNX SequenceAt; positions count from the end when negative."""
    return input_sequence[as_int(position)]


def sequence_insert(
    input_sequence: list[torch.Tensor], tensor: torch.Tensor, position: Int | None = None
) -> list[torch.Tensor]:
    """ONNX SequenceInsert, at the end unless told otherwise."""
    at = len(input_sequence) if position is None else as_int(position)
    return [*input_sequence[:at], tensor, *input_sequence[at:]]


def sequence_erase(
    input_sequence: list[torch.Tensor], position: Int | None = None
) -> list[torch.Tensor]:
    """ONNX SequenceErase, of the last element unless told otherwise."""
    at = -1 if position is None else as_int(position)
    at = at + len(input_sequence) if at < 0 else at
    return [*input_sequence[:at], *input_sequence[at + 1 :]]


def split_to_sequence(
    input: torch.Tensor, split: Ints | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[torch.Tensor]:
    """ONNX SplitToSequence into slices, into parts of one size, or into given sizes."""
    if split is None:
        if keepdims:
            return list(torch.split(input, 1, axis))
        return list(torch.unbind(input, axis))
    sizes = as_ints(split)
    is_scalar = isinstance(split, torch.Tensor) and split.dim() == 0
    return list(torch.split(input, sizes[0] if is_scalar else sizes, axis))


def concat_from_sequence(
    input_sequence: list[torch.Tensor], *, axis: int, new_axis: int = 0
) -> torch.Tensor:
    """ONNX ConcatFromSequence, along an axis or along a new one."""
    if new_axis:
        return torch.stack(input_sequence, axis)
    return torch.cat(input_sequence, axis)


def optional(input: torch.Tensor | None = None, *, type: object = None) -> torch.Tensor | None:
    """ONNX Optional."""
    return input


def optional_get_element(input: torch.Tensor) -> torch.Tensor:
    """ONNX OptionalGetElement."""
    return input


def optional_has_element(input: torch.Tensor | None = None) -> torch.Tensor:
    """ONNX OptionalHasElement."""
    return torch.tensor(input is not None)


OPERATORS = {
    "ConcatFromSequence": concat_from_sequence,
    "Optional": optional,
    "OptionalGetElement": optional_get_element,
    "OptionalHasElement": optional_has_element,
    "SequenceAt": sequence_at,
    "SequenceConstruct": sequence_construct,
    "SequenceEmpty": sequence_empty,
    "SequenceErase": sequence_erase,
    "SequenceInsert": sequence_insert,
    "SequenceLength": sequence_length,
    "SplitToSequence": split_to_sequence,
}
