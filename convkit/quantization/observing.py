"""Runs a model on data and looks at values inside it, with one batch of some of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from convkit.errors import StepError
from convkit.onnx_structure import plain_session
from convkit.quantization.probes import Probes
from convkit.quantization.value_range import Range
from convkit.step import Feeds, Progress

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

FETCHED_BYTES = 96 << 20
"""Values of one batch that leave the session together."""

_BATCH_BYTES = 24 << 20
"""Values of a batch of several samples: larger ones are no faster, and leave larger holes."""

_ROWS = 32
_WORK_BYTES = 48 << 20
"""What counting takes beside the values, and the allocator keeps."""

_ELEMENT_BYTES = 4
_LIVE_VALUES = 3
"""Values of the largest kind that a graph holds at a time: in, out, and one beside."""


class Batches(Protocol):
    """Samples as calibration wants them; `CalibrationData` is one."""

    @property
    def count(self) -> int:
        """How many samples."""

    @property
    def digest(self) -> str:
        """What tells these samples from others."""

    @property
    def fixed_rows(self) -> int | None:
        """Rows of every batch, where the model takes no other number."""

    def largest(self) -> Batches:
        """One of the largest samples."""

    def batches(self, rows: int = ...) -> Iterator[Feeds]:
        """Inputs, one batch after another."""


@dataclass(frozen=True)
class Schedule:
    """How values are looked at without holding more than a limit.

    Attributes:
        rows: of a batch while scalars are taken.
        fetched_rows: of a batch while values are fetched.
        groups: values that are fetched together; each group takes a pass over the data.
        peak_bytes: what this takes at most, beside the model.
    """

    rows: int
    fetched_rows: int
    groups: tuple[tuple[str, ...], ...]
    peak_bytes: int


def schedule(sizes: Mapping[str, int], fixed_rows: int | None) -> Schedule:
    """How values are looked at whose elements for one batch of one sample are `sizes`.

    Args:
        sizes: value name -> elements for one sample, or for `fixed_rows` of them.
        fixed_rows: rows of a batch where the model takes no other number.
    """
    in_bytes = {name: size * _ELEMENT_BYTES for name, size in sizes.items()}
    largest = max(in_bytes.values(), default=1) or 1
    total = sum(in_bytes.values()) or 1
    rows = fetched_rows = 1  # of what the sizes are for
    if fixed_rows is None:
        rows = max(1, min(_ROWS, _BATCH_BYTES // (_LIVE_VALUES * largest)))
        fetched_rows = max(1, min(_ROWS, _BATCH_BYTES // total))
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in in_bytes.items():
        if groups[-1] and held + size * fetched_rows > FETCHED_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size * fetched_rows
    live = _LIVE_VALUES * largest
    fetched = max(sum(in_bytes[name] for name in group) for group in groups) * fetched_rows
    peak = max(live * rows, fetched + live * fetched_rows) + _WORK_BYTES
    of_batch = fixed_rows or 1
    return Schedule(rows * of_batch, fetched_rows * of_batch, tuple(map(tuple, groups)), peak)


@dataclass(frozen=True)
class Observed:
    """A model and where values in it are looked at.

    Attributes:
        model: it is run as it is, weights on disk or in memory alike.
        folder: of the model file.
        data: samples of its inputs.
        progress: hears how far it is.
    """

    model: ir.Model
    folder: Path
    data: Batches
    progress: Progress

    def sizes(self, values: Collection[str]) -> dict[str, int]:
        """Elements of each value for one of the largest samples.

        Raises:
            StepError: the model does not run on the samples.
        """
        import onnx

        proto = self._proto()
        names = {f"convkit_size_{index}": value for index, value in enumerate(sorted(values))}
        for name, value in names.items():
            proto.graph.node.append(onnx.helper.make_node("Size", [value], [name]))
        session = self._session(proto, list(names))
        sizes = dict.fromkeys(sorted(values), 0)
        for feeds in self.data.largest().batches(1):
            for name, size in zip(names, self._run(session, list(names), feeds), strict=True):
                sizes[names[name]] = max(sizes[names[name]], int(size))
        return sizes

    def extremes(
        self, values: Collection[str], rows: int
    ) -> tuple[dict[str, Range], dict[str, Range]]:
        """Smallest and largest element of each value, infinite ones included; scalars only.

        Returns:
            Those of all samples, and those of the first half.

        Raises:
            SamplesError: a sample cannot be used.
            StepError: the model does not run on the samples.
        """
        try:
            return self._extremes(values, rows, allows_empty=False)
        except StepError:  # a value without elements has no extremes; with a 0 joined it has
            return self._extremes(values, rows, allows_empty=True)

    def _extremes(
        self, values: Collection[str], rows: int, *, allows_empty: bool
    ) -> tuple[dict[str, Range], dict[str, Range]]:
        proto = self._proto()
        probes = Probes(set(values), set(), allows_empty)
        probes.add_to(proto.graph, [value.name for value in proto.graph.input])
        session = self._session(proto, probes.outputs)
        found: dict[str, Range] = {}
        half: dict[str, Range] = {}
        for number, feeds in enumerate(self._told("ranges", rows), 1):
            scalars = dict(
                zip(probes.outputs, self._run(session, probes.outputs, feeds), strict=True)
            )
            for name, (low, high) in probes.scalars.items():
                seen = Range(float(scalars[low]), float(scalars[high]))
                found[name] = found[name].joined(seen) if name in found else seen
            if not half and 2 * number * rows >= self.data.count:
                half = dict(found)
        return found, half

    def fetch(
        self, values: Collection[str], rows: int, look: Callable[[str, Array], None], what: str
    ) -> None:
        """Shows every value of every batch to `look`.

        Args:
            values: held together for one batch.
            rows: of a batch.
            look: takes a value's name and its elements; keeps neither.
            what: it is done for, for those who watch.

        Raises:
            SamplesError: a sample cannot be used.
            StepError: the model does not run on the samples.
        """
        names = {value.name for value in self.model.graph.inputs}
        made = [value for value in values if value not in names]
        session = self._session(self._proto(), made)
        for feeds in self._told(what, rows):
            arrays = self._run(session, made, feeds) if made else []
            for name in values:
                if name in names:
                    look(name, feeds[name])
            while arrays:  # each is given back as soon as it was seen
                look(made[len(arrays) - 1], arrays.pop())

    def _proto(self) -> onnx.ModelProto:
        import onnx_ir as ir

        return ir.to_proto(self.model)

    def _session(self, proto: onnx.ModelProto, outputs: Collection[str]) -> Any:
        """A session that gives these values and no others, so that no others are kept."""
        import onnx

        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        try:
            return plain_session(proto, self.folder)
        except Exception as cause:  # the runtime's exceptions share no base class of their own
            raise _refused("The model does not open for calibration.", cause) from cause

    def _told(self, what: str, rows: int) -> Iterator[Feeds]:
        done = 0
        for feeds in self.data.batches(rows):
            self.progress(what, min(done, self.data.count), self.data.count)
            yield feeds
            done += rows
        self.progress(what, self.data.count, self.data.count)

    def _run(self, session: Any, outputs: list[str], feeds: Feeds) -> list[Any]:
        own = {argument.name for argument in session.get_inputs()}
        try:
            found: list[Any] = session.run(
                outputs, {name: array for name, array in feeds.items() if name in own}
            )
        except Exception as cause:
            raise _refused("The model does not run on the calibration data.", cause) from cause
        return found


def _refused(what: str, cause: Exception) -> StepError:
    line = next(iter(str(cause).splitlines()), type(cause).__name__)
    return StepError(
        what,
        why=line[:400],
        hint="Give samples that it accepts:  --calibration inputs.npz",
    )
