from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.errors import SamplesError, UsageError
from convkit.quantization.accuracy import Metric, NoiseTally, Score, metric_of, paired_interval
from convkit.quantization.reference import classifying_outputs
from tests.onnx_files import FLOAT, helper, make_linear, make_model, make_value, save

scores = pytest.importorskip("sklearn.metrics", reason="accuracies are compared with scikit-learn")

Array = np.ndarray[Any, Any]

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.standard_normal((90, 12)).astype(np.float32)
NOISY = (LOGITS + 0.5 * RANDOM.standard_normal(LOGITS.shape)).astype(np.float32)
CLASSES = np.where(RANDOM.random(90) < 0.7, LOGITS.argmax(-1), RANDOM.integers(0, 12, 90))
NUMBERS = LOGITS[:, :1] + RANDOM.standard_normal((90, 1))


def measured(metric: Metric, reference: Array, candidate: Array, labels: Array | None) -> Score:
    tally = metric.tally()
    for begin in range(0, len(reference), 16):  # in batches, the last one shorter
        rows = slice(begin, begin + 16)
        part = None if labels is None else labels[rows]
        tally.add({"y": reference[rows]}, {"y": candidate[rows]}, part)
    return tally.score()


def chosen(name: str | None, outputs: Array, labels: Array | None) -> Metric:
    return metric_of(name, {"y": outputs}, labels, ["y"], "c.npz")


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        (None, CLASSES, lambda y: scores.accuracy_score(CLASSES, y.argmax(-1))),
        ("accuracy", CLASSES, lambda y: scores.accuracy_score(CLASSES, y.argmax(-1))),
        ("accuracy", np.eye(12)[CLASSES], lambda y: scores.accuracy_score(CLASSES, y.argmax(-1))),
        ("top5", CLASSES, lambda y: scores.top_k_accuracy_score(CLASSES, y, k=5)),
    ],
)
def test_shares_of_right_answers_are_those_of_scikit_learn(
    name: str | None, labels: Array, value: Callable[[Array], float]
) -> None:
    score = measured(chosen(name, LOGITS, labels), LOGITS, NOISY, labels)
    assert score.reference == pytest.approx(value(LOGITS))
    assert score.value == pytest.approx(value(NOISY))
    assert score.drop == pytest.approx(value(LOGITS) - value(NOISY))
    assert score.interval is not None
    assert score.interval[0] < score.drop < score.interval[1]


@pytest.mark.parametrize(
    ("name", "function"),
    [(None, scores.mean_squared_error), ("mae", scores.mean_absolute_error)],
)
def test_errors_are_those_of_scikit_learn_and_drop_by_their_own_share(
    name: str | None, function: Callable[[Array, Array], float]
) -> None:
    before, after = LOGITS[:, :1], NOISY[:, :1]
    score = measured(chosen(name, before, NUMBERS), before, after, NUMBERS)
    assert score.reference == pytest.approx(function(NUMBERS, before))
    assert score.value == pytest.approx(function(NUMBERS, after))
    assert score.drop == pytest.approx(score.value / score.reference - 1)


def test_without_labels_the_source_is_what_is_right() -> None:
    score = measured(chosen(None, LOGITS, None), LOGITS, NOISY, None)
    same = scores.accuracy_score(LOGITS.argmax(-1), NOISY.argmax(-1))
    assert (score.reference, score.value) == (1.0, pytest.approx(same))


def test_noise_is_told_as_a_share_of_the_signal() -> None:
    metric = metric_of(None, {"y": LOGITS}, None, [], "c.npz")
    assert metric.name == "noise"
    tenth = LOGITS * np.float32(1.1)  # an amplitude of 10 % is a power of 1 %, or 20 dB
    assert measured(metric, LOGITS, tenth, None).drop == pytest.approx(0.01, rel=1e-4)


def test_results_that_are_no_numbers_lose_everything() -> None:
    broken = np.full_like(LOGITS, np.nan)
    assert measured(chosen(None, LOGITS, CLASSES), LOGITS, broken, CLASSES).value == 0.0
    assert measured(chosen("top5", LOGITS, CLASSES), LOGITS, broken, CLASSES).value == 0.0
    assert measured(chosen("noise", LOGITS, None), LOGITS, broken, None).drop == math.inf
    before, after = LOGITS[:, :1], broken[:, :1]
    assert measured(chosen("mse", before, NUMBERS), before, after, NUMBERS).drop == math.inf


def test_masked_scores_are_no_signal() -> None:
    tally = NoiseTally()
    masked = np.array([[1.0, -np.inf]], np.float32)
    tally.add({"y": masked}, {"y": masked})
    assert tally.share == 0.0


def test_one_number_says_yes_or_no() -> None:
    labels = CLASSES % 2
    given = np.where(labels == 1, 0.9, 0.1)[:, None].astype(np.float32)
    score = measured(chosen(None, given, labels), given, 1 - given, labels)
    assert (score.reference, score.value) == (1.0, 0.0)
    logits = np.where(labels == 1, 3.0, -2.0)[:, None].astype(np.float32)
    assert measured(chosen(None, logits, labels), logits, logits - 2, labels).value == 1.0


def test_tokens_that_are_padding_do_not_count() -> None:
    logits = LOGITS.reshape(30, 3, 12)
    labels = logits.argmax(-1)
    labels[:, 2] = -100
    wrong = logits.copy()
    wrong[:, 2] = -wrong[:, 2]
    assert measured(chosen(None, logits, labels), logits, wrong, labels).drop == 0.0


def test_the_interval_of_a_drop_is_that_of_the_textbook() -> None:
    # Agresti, Categorical Data Analysis, section 10.1: 150 and 86 of 1,600 changed their mind
    low, high = paired_interval(150, 86, 1600)
    assert (low, high) == (pytest.approx(0.0213, abs=3e-4), pytest.approx(0.0587, abs=3e-4))


def test_nineteen_of_twenty_intervals_hold_the_true_drop() -> None:
    draws = np.random.default_rng(1).multinomial(60, [0.06, 0.02, 0.92], 4000)
    bounds = np.array([paired_interval(int(lost), int(gained), 60) for lost, gained, _ in draws])
    share = np.mean((bounds[:, 0] <= 0.04) & (bounds[:, 1] >= 0.04))
    assert share >= 0.94


def test_a_function_of_the_users_sees_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_metric_a.py").write_text(
        "def right(outputs, labels):\n"
        "    assert outputs['y'].shape == (90, 12)\n"
        "    return (outputs['y'].argmax(-1) == labels).mean()\n"
        "def wrong(outputs, labels):\n    return outputs['z']\n"
        "def nothing(outputs, labels):\n    return float('nan')\n"
    )
    score = measured(chosen("own_metric_a:right", LOGITS, CLASSES), LOGITS, NOISY, CLASSES)
    assert score.drop == measured(chosen(None, LOGITS, CLASSES), LOGITS, NOISY, CLASSES).drop
    with pytest.raises(UsageError, match="KeyError") as failure:
        measured(chosen("own_metric_a:wrong", LOGITS, CLASSES), LOGITS, NOISY, CLASSES)
    assert "y: float32[90, 12]" in str(failure.value)
    with pytest.raises(UsageError, match="gives nan"):
        measured(chosen("own_metric_a:nothing", LOGITS, None), LOGITS, NOISY, None)


@pytest.mark.parametrize(
    ("name", "labels", "told"),
    [
        ("accuracy", None, "needs labels, and c.npz has none"),
        ("mse", None, "needs labels"),
        ("acuracy", CLASSES, "Unknown metric 'acuracy'"),
        (None, CLASSES[:, None].repeat(2, 1), "fit no output"),
        (None, CLASSES + 1, "has the classes 0 to 11"),
        ("accuracy", NUMBERS, "fit no output"),
    ],
)
def test_a_metric_that_cannot_be_meant_is_refused(
    name: str | None, labels: Array | None, told: str
) -> None:
    with pytest.raises(UsageError, match=told) as failure:
        chosen(name, LOGITS, labels)
    assert failure.value.exit_code == 2
    assert isinstance(failure.value, SamplesError) or name == "acuracy"


def test_products_score_classes_and_embeddings_do_not(tmp_path: Path) -> None:
    weights = {"w": np.ones((4, 3), np.float32), "g": np.ones(3, np.float32)}
    shapes = [make_value("x", FLOAT, ["batch", 4])], [make_value("y", FLOAT, ["batch", 3])]
    product = helper.make_node("MatMul", ["x", "w"], ["h"])
    for operator, others, is_score in (
        ("Softmax", [], True),
        ("Add", ["g"], True),
        ("LayerNormalization", ["g"], False),
        ("Relu", [], False),
    ):
        node = helper.make_node(operator, ["h", *others], ["y"])
        path = save(make_model([product, node], *shapes, weights), tmp_path / f"{operator}.onnx")
        assert classifying_outputs(path) == (["y"] if is_score else [])
    assert classifying_outputs(save(make_linear(), tmp_path / "linear.onnx")) == ["y"]
