"""Samples drawn at random in place of data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from convkit import samples
from convkit.artifact import TensorSpec
from convkit.quantization.calibration_files import Array, Arrays, Member
from convkit.step import Feeds

COUNT = 64
_SEED = 0


class RandomPart:
    """Seeded samples of a model's inputs: floats standard normal, integers as in the examples.

    Args:
        inputs: what the model takes.
        axes: input name -> axis of its batch.
        examples: inputs that it accepts; dynamic sizes come from the first.
    """

    words = "random"

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        axes: Mapping[str, int | None],
        examples: Sequence[Feeds] = (),
    ) -> None:
        self._axes = axes
        self._sizes = _sizes_of(inputs, examples)
        shapes = {spec.name: samples.shape_of(spec, self._sizes) for spec in inputs}
        self._rows = {
            spec: TensorSpec(spec.name, spec.dtype, _with_rows(shapes[spec.name], axes[spec.name]))
            for spec in inputs
        }
        self._ranges = _integers_of(inputs, examples)
        self.members: Mapping[str, Member] = {
            spec.name: Member(spec.name, _dtype(spec.dtype), (COUNT, *row.shape[1:]))  # type: ignore[arg-type]
            if axes[spec.name] is not None
            else Member(spec.name, _dtype(spec.dtype), shapes[spec.name])
            for spec, row in self._rows.items()
        }

    def whole(self, name: str) -> Array:
        """An input without a batch."""
        spec = next(spec for spec in self._rows if spec.name == name)
        return samples.draw([self._rows[spec]], {}, _SEED, self._ranges)[name]

    def pieces(self, names: Sequence[str], rows: int) -> Iterator[Arrays]:
        """Samples, at most `rows` at a time; the same ones whatever `rows` is."""
        for start in range(0, COUNT, rows):
            drawn = [self._draw(names, index) for index in range(start, min(COUNT, start + rows))]
            yield {name: np.concatenate([each[name] for each in drawn]) for name in names}

    def _draw(self, names: Sequence[str], index: int) -> Feeds:
        wanted = [row for spec, row in self._rows.items() if spec.name in names]
        return samples.draw(wanted, {}, _SEED + index, self._ranges)


def _with_rows(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """The shape of one sample: a first axis of 1 in place of the batch's."""
    return shape if axis is None else (1, *shape[:axis], *shape[axis + 1 :])


def _sizes_of(inputs: Sequence[TensorSpec], examples: Sequence[Feeds]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec in inputs:
        array = examples[0].get(spec.name) if examples else None
        if array is not None and array.ndim == len(spec.shape):
            named = zip(spec.shape, array.shape, strict=True)
            sizes |= {name: size for name, size in named if isinstance(name, str)}
    return sizes


def _integers_of(
    inputs: Sequence[TensorSpec], examples: Sequence[Feeds]
) -> dict[str, tuple[float, float]]:
    """Smallest and largest integer of each input in the examples: ids stay in their tables."""
    found: dict[str, tuple[float, float]] = {}
    for spec in inputs:
        arrays = [feeds[spec.name] for feeds in examples if spec.name in feeds]
        if arrays and spec.dtype.startswith(("int", "uint")):
            found[spec.name] = (
                min(int(array.min()) for array in arrays if array.size),
                max(int(array.max()) for array in arrays if array.size),
            )
    return found


def _dtype(name: str) -> np.dtype[np.generic]:
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)
