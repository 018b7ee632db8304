"""The model in floating point on the samples that judge its quantized forms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.artifact import TensorSpec
from convkit.errors import SamplesError, StepError
from convkit.quantization.accuracy import Batch, Metric, NoiseTally, Score, joined, metric_of
from convkit.quantization.calibration_fit import batch_axes
from convkit.step import Feeds, Progress

if TYPE_CHECKING:
    import onnx

    from convkit.quantization.calibration_data import CalibrationData

Array = np.ndarray[Any, Any]

_CACHE = re.compile(r"present(\.|_|$)")
"""Outputs that a language model takes back as inputs; what they hold is seen in the logits.

Source: optimum, names of the ONNX models of decoders.
"""

_SCORING = ("Gemm", "MatMul", "Softmax", "LogSoftmax")
_PASSING = ("Identity", "Cast", "Squeeze", "Reshape", "Flatten", "Add", "Div", "Mul")
"""Behind a product an Add is its bias, and a Div or Mul its temperature."""

_SCORE_RANKS = (2, 3)

_ROWS = 8
_BATCH_BYTES = 64 << 20
_MOST_KEPT_BYTES = 2 << 30
"""Of outputs, that are kept on disk."""


@dataclass(frozen=True)
class Trial:
    """How one quantized form does.

    Attributes:
        score: by the metric.
        noise_share: power of noise over that of the signal, of the worst output.
    """

    score: Score
    noise_share: float


class Reference:
    """Runs the model in floating point once, and compares others with what it gave.

    Its outputs are kept in files, one batch of them in memory at a time.

    Args:
        path: the model in floating point.
        data: the samples that judge.
        metric: as the user named it.
        folder: where outputs are kept.
        progress: hears how far it is.

    Attributes:
        metric: what is measured.
        count: samples.

    Raises:
        StepError: the model does not run on the samples.
        SamplesError, UsageError: see `metric_of`.
    """

    def __init__(
        self,
        path: Path,
        data: CalibrationData,
        metric: str | None,
        folder: Path,
        progress: Progress,
    ) -> None:
        session = opened(path)
        specs = [
            TensorSpec(each.name, each.type, tuple(each.shape)) for each in session.get_outputs()
        ]
        self._names = [
            spec.name
            for spec in specs
            if len(specs) == 1 or (spec.dtype.startswith("tensor") and not _CACHE.match(spec.name))
        ]
        axes = batch_axes(data.inputs).axes
        self._counted = {name: axis for name, axis in axes.items() if axis is not None}
        self._row_axes = _row_axes(data.inputs, axes, specs)
        self._data, self._rows = self._fitting(session, data)
        self._labels = self._data.labels
        self.count = self._data.count
        self._kept: list[dict[str, Array]] = []
        for feeds, rows in self._batches():
            progress("what the model in fp32 gives", sum(map(_rows, self._kept)), self.count)
            outputs = self._outputs(session, feeds, rows)
            self._kept.append(
                {
                    name: _stored(array, folder / f"{len(self._kept)}-{index}.npy")
                    for index, (name, array) in enumerate(outputs.items())
                }
            )
        seen = self._kept[0] if self._labels is None else joined(self._kept)
        classifying = classifying_outputs(path)
        self.metric: Metric = metric_of(metric, seen, self._labels, classifying, str(data.path))

    def trial(self, path: Path) -> Trial:
        """How the model at `path` does on all samples.

        Raises:
            StepError: it does not run on them.
        """
        tally, noise = self.metric.tally(), NoiseTally()
        begin = 0
        for kept, outputs in self._compared(path, self.count):
            rows = _rows(kept)
            labels = None if self._labels is None else self._labels[begin : begin + rows]
            tally.add(kept, outputs, labels)
            noise.add(kept, outputs)
            begin += rows
        return Trial(tally.score(), noise.share)

    def outputs_of(self, path: Path | None, most: int) -> Sequence[Batch]:
        """What the model at `path` gives on about `most` of the samples; None: this model.

        Raises:
            StepError: it does not run on them.
        """
        if path is None:
            return self._kept[:: self._step(most)]
        return [outputs for _, outputs in self._compared(path, most)]

    def noise_share(self, path: Path, most: int, beside: Sequence[Batch]) -> float:
        """Noise in the outputs of the model at `path`, on about `most` of the samples.

        Args:
            path: of the model.
            most: samples, as for `outputs_of`.
            beside: what `outputs_of` gave for the model that is right.

        Raises:
            StepError: it does not run on them.
        """
        noise = NoiseTally()
        compared = self._compared(path, most)
        for expected, (_, outputs) in zip(beside, compared, strict=True):
            noise.add(expected, outputs)
        return noise.share

    def _step(self, most: int) -> int:
        """Each how many batches one is taken: of files that are sorted, all over."""
        return max(1, -(-self.count // max(1, most)))

    def first(self) -> Feeds:
        """One sample."""
        return next(iter(self._data.head(1).batches(1)))

    def _compared(self, path: Path, most: int) -> Iterator[tuple[dict[str, Array], Any]]:
        session = opened(path)
        step = self._step(most)
        for index, (feeds, rows) in enumerate(self._batches()):
            if index % step == 0:
                yield self._kept[index], self._outputs(session, feeds, rows)

    def _batches(self) -> Iterator[tuple[Feeds, int]]:
        """Inputs, and how many of their rows are samples: the last ones may fill up."""
        left = self.count
        for feeds in self._data.batches(self._rows):
            rows = min(self._rows_of(feeds), left)
            left -= rows
            yield feeds, rows

    def _fitting(self, session: Any, data: CalibrationData) -> tuple[CalibrationData, int]:
        """As many samples as there is room for, and rows of a batch of them.

        Logits of a language model take 100 MB a sample.
        """
        feeds = next(iter(data.head(1).batches(1)))
        rows = self._rows_of(feeds)
        outputs = self._outputs(session, feeds, rows)
        each = max(1, sum(array.nbytes for array in outputs.values()) // rows)
        most = max(1, _MOST_KEPT_BYTES // each)
        fitting = data if data.count <= most else data.head(most)
        return fitting, max(1, min(_ROWS, _BATCH_BYTES // each))

    def _rows_of(self, feeds: Feeds) -> int:
        sizes = (feeds[name].shape[axis] for name, axis in self._counted.items() if name in feeds)
        return next(sizes, 1)

    def _outputs(self, session: Any, feeds: Feeds, rows: int) -> dict[str, Array]:
        own = {argument.name for argument in session.get_inputs()}
        given = {name: array for name, array in feeds.items() if name in own}
        try:
            arrays = session.run(self._names, given)
        except Exception as cause:  # the runtime's exceptions share no base class of their own
            line = next(iter(str(cause).splitlines()), type(cause).__name__)
            raise StepError("The model does not run on the samples.", why=line[:400]) from cause
        found = {}
        for name, array in zip(self._names, arrays, strict=True):
            if not isinstance(array, np.ndarray):
                continue  # a sequence or a map
            axis = self._row_axes.get(name)
            found[name] = array if axis is None else np.moveaxis(array, axis, 0)[:rows]
        if not found:
            raise SamplesError("The model gives no tensor that could be compared.")
        return found


def opened(path: Path, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU, as users run models.

    Args:
        path: of the model.
        threads: 0: as the runtime has it.

    Raises:
        StepError: the runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as cause:
        line = next(iter(str(cause).splitlines()), type(cause).__name__)
        raise StepError("ONNX Runtime does not open the model.", why=line[:400]) from cause


def classifying_outputs(path: Path) -> list[str]:
    """Outputs that score classes: matrices of products or of softmax, and what is called logits.

    Not embeddings, whose largest element says nothing.
    """
    from convkit.onnx_structure import read_structure

    graph = read_structure(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {each.name for each in graph.initializer}
    constants |= {name for name, node in makers.items() if node.op_type == "Constant"}
    found = []
    for output in graph.output:
        shape = output.type.tensor_type.shape.dim
        is_alone = len(shape) not in _SCORE_RANKS or (shape[-1].dim_value or 2) < 2
        is_named = "logits" in output.name.lower()
        if not is_alone and (is_named or _scores(output.name, makers, constants)):
            found.append(output.name)
    return found


def _scores(name: str, makers: Mapping[str, onnx.NodeProto], constants: set[str]) -> bool:
    for _ in range(len(_PASSING)):
        node = makers.get(name)
        if node is None:
            return False
        if node.op_type in _SCORING:
            return True
        inputs = [each for each in node.input if each and each not in constants]
        if node.op_type not in _PASSING or len(inputs) != 1:
            return False
        name = inputs[0]
    return False


def _row_axes(
    inputs: Sequence[TensorSpec], axes: Mapping[str, int | None], specs: Sequence[TensorSpec]
) -> dict[str, int]:
    """Where outputs have the batch of the inputs: by its name, else by its size, else first."""
    batches = {
        spec.shape[axis]
        for spec in inputs
        if (axis := axes.get(spec.name)) is not None and axis < len(spec.shape)
    }
    found = {}
    for spec in specs:
        named = [axis for axis, size in enumerate(spec.shape) if size in batches]
        if named:
            found[spec.name] = named[0]
        elif spec.shape and not isinstance(spec.shape[0], int):
            found[spec.name] = 0
    return found


def _stored(array: Array, file: Path) -> Array:
    if array.dtype.kind not in "fiub":
        return array  # strings, which no file maps
    np.save(file, array)
    return np.asarray(np.load(file, mmap_mode="r"))


def _rows(outputs: Mapping[str, Array]) -> int:
    return max((len(array) for array in outputs.values() if array.ndim), default=0)
