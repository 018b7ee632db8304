"""Calibration data: the same samples from every kind of file, and what does not fit is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit import samples
from convkit.artifact import TensorSpec
from convkit.errors import SamplesError
from convkit.quantization.calibration_data import CalibrationData

X = TensorSpec("x", "float32", ("batch", 3, 4))
IDS = TensorSpec("ids", "int64", ("batch", "sequence"))
ROWS = np.random.default_rng(0).standard_normal((23, 3, 4)).astype(np.float32)
LABELS = np.arange(23)


def _stored(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=ROWS, labels=LABELS)
    return folder / "a.npz"


def _compressed(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", x=ROWS, labels=LABELS)
    return folder / "a.npz"


def _columns_first(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=np.asfortranarray(ROWS), labels=LABELS)
    return folder / "a.npz"


def _folder(folder: Path) -> Path:
    for number, begin in enumerate(range(0, 23, 10)):
        rows = slice(begin, begin + 10)
        np.savez(folder / f"part{number}.npz", x=ROWS[rows], labels=LABELS[rows])
    return folder


def _lines(folder: Path) -> Path:
    lines = [
        json.dumps({"x": row.tolist(), "labels": int(label)})
        for row, label in zip(ROWS, LABELS, strict=True)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "a.jsonl"


KINDS = (_stored, _compressed, _columns_first, _folder, _lines)


def _joined(data: CalibrationData, rows: int = 4) -> np.ndarray[Any, Any]:
    return np.concatenate([feeds["x"] for feeds in data.batches(rows)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_samples_again_and_again(
    kind: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = CalibrationData(kind(tmp_path), [X])
    for _ in range(2):
        np.testing.assert_allclose(_joined(data), ROWS, rtol=1e-6)  # a float in decimal digits
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, LABELS)
    assert all(len(feeds["x"]) <= 4 for feeds in data.batches(4))


@pytest.mark.parametrize("kind", KINDS)
def test_every_fifth_sample_is_held_out_with_its_label(
    kind: Callable[[Path], Path], tmp_path: Path
) -> None:
    shares = CalibrationData(kind(tmp_path), [X]).shares()
    for share, chosen in zip(shares, (LABELS % 5 != 4, LABELS % 5 == 4), strict=True):
        np.testing.assert_allclose(_joined(share), ROWS[chosen], rtol=1e-6)
        assert share.labels is not None
        np.testing.assert_array_equal(share.labels, LABELS[chosen])


def test_the_only_sample_is_in_both_shares(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROWS[:1])
    assert [share.count for share in CalibrationData(tmp_path / "a.npz", [X]).shares()] == [1, 1]


def test_a_model_that_takes_four_rows_gets_four(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROWS)
    data = CalibrationData(tmp_path / "a.npz", [TensorSpec("x", "float32", (4, 3, 4))])
    assert [len(feeds["x"]) for feeds in data.batches(32)] == [4] * 6
    np.testing.assert_array_equal(_joined(data)[: data.count], ROWS)


def test_samples_of_other_lengths_do_not_share_a_batch(tmp_path: Path) -> None:
    lengths = (5, 5, 7, 5)
    lines = [json.dumps({"ids": [list(range(length))]}) for length in lengths]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    shapes = [f["ids"].shape for f in CalibrationData(tmp_path / "a.jsonl", [IDS]).batches(8)]
    assert shapes == [(2, 5), (1, 7), (1, 5)]


def test_inputs_without_a_batch_stay_as_they_are(tmp_path: Path) -> None:
    rate = TensorSpec("rate", "int64", ())
    state = TensorSpec("state", "float32", (2, "batch", 6))
    states = np.arange(2 * 23 * 6, dtype=np.float32).reshape(2, 23, 6)
    np.savez(tmp_path / "a.npz", x=ROWS, rate=np.int64(16000), state=states)
    batches = list(CalibrationData(tmp_path / "a.npz", [X, rate, state]).batches(8))
    assert all(feeds["rate"] == 16000 for feeds in batches)
    joined = np.concatenate([feeds["state"] for feeds in batches], axis=1)
    np.testing.assert_array_equal(joined, states)


def test_whole_numbers_become_floats_where_they_are_the_same_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.full((2, 3, 4), 255, np.uint8))
    (feeds,) = CalibrationData(tmp_path / "a.npz", [X]).batches()
    assert feeds["x"].dtype == np.float32
    assert feeds["x"].max() == 255
    np.savez(tmp_path / "b.npz", x=np.full((2, 3, 4), 2**24 + 1))
    with pytest.raises(SamplesError, match="has 16777217, which float32 cannot hold"):
        list(CalibrationData(tmp_path / "b.npz", [X]).batches())


def _with(index: int, number: float) -> np.ndarray[Any, Any]:
    rows = ROWS.copy()
    rows[index, 1, 2] = number
    return rows


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"y": ROWS}, ["missing  x", "unknown  y", "the model takes  x: float32[batch, 3, 4]"]),
        ({"x": ROWS[:, :2]}, ["x has shape (23, 2, 4)", "the samples are  x: float32[23, 2, 4]"]),
        ({"x": np.moveaxis(ROWS, 1, -1)}, ["channels are last, try np.moveaxis(x, -1, 1)"]),
        ({"x": ROWS.astype("U9")}, ["the model takes float32"]),
        ({"x": ROWS[:0]}, ["holds no samples"]),
        ({"x": _with(17, np.nan)}, ["Sample 17", "NaN or infinity in 'x'"]),
        ({"x": _with(4, -np.inf)}, ["Sample 4", "NaN or infinity in 'x'"]),
        ({"x": ROWS, "labels": LABELS[:20]}, ["does not fit its 23 samples", "shape (20,)"]),
        ({"x": ROWS, "labels": LABELS.astype("U3")}, ["numbers are expected"]),
        ({"x": ROWS, "ids": LABELS}, ["unknown  ids"]),
    ],
)
def test_samples_that_cannot_be_used_are_told_with_both_sides(
    arrays: dict[str, np.ndarray[Any, Any]], told: list[str], tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SamplesError) as raised:
        list(CalibrationData(tmp_path / "a.npz", [X]).batches())
    assert raised.value.exit_code == 2
    for text in told:
        assert text in str(raised.value)


def test_inputs_of_different_number_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROWS, ids=np.zeros((22, 7), np.int64))
    with pytest.raises(SamplesError, match="'x' has 23, 'ids' has 22"):
        CalibrationData(tmp_path / "a.npz", [X, IDS])


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    path = _stored(tmp_path)
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF  # inside the elements of x
    path.write_bytes(content)
    with pytest.raises(SamplesError, match="cannot be read"):
        list(CalibrationData(path, [X]).batches())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SamplesError, match="cannot be read"):
        CalibrationData(path, [X])


def test_labels_of_an_input_called_so_are_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=ROWS)
    data = CalibrationData(tmp_path / "a.npz", [TensorSpec("labels", "float32", ("batch", 3, 4))])
    assert data.labels is None


def test_random_samples_are_the_same_each_time_and_stay_in_the_tables_of_the_model() -> None:
    examples = [{"ids": np.array([[3, 9, 5]]), "x": ROWS[:1]}]
    data = CalibrationData(samples.RANDOM, [X, IDS], examples=examples)
    assert data.is_random
    first, again = (list(data.batches(rows)) for rows in (64, 10))
    ids = np.concatenate([feeds["ids"] for feeds in again])
    np.testing.assert_array_equal(first[0]["ids"], ids)
    assert ids.shape == (data.count, 3)
    assert (ids.min(), ids.max()) == (3, 9)
