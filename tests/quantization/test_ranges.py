"""Ranges on data: as NumPy finds them on all samples at once, in the memory of one batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.errors import ResourceError, StepError, UnknownNameError
from convkit.onnx_typing import load_typed
from convkit.quantization import clipping, observing
from convkit.quantization.calibration_data import CalibrationData
from convkit.quantization.histograms import BINS, Histogram
from convkit.quantization.ranges import METHODS, calibrate
from convkit.quantization.value_range import Range
from tests import calibration_models, onnx_files
from tests.calibration_models import PICTURES, pictures

VALUES = ("x", "a", "b", "c", "d", "y")


def _silent(what: str, done: int, total: int | None, unit: str = "") -> None:
    """Nobody watches."""


def _data(folder: Path, count: int = 40) -> CalibrationData:
    np.savez(folder / "data.npz", x=pictures(count))
    return CalibrationData(folder / "data.npz", [PICTURES])


def _elements(path: Path, data: CalibrationData) -> dict[str, np.ndarray[Any, Any]]:
    """All elements of all values, by ONNX Runtime in one run."""
    model = onnx_files.onnx.load(path)
    del model.graph.output[:]
    made = [name for name in VALUES if name != "x"]
    model.graph.output.extend(onnx_files.onnx.ValueInfoProto(name=name) for name in made)
    session = onnx_files.runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (feeds,) = data.batches(1000)
    return {"x": feeds["x"]} | dict(zip(made, session.run(made, feeds), strict=True))


def test_the_least_and_the_largest_are_those_of_all_samples(tmp_path: Path) -> None:
    path, data = calibration_models.saved(tmp_path), _data(tmp_path)
    found = calibrate(load_typed(path), tmp_path, VALUES, data, method="minmax", progress=_silent)
    for name, elements in _elements(path, data).items():
        expected = [elements.min(), elements.max()]
        # Sums of up to 72 products may come in another order.
        np.testing.assert_allclose([found[name].low, found[name].high], expected, rtol=1e-4)


def test_percentiles_are_those_of_all_elements_to_a_bin(tmp_path: Path) -> None:
    path, data = calibration_models.saved(tmp_path), _data(tmp_path)
    found = calibrate(
        load_typed(path), tmp_path, VALUES, data, method="percentile", progress=_silent
    )
    for name, elements in _elements(path, data).items():
        cut = (100 - clipping.PERCENTILE) / 2
        expected = np.percentile(elements, [cut, 100 - cut])
        width = (elements.max() - elements.min()) / BINS
        # Near the ends neighbouring elements lie further apart than a bin: ranks fall between them.
        flat = np.sort(elements.ravel())
        rank = int(flat.size * cut / 100)
        gaps = [flat[rank + 1] - flat[max(rank - 1, 0)], flat[-rank - 1] - flat[-rank - 3]]
        apart = np.abs([found[name].low - expected[0], found[name].high - expected[1]])
        assert (apart <= 2 * width + gaps).all(), name


def test_ranges_do_not_depend_on_how_values_are_grouped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = calibration_models.saved(tmp_path), _data(tmp_path)
    model = load_typed(path)
    together = calibrate(model, tmp_path, VALUES, data, method="mse", progress=_silent)
    notes: list[str] = []
    monkeypatch.setattr(observing, "FETCHED_BYTES", 3 * 24 * 24 * 8)
    apart = calibrate(
        model, tmp_path, VALUES, data, method="mse", progress=_silent, note=notes.append
    )
    assert "read 7 times" in notes[0]  # once for extremes, then for six groups
    for name, each in together.items():
        # Sums of products in batches of one round otherwise, which moves elements between bins.
        limits = pytest.approx([each.low, each.high], rel=1e-3, abs=1e-4)
        assert [apart[name].low, apart[name].high] == limits


@pytest.mark.parametrize("fetched_bytes", [observing.FETCHED_BYTES, 1])
@pytest.mark.parametrize("method", METHODS)
def test_values_that_hold_infinities_have_the_range_of_the_rest(
    method: str, fetched_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observing, "FETCHED_BYTES", fetched_bytes)
    path, data = calibration_models.saved(tmp_path, masks=True), _data(tmp_path, 20)
    found = calibrate(
        load_typed(path), tmp_path, ("masked", "c"), data, method=method, progress=_silent
    )
    assert 0 <= found["masked"].low < found["masked"].high
    assert found["masked"].high == pytest.approx(found["c"].high, rel=0.2)


def test_an_unknown_method_and_samples_that_the_model_refuses_are_told(tmp_path: Path) -> None:
    path, data = calibration_models.saved(tmp_path), _data(tmp_path, 6)
    model = load_typed(path)
    with pytest.raises(UnknownNameError, match="Unknown calibration method 'max'"):
        calibrate(model, tmp_path, VALUES, data, method="max", progress=_silent)
    other = load_typed(calibration_models.saved(tmp_path, side=12))
    with pytest.raises(StepError, match="does not run on the calibration data"):
        calibrate(other, tmp_path, VALUES, data, progress=_silent)


def test_statistics_are_reused_for_the_same_model_data_and_method_only(tmp_path: Path) -> None:
    path, data = calibration_models.saved(tmp_path), _data(tmp_path)
    cache = tmp_path / "statistics.json"

    def run(model: Any, method: str = "minmax") -> tuple[Any, bool]:
        notes: list[str] = []
        found = calibrate(
            model, tmp_path, VALUES, data, method=method, progress=_silent, cache=cache,
            note=notes.append,
        )  # fmt: skip
        return found, any("Ranges were read from" in text for text in notes)

    first, was_read = run(load_typed(path))
    assert not was_read
    again, was_read = run(load_typed(path))
    assert was_read
    assert again == first
    assert not run(load_typed(path), "mse")[1]
    wider = load_typed(calibration_models.saved(tmp_path, width=9))
    assert not run(wider, "mse")[1]
    cache.write_text('{"convkit')
    assert not run(wider, "mse")[1]
    assert run(wider, "mse")[1]
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_a_cache_that_cannot_be_written_is_told_and_loses_nothing(tmp_path: Path) -> None:
    path, data = calibration_models.saved(tmp_path), _data(tmp_path)
    notes: list[str] = []
    cache = tmp_path / "nowhere" / "statistics.json"
    model = load_typed(path)
    found = calibrate(
        model, tmp_path, VALUES, data, progress=_silent, cache=cache, note=notes.append
    )
    assert set(found) == set(VALUES)
    assert any(f"there is no folder {cache.parent}" in text for text in notes)
    with pytest.raises(ResourceError, match="cannot be written"):
        calibrate(model, tmp_path, VALUES, data, progress=_silent, cache=tmp_path)


def _counted(elements: np.ndarray[Any, Any]) -> Histogram:
    seen = Range(float(elements.min()), float(elements.max()))
    histogram = Histogram(seen, elements.size)
    for piece in np.array_split(elements, 7):
        histogram.add(piece)
    return histogram


def _error(elements: np.ndarray[Any, Any], low: float, high: float) -> float:
    """Mean square of what rounding to 256 levels with a zero among them changes."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    zero = np.round(-low / step)
    levels = np.clip(np.round(elements / step) + zero, 0, 255) - zero
    return float(np.mean((levels * step - elements) ** 2))


DISTRIBUTIONS = {
    "laplace": np.random.default_rng(2).laplace(size=200_000),
    "relu": np.maximum(np.random.default_rng(3).standard_normal(200_000), 0),
    "outliers": np.random.default_rng(4).standard_t(3, 200_000),
    "one-sided": np.random.default_rng(5).exponential(size=200_000) + 0.5,
}
_NORMAL = np.random.default_rng(6).standard_normal(200_000)
TRUNCATED = _NORMAL[np.abs(_NORMAL) < 2.5]
"""No bin near the ends is empty: into such a one nothing can be clipped, as the method stands."""


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_mse_range_rounds_as_well_as_the_best_of_a_search_over_the_elements(name: str) -> None:
    elements = DISTRIBUTIONS[name].astype(np.float32)
    found = clipping.mse_range(_counted(elements))
    low, high = float(elements.min()), float(elements.max())
    shares = np.linspace(0.15, 1, 35)
    lows = [low] if low >= 0 else [share * low for share in shares]
    best = min(_error(elements, a, share * high) for a in lows for share in shares)
    # The search moves one end at a time, and its candidates are others: a tenth of a dB.
    assert _error(elements, found.low, found.high) <= best * 1.025


@pytest.mark.parametrize("elements", [TRUNCATED, DISTRIBUTIONS["relu"]], ids=["truncated", "relu"])
def test_the_entropy_range_has_the_least_divergence_as_it_is_published(
    elements: np.ndarray[Any, Any],
) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy computes the divergences")
    elements = elements.astype(np.float32)
    levels = 256 if elements.min() >= 0 else 128
    largest = float(np.abs(elements).max())
    counts, _ = np.histogram(np.abs(elements[elements != 0]), 2048, (0, largest))
    divergences = {}
    for length in range(2048, levels - 1, -32):
        clipped = counts[:length].astype(float)
        clipped[-1] += counts[length:].sum()
        merged = [
            np.where(part > 0, part.sum() / max(1, (part > 0).sum()), 0)
            for part in np.array_split(counts[:length], levels)
        ]
        divergences[length] = stats.entropy(clipped, np.concatenate(merged))
    found = clipping.entropy_range(_counted(elements)).absmax * 2048 / largest
    # Our bins cut what ours counted; levels of uneven width begin a bin earlier or later.
    nearest = min(divergences, key=lambda length: abs(length - found))
    assert divergences[nearest] <= min(divergences.values()) * 1.1


GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""glibc keeps what is freed in holes of a size that varies by 40 MiB; so it keeps nothing large."""

FLATNESS = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime
from convkit.artifact import TensorSpec
from convkit.onnx_typing import load_typed
from convkit.quantization.calibration_data import CalibrationData
from convkit.quantization.ranges import calibrate
from convkit.resources import peak_rss_bytes

folder = Path(sys.argv[1])
model = load_typed(folder / "network.onnx")
spec = TensorSpec("x", "float32", ("batch", 3, 128, 128))
for file in sys.argv[2:]:
    calibrate(model, folder, ("x", "a", "b", "c"), CalibrationData(folder / file, [spec]),
              method="percentile", progress=lambda *told: None)
    print(peak_rss_bytes() >> 20)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    calibration_models.saved(tmp_path, side=128, width=4)
    for count in (128, 512):
        rows = np.resize(pictures(32, 128), (count, 3, 128, 128))
        np.savez(tmp_path / f"stored{count}.npz", x=rows)
    np.savez_compressed(tmp_path / "compressed.npz", x=rows)
    files = ("stored128.npz", "stored512.npz", "compressed.npz")
    done = subprocess.run(
        [sys.executable, "-c", FLATNESS, str(tmp_path), *files],
        capture_output=True, text=True, check=True, env=os.environ | GIVES_BACK,
    )  # fmt: skip
    few, many, packed = map(int, done.stdout.split())
    # 384 more samples are 72 MiB.
    assert many - few < 16
    assert packed - few < 16
