"""Logits judged by what they mean: divergence, the most likely token, perplexity."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit import graph, metrics, recording, verification
from convkit.artifact import Precision, TensorSpec
from convkit.distributions import Predictions, without_padding
from convkit.errors import SamplesError
from convkit.formats.torch import torch
from convkit.ggml.types import SCHEMES
from convkit.language_limits import HALF_ROUNDED, LIMITS, Party, limits_between
from convkit.recording import Recorder
from convkit.step import Feeds, LanguageRunner, Outputs, Package, Runner

Array = np.ndarray[Any, Any]
FLOAT = Party(Precision.FP32)
COMPUTED_IN_BF16 = Party(Precision.BF16, rounds=True)


class Speaker(LanguageRunner):
    """Predicts by a table: token -> logits of the next; letters are tokens."""

    inputs = (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("batch", "sequence")),
    )
    outputs = ()
    distributions = frozenset({"logits"})

    def __init__(self, table: Array) -> None:
        self.table = table

    def __call__(self, feeds: Feeds) -> Outputs:
        return {"logits": self.table[feeds["input_ids"]]}

    def example(self, sizes: Any, seed: int) -> Feeds:
        shape = (sizes.get("batch", 1), sizes.get("sequence", 8))
        ids = np.random.default_rng(seed).integers(0, len(self.table), shape)
        mask = np.ones_like(ids)
        mask[1:, shape[1] // 2 :] = 0
        return {"input_ids": ids, "attention_mask": mask}

    def encode(self, text: str, *, is_prompt: bool = True) -> list[int]:
        return [0] * is_prompt + [ord(letter) % len(self.table) for letter in text]

    def decode(self, tokens: Any) -> str:
        raise NotImplementedError

    def session(self) -> Any:
        raise NotImplementedError


def table(seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((50, 50)).astype(np.float32) * 3


def compared(reference: Runner, candidate: Runner, **facts: Any) -> verification.Comparison:
    precision = facts.get("precision", Precision.FP32)
    samples = recording.inputs_for(reference, [])
    recorded = verification.record(reference, samples, 4)
    return verification.compare(recorded, candidate, precision)


def test_the_same_predictions_are_equal() -> None:
    comparison = compared(Speaker(table()), Speaker(table()))
    values = {check.metric: check.value for check in comparison.checks}
    assert comparison.passed
    assert (values["kl"], values["top1_agreement"], values["ln_perplexity"]) == (0.0, 1.0, 0.0)
    assert "perplexity" in comparison.notes[0]


def test_a_row_long_enough_for_a_perplexity_is_among_the_inputs() -> None:
    inputs = recording.inputs_for(Speaker(table()), [])
    assert next(inputs)["input_ids"].shape == (1, 256)


def test_what_the_mask_leaves_out_is_not_compared() -> None:
    class Careless(Speaker):
        def __call__(self, feeds: Feeds) -> Outputs:
            logits = self.table[feeds["input_ids"]].copy()
            logits[feeds["attention_mask"] == 0] = 99.0
            return {"logits": logits}

    assert compared(Speaker(table()), Careless(table())).passed


def test_another_model_fails_on_every_count() -> None:
    comparison = compared(Speaker(table()), Speaker(table(1)))
    failed = {check.metric for check in comparison.failures}
    assert failed == {"kl", "top1_agreement", "ln_perplexity"}


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    assert compared(Speaker(table()), Speaker(table() + 100)).passed


def test_nan_fails() -> None:
    broken = table()
    broken[3, 4] = np.nan
    assert not compared(Speaker(table()), Speaker(broken)).passed


def test_outputs_without_a_place_in_the_format_are_noted_not_failed() -> None:
    class TwoOutputs(Speaker):
        def __call__(self, feeds: Feeds) -> Outputs:
            return {**super().__call__(feeds), "extra": np.ones(3, np.float32)}

    class WithoutExtra(Speaker):
        without = frozenset({"extra"})

    comparison = compared(TwoOutputs(table()), WithoutExtra(table()))
    assert comparison.passed
    assert "'extra' has no place in this format" in comparison.notes
    assert not compared(TwoOutputs(table()), Speaker(table())).passed


def test_what_a_candidate_cannot_be_asked_is_passed_over() -> None:
    class OneRow(Speaker):
        def can_take(self, feeds: Feeds) -> bool:
            return len(feeds["input_ids"]) == 1

        def __call__(self, feeds: Feeds) -> Outputs:
            assert len(feeds["input_ids"]) == 1
            return super().__call__(feeds)

    assert compared(Speaker(table()), OneRow(table())).passed


def test_divergence_is_what_scipy_computes() -> None:
    special = pytest.importorskip("scipy.special", reason="scipy is not installed")
    a, b = table(0), table(1)
    p, q = special.softmax(a.astype(np.float64), -1), special.softmax(b.astype(np.float64), -1)
    assert metrics.kl(a, b) == pytest.approx(special.rel_entr(p, q).sum(-1).mean())


def test_likelihood_is_taken_of_the_second_half_as_llama_perplexity_does() -> None:
    ids = np.array([[0, 1, 2, 3, 4, 5, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 1, 1, 0, 0]])
    logits = np.zeros((1, 8, 10))
    logits[0, 3, 4] = np.log(9.0)  # of 10 tokens, token 4 gets 9 / 18
    # Positions 3 and 4 of six predict tokens 4 and 5.
    assert metrics.scored_tokens(mask) == 2
    assert metrics.nll(ids, logits, mask) == pytest.approx((np.log(2.0) + np.log(10.0)) / 2)
    assert np.isnan(metrics.nll(ids[:, :1], logits[:, :1], mask[:, :1]))


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        (FLOAT, Party(Precision.FP32), "f32"),
        (FLOAT, Party(Precision.Q4, "q6_k", rounds=True), "q6_k"),
        (FLOAT, Party(Precision.Q4), "q4_k_m"),
        (FLOAT, Party(Precision.BF16, "bf16", rounds=True), "bf16"),
        (Party(Precision.BF16), Party(Precision.BF16, "bf16", rounds=True), "bf16"),
        (Party(Precision.Q4, "q6_k", True), Party(Precision.Q4, "q4_0", True), "q4_0"),
        (COMPUTED_IN_BF16, Party(Precision.INT8, "q8_0", rounds=True), "q8_0"),
    ],
)
def test_what_is_lowered_is_judged_by_its_scheme(
    reference: Party, candidate: Party, expected: str
) -> None:
    assert limits_between(reference, candidate) is LIMITS[expected]


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (FLOAT, Party(Precision.BF16, rounds=True)),
        (COMPUTED_IN_BF16, Party(Precision.BF16, "bf16", rounds=True)),
        (COMPUTED_IN_BF16, Party(Precision.FP16, "f16")),
        (COMPUTED_IN_BF16, Party(Precision.FP32, "f32")),
    ],
)
def test_what_rounds_every_value_to_bfloat16_is_judged_by_that(
    reference: Party, candidate: Party
) -> None:
    assert limits_between(reference, candidate) is HALF_ROUNDED


@pytest.mark.parametrize(
    "candidate", [Party(Precision.FP32), Party(Precision.Q4), Party(Precision.Q4, "q4_1", True)]
)
def test_the_same_weights_are_judged_by_what_runtimes_round(candidate: Party) -> None:
    limits = limits_between(Party(Precision.Q4, "q4_1", rounds=True), candidate)
    assert LIMITS["f32"].kl < limits.kl < LIMITS["q6_k"].kl


def test_every_scheme_has_limits_with_a_reason_that_fall_with_its_bits() -> None:
    assert set(LIMITS) == {*SCHEMES, *torch.schemes}
    assert all(len(limits.reason) > 40 for limits in LIMITS.values())
    order = ["f32", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q2_k"]
    assert [LIMITS[name].kl for name in order] == sorted(LIMITS[name].kl for name in order)


def test_a_token_counts_as_changed_only_where_the_reference_decides() -> None:
    logits = np.array([[[2.0, 1.999, 0.0], [9.0, 0.0, 0.0]]])
    other = np.array([[[1.999, 2.0, 0.0], [9.0, 0.0, 0.0]]])
    found = Predictions(LIMITS["f32"])
    found.add({"input_ids": np.zeros((1, 2), int)}, logits, other)
    assert found.top1 == 1.0
    assert "50.0%" in str(found)


def test_a_text_becomes_rows_that_begin_as_prompts_do(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc" * 400)
    rows = recording.text_windows(Speaker(table()), path)
    assert [row["input_ids"].shape for row in rows] == [(1, 512), (1, 512)]
    assert all(row["input_ids"][0, 0] == 0 for row in rows)
    assert rows[1]["input_ids"][0, 1] == Speaker(table()).encode(path.read_text())[513]


def test_long_work_ends_when_its_source_turns_out_not_to_run(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    text = '<ir_version: 10, opset_import: ["":20]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    (tmp_path / "text.txt").write_text("No language model reads this.")
    found = graph.detect(tmp_path / "m.onnx")
    format = replace(graph.discover().format("onnx"), needs=(Package("no_runtime_here", "onnx"),))
    recorder = Recorder(found, tmp_path / "text.txt", format)
    recorder.check()  # waits for nothing: it has only begun
    while not recorder._child.has_ended:  # type: ignore[union-attr]
        time.sleep(0.01)
    with pytest.raises(SamplesError, match="is a text, and the model predicts none"):
        recorder.check()
    assert recorder.has_failed


@pytest.mark.parametrize(
    ("content", "says"), [(b"short", "is too short: 6 tokens"), (b"\xff\xfe\xff", "cannot be read")]
)
def test_a_text_that_will_not_do_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(SamplesError, match=says):
        recording.text_windows(Speaker(table()), path)


def test_what_is_made_of_padding_is_left_out() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    hidden, pooled = np.arange(12.0).reshape(2, 3, 2), np.ones((2, 4))
    (kept,) = without_padding({"attention_mask": mask}, hidden)
    np.testing.assert_array_equal(kept, [[0, 1], [2, 3], [6, 7]])
    for feeds, outputs in (
        ({"attention_mask": mask}, pooled),
        ({"attention_mask": np.ones_like(mask)}, hidden),
        ({}, hidden),
    ):
        assert without_padding(feeds, outputs)[0] is outputs
