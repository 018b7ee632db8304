"""Samples that a model is calibrated on: batches of its inputs, read piece by piece.

Whatever the number of samples, one batch is in memory. The samples fall into two shares: what
ranges are taken from, and what is held out to judge the result on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convkit import samples
from convkit.artifact import TensorSpec
from convkit.errors import SamplesError
from convkit.quantization.calibration_files import (
    HINT,
    Array,
    Arrays,
    Part,
    digest_of,
    parts_of,
)
from convkit.quantization.calibration_fit import Fit, Placement, batch_axes, cast, fit
from convkit.quantization.calibration_random import RandomPart
from convkit.step import Feeds, Work

CONTROL_EVERY = 5
"""Every fifth sample is held out; spread over the file, because files are often sorted."""

_ROWS = 8


class CalibrationData:
    """Samples of a model's inputs, iterated as often as wanted, one batch in memory.

    A file is an `.npz` with an array per input whose rows are samples, a folder of such files, or a
    `.jsonl` with a sample a line. An array `labels` or `label` that is no input says what is right.
    Floats are cast to the width of the input, other numbers only where that is exact.

    Args:
        path: the samples; `samples.RANDOM` draws seeded ones.
        inputs: what the model takes.
        examples: inputs that the model accepts; random samples get their sizes and integers from
            these.
        optional: inputs that the samples may lack, because `complete` adds them.
        complete: adds to the inputs of a batch what the model takes beside (an empty cache).

    Attributes:
        path: as given.
        inputs: as given.
        count: how many samples.
        fixed_rows: rows of every batch where the model takes no other number; else None.
        is_random: whether they are drawn, and no data.

    Raises:
        SamplesError: they cannot be read, are none, or do not fit the inputs or each other.
    """

    def __init__(
        self,
        path: Path,
        inputs: Sequence[TensorSpec],
        *,
        examples: Sequence[Feeds] = (),
        optional: frozenset[str] = frozenset(),
        complete: Callable[[Feeds], Feeds] | None = None,
    ) -> None:
        self.path = path
        self.inputs = tuple(inputs)
        self.is_random = path == samples.RANDOM
        self._complete = complete
        layout = batch_axes(inputs)
        self.fixed_rows = layout.fixed_rows
        parts: list[Part] = (
            [RandomPart(inputs, layout.axes, examples)] if self.is_random else parts_of(path)
        )
        self._fits = [fit(part, inputs, layout, optional) for part in parts]
        self._chosen = np.arange(sum(each.count for each in self._fits))
        if not len(self._chosen):
            raise SamplesError(f"{path} holds no samples: its arrays have no rows.", hint=HINT)
        without = [each.part.words for each in self._fits if each.labels is None]
        if without and len(without) < len(self._fits):
            raise SamplesError(
                f"Some samples of {path} have labels and others none.",
                why=f"None has {without[0]}.",
                hint="Give labels for all of them, or for none.",
            )

    @property
    def count(self) -> int:
        """How many samples."""
        return len(self._chosen)

    @property
    def labels(self) -> Array | None:
        """What is right, (count,) or (count, k); None where nobody says.

        Raises:
            SamplesError: labels of several files have different shapes, or one is NaN.
        """
        if self._fits[0].labels is None:
            return None
        parts = [_labels(each) for each in self._fits]
        if len({array.shape[1:] for array in parts}) > 1:
            raise SamplesError(f"The labels in {self.path} differ in shape.", hint=HINT)
        labels = np.concatenate(parts)[self._chosen]  # (count,) or (count, k)
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            bad = np.flatnonzero(~np.isfinite(labels.reshape(len(labels), -1)).all(axis=1))
            raise SamplesError(
                f"The label of sample {self._chosen[bad[0]]} in {self.path} is NaN or infinite.",
                hint="Leave such samples out.",
            )
        return labels

    def dtypes(self, name: str) -> set[str]:
        """The types that an input has in the files."""
        found = {each.part.members.get(name) for each in self._fits}
        return {member.dtype.name for member in found if member is not None}

    @property
    def digest(self) -> str:
        """SHA-256 of the samples and of the choice among them, hexadecimal."""
        digest = hashlib.sha256()
        digest.update(("random" if self.is_random else digest_of(self.path)).encode())
        digest.update(repr([str(spec) for spec in self.inputs]).encode())
        digest.update(self._chosen.astype("<i8").tobytes())
        return digest.hexdigest()

    def head(self, count: int) -> CalibrationData:
        """The first samples of these."""
        return self.between(0, count)

    def between(self, begin: int, end: int) -> CalibrationData:
        """These samples from `begin` up to `end`, counted from 0; at least one is there."""
        return self._of(self._chosen[begin:end])

    def largest(self) -> CalibrationData:
        """One of the samples with most elements."""
        ends = np.cumsum([each.count for each in self._fits])
        owners = np.searchsorted(ends, self._chosen, side="right")  # the part of each sample
        sizes = np.array([each.row_size for each in self._fits])
        at = int(np.argmax(sizes[owners]))
        return self._of(self._chosen[at : at + 1])

    def shares(self) -> tuple[CalibrationData, CalibrationData]:
        """Samples to calibrate on, and every fifth one, which is held out to judge the result.

        A single sample is in both. Fewer than five give one to the second share.
        """
        held_out = np.zeros(self.count, bool)
        held_out[CONTROL_EVERY - 1 :: CONTROL_EVERY] = True
        held_out[-1] |= not held_out.any()
        if self.count == 1:
            return self, self
        return self._of(self._chosen[~held_out]), self._of(self._chosen[held_out])

    def batches(self, rows: int = _ROWS) -> Iterator[Feeds]:
        """Inputs for the model, one batch after another in the order of the samples.

        Samples of one size share a batch, at most `rows` of them, or exactly as many as a model
        takes that takes no other number: the last batch is then filled up with samples it already
        has. So `outputs[:count]` of joined outputs are those of the samples.

        Raises:
            SamplesError: a sample has NaN or infinity, or what the input cannot hold.
        """
        held = _Batch(self.fixed_rows or max(1, rows), self.fixed_rows is not None)
        first = 0
        for each in self._fits:
            begin, end = np.searchsorted(self._chosen, (first, first + each.count))
            if begin < end:
                for feeds in _pieces(each, held.rows, self._chosen[begin:end] - first):
                    for batch in held.added(feeds, each.placements):
                        yield self._completed(batch)
            first += each.count
        for batch in held.rest():
            yield self._completed(batch)

    def _completed(self, feeds: Feeds) -> Feeds:
        return feeds if self._complete is None else self._complete(feeds)

    def _of(self, chosen: np.ndarray[Any, Any]) -> CalibrationData:
        part: CalibrationData = object.__new__(type(self))
        part.__dict__.update(self.__dict__, _chosen=chosen)
        return part


def calibration_of(
    work: Work, inputs: Sequence[TensorSpec], **settings: Any
) -> CalibrationData | None:
    """What the user calibrates with, as a pass gets it; None where nothing was given.

    That samples are random goes into the report.

    Raises:
        SamplesError: they cannot be read or do not fit the inputs.
    """
    if work.calibration is None:
        return None
    examples = work.samples if work.calibration == samples.RANDOM else ()
    data = CalibrationData(work.calibration, inputs, examples=examples, **settings)
    if data.is_random:
        work.note(
            f"Calibrated on {data.count} random samples, which say nothing of real ones: give "
            "some with  --calibration inputs.npz"
        )
    return data


def _labels(part: Fit) -> Array:
    array = part.part.whole(str(part.labels))
    return array if array.ndim else array[None]  # (rows, ...)


def _pieces(part: Fit, rows: int, chosen: np.ndarray[Any, Any]) -> Iterator[dict[str, Array]]:
    """The chosen samples of a part, numbered from 0 in it; rows lie along the first axis."""
    streamed = [p.spec.name for p in part.placements if p.file_axis == 0]
    whole = {
        p.spec.name: _rows_first(part.part.whole(p.spec.name), p)
        for p in part.placements
        if p.file_axis != 0
    }
    pieces: Iterator[Arrays] = (
        part.part.pieces(streamed, rows)
        if streamed
        else iter([{}] * len(range(0, part.count, rows)))
    )
    for begin, piece in zip(range(0, int(chosen[-1]) + 1, rows), pieces, strict=False):
        end = min(begin + rows, part.count)
        numbers = chosen[np.searchsorted(chosen, begin) : np.searchsorted(chosen, end)]
        if not len(numbers):
            continue
        feeds = {}
        for p in part.placements:
            array = piece[p.spec.name] if p.file_axis == 0 else whole[p.spec.name]
            if p.rows is not None:
                array = array if p.file_axis == 0 else array[begin:end]
                array = array if len(numbers) == len(array) else array[numbers - begin]
            feeds[p.spec.name] = cast(array, p.spec, numbers, part.part.words)
        yield feeds


def _rows_first(array: Array, placement: Placement) -> Array:
    if placement.rows is None:
        return array
    axis = placement.file_axis
    return array[None] if axis is None else np.moveaxis(array, axis, 0)


class _Batch:
    """Joins samples of one size into batches.

    Args:
        rows: of a batch.
        is_exact: whether it never has fewer.
    """

    def __init__(self, rows: int, is_exact: bool) -> None:
        self.rows = rows
        self._is_exact = is_exact
        self._held: list[dict[str, Array]] = []
        self._count = 0
        self._placements: Sequence[Placement] = ()
        self._key: object = None

    def added(self, feeds: dict[str, Array], placements: Sequence[Placement]) -> Iterator[Feeds]:
        """The batches that are full with these samples."""
        key = [
            (p.spec.name, feeds[p.spec.name].shape[1:])
            if p.rows is not None
            else (p.spec.name, feeds[p.spec.name].tobytes())
            for p in placements
        ]
        if key != self._key:
            yield from self.rest()
            self._key, self._placements = key, placements
        rows = self.rows if all(p.axis is not None or p.rows is None for p in placements) else 1
        counted = [p.spec.name for p in placements if p.rows is not None]
        count = len(feeds[counted[0]]) if counted else 1
        begin = 0
        while begin < count:
            end = min(count, begin + rows - self._count)
            self._held.append(
                {name: a[begin:end] if name in counted else a for name, a in feeds.items()}
            )
            self._count += end - begin
            begin = end
            if self._count == rows:
                yield from self.rest()

    def rest(self) -> Iterator[Feeds]:
        """What is held, as a batch."""
        held, count = self._held, self._count
        self._held, self._count = [], 0
        if not held:
            return
        feeds = {}
        for p in self._placements:
            name = p.spec.name
            array = held[0][name]
            if p.rows is not None:
                array = array if len(held) == 1 else np.concatenate([each[name] for each in held])
                if p.axis is None:
                    array = array[0]  # the shape of one sample: the input has no batch
                else:
                    if self._is_exact and count < self.rows:
                        array = array[np.arange(self.rows) % count]
                    array = np.moveaxis(array, 0, p.axis)
            feeds[name] = np.ascontiguousarray(array) if array.ndim else array
        yield feeds
