"""Recording a reference and judging a candidate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import toy_rooms as toy

from convkit import samples, verification
from convkit.artifact import Precision, TensorSpec
from convkit.errors import StepError
from convkit.step import Feeds, Outputs, Runner

X = TensorSpec("x", "float32", ("batch", 4))


class Computing(Runner):
    """A runner around a function."""

    def __init__(self, function: Callable[[Any], Outputs], inputs: tuple[TensorSpec, ...] = (X,)):
        self.function, self.inputs, self.outputs = function, inputs, ()

    def __call__(self, feeds: Feeds) -> Outputs:
        return self.function(feeds[self.inputs[0].name])

    def example(self, sizes: Any, seed: int) -> Feeds:
        return samples.draw(self.inputs, sizes, seed)


def recorded(function: Callable[[Any], Outputs]) -> verification.Recording:
    runner = Computing(function)
    feeds = [runner.example(sizes, 0) for sizes in samples.shape_sets(runner.inputs)]
    return verification.record(runner, feeds, 3)


def judged(
    reference: Callable[[Any], Outputs],
    candidate: Callable[[Any], Outputs],
    precision: str = "fp32",
) -> verification.Comparison:
    return verification.compare(recorded(reference), Computing(candidate), Precision(precision))


def failed(comparison: verification.Comparison) -> set[str]:
    return {check.metric for check in comparison.failures}


def test_recording_covers_batch_one_a_larger_batch_and_another() -> None:
    batches = [feeds["x"].shape[0] for feeds in recorded(lambda x: {"y": x}).samples]
    assert batches == [1, 3, 2]


def test_inputs_that_the_source_refuses_are_left_out_and_said() -> None:
    def in_fours(x: Any) -> Outputs:
        if len(x) % 4:
            raise ValueError("batch must be a multiple of 4")
        return {"y": x}

    recording = recorded(in_fours)
    assert [feeds["x"].shape[0] for feeds in recording.samples] == [4, 8, 12]
    assert any("multiple of 4" in text for text in recording.refused)


def test_a_source_that_refuses_everything_is_an_error() -> None:
    def never(x: Any) -> Outputs:
        raise ValueError("no")

    with pytest.raises(StepError, match="does not run"):
        recorded(never)


def test_observed_output_sizes_that_change_are_dynamic() -> None:
    (spec,) = recorded(lambda x: {"y": x}).outputs
    assert spec.shape == ("y_dim0", 4)


def test_equal_models_pass_every_check() -> None:
    comparison = judged(lambda x: {"y": 2 * x}, lambda x: {"y": 2 * x})
    assert comparison.passed
    metrics = {check.metric for check in comparison.checks}
    assert {"cosine", "sqnr_db", "max_abs", "top1_agreement", "nonfinite"} <= metrics


def test_an_error_of_one_in_a_thousand_fails_fp32_and_passes_fp16() -> None:
    noise = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)

    def off(x: Any) -> Outputs:
        return {"y": x * (1 + 1e-3 * noise[: len(x)])}

    assert "sqnr_db" in failed(judged(lambda x: {"y": x}, off))
    assert judged(lambda x: {"y": x}, off, "fp16").passed


def test_wrong_only_at_another_batch_size_is_found() -> None:
    def frozen(x: Any) -> Outputs:
        return {"y": x if len(x) == 1 else x * 0.5}

    assert not judged(lambda x: {"y": x}, frozen).passed


def test_a_crash_of_the_candidate_is_a_failed_check() -> None:
    def crash(x: Any) -> Outputs:
        if len(x) == 3:
            raise RuntimeError("Reshape: cannot reshape")
        return {"y": x}

    (check,) = judged(lambda x: {"y": x}, crash).failures
    assert check.metric == "runs"
    assert "cannot reshape" in check.sample


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_fail(bad: float) -> None:
    def spoiled(x: Any) -> Outputs:
        y = x.copy()
        y[0, 0] = bad
        return {"y": y}

    assert "nonfinite" in failed(judged(lambda x: {"y": x}, spoiled, "q4"))


def test_nan_where_the_source_has_nan_passes() -> None:
    def partly(x: Any) -> Outputs:
        y = x.copy()
        y[0, 0] = np.nan
        return {"y": y}

    assert judged(partly, partly).passed


def test_dtype_shape_and_name_are_a_contract() -> None:
    def source(x: Any) -> Outputs:
        return {"y": x}

    assert failed(judged(source, lambda x: {"y": x.astype(np.float64)})) == {"dtype"}
    assert failed(judged(source, lambda x: {"y": x[:, :3]})) == {"shape"}
    assert "name" in failed(judged(source, lambda x: {"z": x}))
    assert failed(judged(source, lambda x: {"y": x, "z": x})) == {"output_count"}


def test_a_half_precision_result_may_give_half_precision_outputs() -> None:
    def half(x: Any) -> Outputs:
        return {"y": x.astype(np.float16)}

    assert judged(lambda x: {"y": x}, half, "fp16").passed


@pytest.mark.parametrize("precision", ["fp32", "int8", "q4"])
def test_what_computes_in_float_may_give_floats_where_the_source_gave_halves(
    precision: str,
) -> None:
    def steps(x: Any, dtype: Any) -> Outputs:
        return {"y": np.round(x * 8).astype(dtype) / 8}

    def reference(x: Any) -> Outputs:
        return steps(x, np.float16)

    def candidate(x: Any) -> Outputs:
        return steps(x, np.float32)

    assert judged(reference, candidate, precision).passed
    assert failed(judged(reference, candidate, "fp16")) == {"dtype"}


def test_a_source_computed_in_half_precision_measures_no_finer_than_that() -> None:
    runner = Computing(lambda x: {"y": x.astype(np.float16)})
    feeds = [runner.example(sizes, 0) for sizes in samples.shape_sets(runner.inputs)]
    recording = verification.record(runner, feeds, 3, precision=Precision.FP16)
    candidate = Computing(lambda x: {"y": x})
    assert verification.compare(recording, candidate, Precision.FP32).passed


def test_integers_must_agree() -> None:
    def source(x: Any) -> Outputs:
        return {"y": x.argmax(-1)}

    assert judged(source, source).passed
    assert "agreement" in failed(judged(source, lambda x: {"y": x.argmin(-1)}))


def test_an_output_of_mere_rounding_noise_is_not_judged_by_its_ratio() -> None:
    def zero(x: Any) -> Outputs:
        return {"y": x * np.float32(1e-9)}

    assert judged(zero, lambda x: {"y": x * np.float32(-1e-9)}).passed


@pytest.mark.parametrize(
    ("precision", "scale"),
    [
        *((precision, 1e-3) for precision in ("fp32", "fp16", "bf16", "int8", "q4")),
        *((precision, 1e-5) for precision in ("fp32", "bf16", "int8", "q4")),  # fp16 ends at 6e-5
    ],
)
def test_zeros_are_no_substitute_for_a_small_output(precision: str, scale: float) -> None:
    """Probabilities over a thousand classes are small, and still the whole answer."""

    def small(x: Any) -> Outputs:
        return {"y": x * np.float32(scale)}

    assert "sqnr_db" in failed(judged(small, lambda x: {"y": 0 * x}, precision))


def test_a_fixed_dimension_is_lost_by_name_and_judged_where_it_fits() -> None:
    fixed = Computing(lambda x: {"y": x}, (TensorSpec("x", "float32", (3, 4)),))
    comparison = verification.compare(recorded(lambda x: {"y": x}), fixed, Precision.FP32)
    assert comparison.lost == ("x.batch",)
    assert comparison.passed


def test_a_candidate_that_takes_none_of_the_inputs_fails() -> None:
    fixed = Computing(lambda x: {"y": x}, (TensorSpec("x", "float32", (9, 4)),))
    assert not verification.compare(recorded(lambda x: {"y": x}), fixed, Precision.FP32).passed


def test_other_names_are_matched_by_order_when_asked_for() -> None:
    other = Computing(lambda x: {"out": x}, (TensorSpec("in", "float32", ("n", 4)),))
    recording = recorded(lambda x: {"y": x})
    comparison = verification.compare(recording, other, Precision.FP32, same_names=False)
    assert comparison.passed
    assert comparison.renamed == (("y", "out"),)


def test_every_precision_has_limits_with_a_reason() -> None:
    assert set(verification.LIMITS) == set(Precision)
    assert all(len(limits.reason) > 40 for limits in verification.LIMITS.values())


def test_limits_loosen_as_precision_falls() -> None:
    ratios = [verification.LIMITS[p].sqnr_db for p in ("fp32", "fp16", "bf16", "int8", "q4")]
    assert ratios == sorted(ratios, reverse=True)


def test_toy_runner_is_a_runner() -> None:
    with toy.ToyRunner(2.0) as runner:
        assert runner({"x": np.ones((1, 4), np.float32)})["y"].sum() == 8


def test_inputs_at_which_every_output_is_empty_serve_only_if_no_other_does() -> None:
    recording = recorded(lambda x: {"y": x[: len(x) // 2]})
    assert [len(feeds["x"]) for feeds in recording.samples] == [3, 2, 4]
    never = recorded(lambda x: {"y": x[:0]})
    assert [len(feeds["x"]) for feeds in never.samples] == [1, 3, 2]


def test_a_difference_below_what_the_runtime_resolves_says_nothing_and_is_noted() -> None:
    class Coarse(Computing):
        resolution = {"y": 2.0**-22}  # noqa: RUF012

    runner = Coarse(lambda x: {"y": np.full_like(x, 1e-5)})
    recording = verification.record(runner, [{"x": np.ones((2, 4), np.float32)}], 1)
    near = Computing(lambda x: {"y": np.full_like(x, 1e-5 + 2e-7)})
    far = Computing(lambda x: {"y": np.full_like(x, 1.1e-5)})
    comparison = verification.compare(recording, near, Precision.FP32)
    assert comparison.passed
    assert "'y' stays below 1e-05" in comparison.notes[0]
    assert not verification.compare(recording, far, Precision.FP32).passed
