"""What is suspicious about calibration data: sentences for the report.

Data that are readable and fit may still be wrong: noise, copies, another scale than the network was
trained on. Ranges taken from them are wrong without any error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from convkit.artifact import TensorSpec
from convkit.naming import listed
from convkit.quantization.calibration_data import CalibrationData
from convkit.quantization.input_scale import InputScale, input_scales
from convkit.quantization.value_range import Ranges

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Severity = Literal["note", "warning"]

LOOKED_AT = 256
"""Samples that are looked at; what is wrong with data shows in these."""

FEW = 32
"""Fewer samples leave ranges to chance. Source: NVIDIA, TensorRT Developer Guide, "Post-Training
Quantization Using Calibration": about 500 images suffice for ImageNet networks."""

_NAMES_SHOWN = 5
_TELLING_ELEMENTS = 4096
"""Of noise, a correlation of this many pairs stays below 0.05 in 998 of 1000 cases."""

_ENOUGH = 1 << 14
"""Elements of a sample that moments are taken of."""

_NO_CORRELATION = 0.05
_LONG = 8
"""Of an axis that has neighbours to speak of."""

_SETTLED = 0.05
"""A range that still moves by more than this share when the samples double is not known yet."""


@dataclass(frozen=True)
class Finding:
    """Something about calibration data.

    Attributes:
        severity: a warning where ranges are probably wrong.
        text: a sentence.
    """

    severity: Severity
    text: str

    def __str__(self) -> str:
        return self.text if self.severity == "note" else f"Calibration data: {self.text}"


def lint(
    data: CalibrationData, model: ir.Model | None = None, folder: Path | None = None
) -> list[Finding]:
    """What is suspicious about the first samples of calibration data.

    Args:
        data: at most 256 of them are looked at, one at a time.
        model: what they are for; what it does to its inputs first says what it expects.
        folder: where its weights lie.

    Raises:
        SamplesError: a sample has NaN or infinity, or what the input cannot hold.
    """
    if data.is_random:
        return []
    head = data.head(LOOKED_AT)
    floats = [spec for spec in data.inputs if spec.dtype.startswith(("float", "bfloat"))]
    seen = {spec.name: _Seen(spec) for spec in floats}
    copies = _Copies()
    for number, feeds in enumerate(head.batches(1)):
        copies.add(feeds.values(), number)
        for name, each in seen.items():
            if name in feeds:
                each.add(feeds[name].astype(np.float32), number)
    scales = input_scales(model, folder) if model is not None and folder is not None else {}
    findings = [*_of_number(data), *copies.findings(head.count), *_of_casts(data)]
    for name, each in seen.items():
        if each.count:
            findings += each.findings(head.count, scales.get(name))
    return findings


def moved(half: Ranges, whole: Ranges) -> list[Finding]:
    """How much ranges moved from the first half of the samples to all of them."""
    shares = {
        name: 1 - (half[name].high - half[name].low) / (each.high - each.low)
        for name, each in whole.items()
        if name in half and each.high > each.low
    }
    if not shares:
        return []
    worst = max(shares, key=lambda name: abs(shares[name]))
    middle = float(np.median(np.abs(list(shares.values()))))
    text = (
        f"from half of the samples to all of them ranges moved by {middle:.1%} in the median, "
        f"that of '{worst}' by {abs(shares[worst]):.0%}"
    )
    if middle > _SETTLED:
        return [Finding("warning", f"{text}; they are not settled, give more samples.")]
    return [Finding("note", f"{text[0].upper()}{text[1:]}.")]


def _of_number(data: CalibrationData) -> list[Finding]:
    if data.count >= FEW:
        return []
    few = f"{data.count} samples are few" if data.count > 1 else "one sample is too few"
    return [Finding("warning", f"{few}; some hundred of what the model will see are usual.")]


def _of_casts(data: CalibrationData) -> list[Finding]:
    return [
        Finding(
            "note",
            f"'{spec.name}' is {dtype} in the calibration data and {spec.dtype} in the model; "
            "every number fitted.",
        )
        for spec in data.inputs
        for dtype in sorted(data.dtypes(spec.name))
        if np.dtype(dtype).kind != "f" and not spec.dtype.startswith(("int", "uint", "bool"))
    ]


@dataclass
class _Copies:
    """Samples that are the same in every input."""

    firsts: dict[bytes, int] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)

    def add(self, arrays: Any, number: int) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        first = self.firsts.setdefault(digest.digest(), number)
        if first != number:
            self.pairs.append((number, first))

    def findings(self, count: int) -> list[Finding]:
        if not self.pairs:
            return []
        shown = listed([f"{copy} is {first}" for copy, first in self.pairs], _NAMES_SHOWN)
        return [
            Finding(
                "warning",
                f"{len(self.pairs)} of {count} samples are copies of others ({shown}), so they "
                "say less than their number.",
            )
        ]


class _Seen:
    """What one floating-point input looks like over samples.

    Attributes:
        count: elements that moments are of.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.count = 0
        self._powers = np.zeros(5)
        self._low, self._high = np.inf, -np.inf
        self._is_whole = True
        self._constant: list[int] = []
        self._lags: dict[tuple[int, int], list[float]] = {}
        self._shape: tuple[int, ...] = ()

    def add(self, array: Array, number: int) -> None:
        """Looks at one sample."""
        if not array.size:
            return
        some = array.reshape(-1)[:: 1 + array.size // _ENOUGH].astype(np.float64)
        squares = some * some
        self.count += some.size
        self._powers += [some.size, some.sum(), squares.sum(), squares @ some, squares @ squares]
        low, high = float(array.min()), float(array.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._is_whole = self._is_whole and bool((some == np.round(some)).all())
        self._shape = array.shape
        if low == high and array.size > 1:
            self._constant.append(number)
            return
        for axis, lag in self._pairs(array.shape):
            along = np.moveaxis(array, axis, 0)
            alike = _correlation(along[lag:], along[:-lag])
            self._lags.setdefault((axis, lag), []).append(alike)

    @staticmethod
    def _pairs(shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Axes along which neighbours are compared, at which distance."""
        if len(shape) < 3:
            return []
        pairs = [(axis, 1) for axis in range(1, len(shape)) if shape[axis] >= _LONG]
        if len(shape) == 4 and shape[1] in (3, 4) and shape[3] >= _LONG:
            pairs.append((3, shape[1]))
        return pairs

    def findings(self, count: int, scale: InputScale | None) -> list[Finding]:
        """What is suspicious about it."""
        found = [*self._of_constants(count), *self._of_layout()]
        if len(self._constant) < count:
            found += self._of_noise() or self._of_scale(scale)
        return found

    def _of_constants(self, count: int) -> list[Finding]:
        if not self._constant:
            return []
        which = listed([str(number) for number in self._constant], _NAMES_SHOWN)
        text = f"'{self.spec.name}' is one and the same number throughout in {len(self._constant)}"
        return [Finding("warning", f"{text} of {count} samples ({which}).")]

    def _of_noise(self) -> list[Finding]:
        if self.count < _TELLING_ELEMENTS:
            return []
        mean, deviation, skew, kurtosis = self._moments()
        name = self.spec.name
        looks_drawn = abs(mean) < 0.05 and abs(deviation - 1) < 0.05
        looks_drawn = looks_drawn and abs(skew) < 0.1 and abs(kurtosis - 3) < 0.1
        if looks_drawn:
            text = f"'{name}' looks drawn from a standard normal distribution; real inputs are"
            return [Finding("warning", f"{text} distributed otherwise, give such.")]
        lags = [abs(float(np.mean(each))) for (_, lag), each in self._lags.items() if lag == 1]
        if lags and max(lags) < _NO_CORRELATION:
            text = f"'{name}' looks like noise: neighbours along no axis have anything in common"
            return [Finding("warning", f"{text}, as they have in pictures and signals.")]
        return []

    def _of_layout(self) -> list[Finding]:
        shape, name = self._shape, self.spec.name
        is_open = len(shape) == 4 and all(isinstance(self.spec.shape[axis], str) for axis in (1, 3))
        if is_open and shape[3] in (1, 3, 4) and min(shape[1], shape[2]) > _LONG:
            text = f"'{name}' has shape {shape}, its channels seem to be last"
            return [Finding("warning", f"{text}; does the model take them first?")]
        near = self._lags.get((3, 1))
        apart = self._lags.get((3, shape[1])) if len(shape) == 4 else None
        if near and apart and np.mean(apart) > np.mean(near) + _NO_CORRELATION:
            text = (
                f"numbers {shape[1]} places apart in a row of '{name}' resemble each other more "
                "than neighbours do: the channels seem to be interleaved"
            )
            return [Finding("warning", f"{text}; move the axis instead of reshaping.")]
        return []

    def _of_scale(self, scale: InputScale | None) -> list[Finding]:
        between = f"'{self.spec.name}' lies between {self._low:.4g} and {self._high:.4g}"
        mean, deviation, _, _ = self._moments()
        if scale is not None:
            problem = scale.problem(self._low, self._high, mean, deviation)
            return [Finding("warning", f"{between}, {problem}.")] if problem else []
        if self._is_whole and self._low >= 0 and 128 < self._high <= 255:
            text = f"{between} in whole numbers, as bytes of pictures do, and the model does not"
            return [Finding("warning", f"{text} scale them down itself; was it trained on these?")]
        return []

    def _moments(self) -> tuple[float, float, float, float]:
        """Mean, standard deviation, skewness, kurtosis."""
        _, first, second, third, fourth = self._powers / self.count
        variance = max(second - first**2, 1e-300)
        skew = (third - 3 * first * second + 2 * first**3) / variance**1.5
        kurtosis = (fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4) / variance**2
        return float(first), float(variance**0.5), float(skew), float(kurtosis)


def _correlation(first: Array, second: Array) -> float:
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0
