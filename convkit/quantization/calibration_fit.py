"""How arrays of samples become the inputs of a model: which axis counts rows, what is cast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convkit import samples
from convkit.artifact import TensorSpec, dtype_bits
from convkit.errors import SamplesError
from convkit.quantization.calibration_files import Array, Member, Part

ANY_RANK = "..."
"""In place of the sizes of an input that may have any number of dimensions."""


@dataclass(frozen=True)
class BatchAxes:
    """Where the inputs of a model have their batch.

    Attributes:
        axes: input name -> axis that counts rows; None where the input has none.
        fixed_rows: rows of every batch where the model takes no other number.
    """

    axes: Mapping[str, int | None]
    fixed_rows: int | None = None


def batch_axes(inputs: Sequence[TensorSpec]) -> BatchAxes:
    """The axis of each input that counts rows: the batch by name, else the first."""
    names = samples.batch_names(inputs) or {
        spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)
    }
    if names:
        return BatchAxes({spec.name: _first_of(spec.shape, names) for spec in inputs})
    rows = next((spec.shape[0] for spec in inputs if spec.shape), None)
    axes = {spec.name: 0 if spec.shape and spec.shape[0] == rows else None for spec in inputs}
    return BatchAxes(axes, rows if isinstance(rows, int) else None)


def _first_of(shape: Sequence[int | str], names: set[Any]) -> int | None:
    return next((axis for axis, size in enumerate(shape) if size in names), None)


@dataclass(frozen=True)
class Placement:
    """How one array of a part becomes an input.

    Attributes:
        spec: the input.
        axis: of the batch in the input; None: the input has none.
        rows: how many samples the array holds; None: one and the same array for all.
        file_axis: of the array, that counts its samples; None: it is one sample without a batch.
    """

    spec: TensorSpec
    axis: int | None
    rows: int | None
    file_axis: int | None


def place(spec: TensorSpec, axis: int | None, member: Member) -> Placement | None:
    """How the array becomes the input; None where it does not fit."""
    if ANY_RANK in spec.shape:
        return Placement(spec, 0, member.shape[0], 0) if member.shape else None
    shape, rank = member.shape, len(spec.shape)
    if 0 in shape[1:]:
        return None
    if axis is None:
        if _fits(spec.shape, shape):
            return Placement(spec, None, None, None)
        if len(shape) == rank + 1 and _fits(spec.shape, shape[1:]):
            return Placement(spec, None, shape[0], 0)
        return None
    without = (*spec.shape[:axis], *spec.shape[axis + 1 :])
    if len(shape) == rank and _fits(without, (*shape[:axis], *shape[axis + 1 :])):
        return Placement(spec, axis, shape[axis], axis)
    if len(shape) == rank - 1 and _fits(without, shape):
        return Placement(spec, axis, 1, None)
    return None


def _fits(wanted: Sequence[int | str], shape: Sequence[int]) -> bool:
    return len(wanted) == len(shape) and all(
        isinstance(size, str) or size == actual for size, actual in zip(wanted, shape, strict=True)
    )


@dataclass(frozen=True)
class Fit:
    """How the arrays of one part become the inputs.

    Attributes:
        part: where they lie.
        placements: one for each input.
        count: its samples.
        labels: the name of its array of labels, if it has one.
    """

    part: Part
    placements: tuple[Placement, ...]
    count: int
    labels: str | None

    @property
    def row_size(self) -> int:
        """Elements of one of its samples."""
        shapes = [self.part.members[p.spec.name].shape for p in self.placements]
        return sum(map(math.prod, shapes)) // max(1, self.count)


def fit(
    part: Part, inputs: Sequence[TensorSpec], layout: BatchAxes, optional: frozenset[str]
) -> Fit:
    """How the arrays of a part become the inputs.

    Raises:
        SamplesError: names, shapes, dtypes or numbers of samples do not fit; says both sides.
    """
    known = {spec.name for spec in inputs}
    labels = next((n for n in samples.LABELS if n in part.members and n not in known), None)
    given = {name: member for name, member in part.members.items() if name != labels}
    lines = [
        f"missing  {spec.name}"
        for spec in inputs
        if spec.name not in given and spec.name not in optional
    ]
    lines += [f"unknown  {name}" for name in given if name not in known]
    placements = []
    for spec in inputs:
        if spec.name not in given:
            continue
        placed = place(spec, layout.axes[spec.name], given[spec.name])
        lines += _misfits(spec, given[spec.name], placed, layout.axes[spec.name])
        if placed is not None:
            placements.append(placed)
    if lines:
        raise misfit(part, inputs, lines)
    counts = {p.spec.name: p.rows for p in placements if p.rows is not None}
    count = next(iter(counts.values()), 1)
    if any(other != count for other in counts.values()):
        said = ", ".join(f"'{name}' has {rows}" for name, rows in counts.items())
        raise misfit(part, inputs, [f"The inputs differ in their number of samples: {said}."])
    if labels is not None:
        _check_labels(part, labels, count)
    return Fit(part, tuple(placements), count, labels)


def misfit(part: Part, inputs: Sequence[TensorSpec], lines: Sequence[str]) -> SamplesError:
    """That samples do not fit a model, both sides named."""
    return SamplesError(
        f"The samples in {part.words} do not fit the model's inputs.",
        why=[
            *lines,
            f"the model takes  {'; '.join(map(str, inputs)) or 'nothing'}",
            f"the samples are  {'; '.join(map(str, part.members.values())) or 'nothing'}",
        ],
        hint="Name the arrays like the inputs, one row of the first axis per sample:  "
        f'np.savez("calibration.npz", {inputs[0].name if inputs else "x"}=array)',
    )


def _misfits(
    spec: TensorSpec, member: Member, placed: Placement | None, axis: int | None
) -> list[str]:
    if member.dtype.kind not in "biuf":
        return [f"{spec.name} is {member.dtype.name}, the model takes {spec.dtype}"]
    if placed is not None:
        return []
    line = f"{spec.name} has shape {member.shape}, the model takes {spec}"
    if (moved := _moved_channels(spec, member, axis)) is not None:
        line += f"; these channels are {'last' if moved else 'first'}, try " + (
            f"np.moveaxis({spec.name}, -1, 1)" if moved else f"np.moveaxis({spec.name}, 1, -1)"
        )
    return [line]


def _moved_channels(spec: TensorSpec, member: Member, axis: int | None) -> bool | None:
    """True: channels are last and should be first; False: the other way round; None: neither."""
    shape = member.shape
    if len(shape) < 3:
        return None
    for is_last, order in (
        (True, (shape[0], shape[-1], *shape[1:-1])),
        (False, (shape[0], *shape[2:], shape[1])),
    ):
        if place(spec, axis, Member(spec.name, member.dtype, order)) is not None:
            return is_last
    return None


def _check_labels(part: Part, name: str, count: int) -> None:
    member = part.members[name]
    if member.dtype.kind not in "biuf":
        raise SamplesError(
            f"'{name}' in {part.words} holds {member.dtype.name}, numbers are expected.",
            hint="Number the classes from 0.",
        )
    is_one = count == 1 and len(member.shape) == 0
    if not is_one and (len(member.shape) not in (1, 2) or member.shape[0] != count):
        raise SamplesError(
            f"'{name}' in {part.words} does not fit its {count} samples.",
            why=f"It has shape {member.shape}; a label per sample is ({count},), "
            f"several are ({count}, k).",
            hint=f"Give one label per row:  {name}=array of shape ({count},)",
        )


def cast(array: Array, spec: TensorSpec, numbers: Array, words: str) -> Array:
    """The array in the dtype of the input, told where that would change what it says.

    Args:
        array: rows of one input; its first axis counts samples where it has several.
        spec: the input.
        numbers: of its samples, for messages.
        words: where it lies, for messages.

    Raises:
        SamplesError: NaN or infinity, or a number that the input cannot hold.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _told(array, ~np.isfinite(array), numbers, words, spec, "has NaN or infinity")
    if array.dtype.name == spec.dtype or dtype_bits(spec.dtype) == 0:
        return array
    if spec.dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    with np.errstate(all="ignore"):
        made = array.astype(spec.dtype)
        if array.dtype.kind == made.dtype.kind == "f":
            wrong = ~np.isfinite(made)  # rounding is what a narrower float is asked for
        else:
            wrong = made.astype(array.dtype) != array
    if wrong.any():
        what = f"has {array[wrong].flat[0]}, which {spec.dtype} cannot hold,"
        raise _told(array, wrong, numbers, words, spec, what)
    return made


def _told(
    array: Array, wrong: Array, numbers: Array, words: str, spec: TensorSpec, what: str
) -> SamplesError:
    is_counted = array.ndim > 0 and len(array) == len(numbers)
    row = int(np.argmax(wrong.reshape(len(array), -1).any(axis=1))) if is_counted else 0
    return SamplesError(
        f"Sample {numbers[row]} in {words} {what} in '{spec.name}'.",
        why=f"The samples are {array.dtype.name}, the model takes {spec}.",
        hint="Leave such samples out, or convert them yourself:  array.astype(...)",
    )
