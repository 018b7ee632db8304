"""Benchmarks that run: what they report, and what they refuse. No test here times anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from convkit import benchmark, benchmark_machine
from convkit.artifact import TensorSpec
from convkit.benchmark import bench
from convkit.benchmark_inputs import batches_for, shared_sizes, source_for
from convkit.benchmark_report import labels
from convkit.errors import ConvkitError, SamplesError, UsageError
from convkit.processors import usable_processors

pytest.importorskip("onnxruntime", reason="models are run with ONNX Runtime")
bench_models = pytest.importorskip("bench_models", reason="models are built with the onnx package")


def test_two_models_are_reported_side_by_side(tmp_path: Path) -> None:
    fast = bench_models.elu_chain(tmp_path / "fast.onnx", is_quantized=False)
    slow = bench_models.elu_chain(tmp_path / "slow.onnx", is_quantized=True)
    report = bench([fast, slow], time_s=0.6, batches=[1, 4], threads=1)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [(row["path"], row["batch"]) for row in document["results"]] == [
        (str(fast), 1), (str(slow), 1), (str(fast), 4), (str(slow), 4),
    ]  # fmt: skip
    for row in document["results"]:
        assert row["format"] == "onnx"
        assert (row["p50_ci_ms"] is None) == (row["rounds"] < 6)
        low, high = row["p50_ci_ms"] or (row["p50_ms"], row["p50_ms"])
        assert 0 < low <= row["p50_ms"] <= high
        assert row["p95_ms"] is None if row["runs"] < 200 else row["p95_ms"] >= row["p50_ms"]
        assert (row["p99_ms"] is None) == (row["runs"] < 1000)
        assert row["throughput_per_s"] == pytest.approx(
            row["batch"] * 1e3 / row["mean_ms"], rel=1e-4
        )
        assert row["size_bytes"] == Path(row["path"]).stat().st_size
        assert 20 < row["peak_rss_mib"] < 1000
        assert row["error"] is None
    first, second = report.results[:2]
    assert (first.speedup, first.speedup_ci, first.verdict) == (1.0, (1.0, 1.0), "")
    assert first.latency is not None
    assert second.latency is not None
    assert second.speedup == first.latency.p50_ms / second.latency.p50_ms
    assert second.verdict in ("faster", "slower", "same" if second.speedup_ci else "")
    machine = document["machine"]
    assert machine["cores"] == usable_processors()
    assert machine["threads"] == 1
    assert machine["versions"]["onnxruntime"]
    assert document["inputs"] == {"1": "x: float32[1, 1024]", "4": "x: float32[4, 1024]"}


def test_a_model_that_fails_at_a_batch_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    free = bench_models.convolutions(tmp_path / "free.onnx")
    fixed = bench_models.convolutions(tmp_path / "fixed.onnx", batch=1)
    report = bench([fixed, free], time_s=0.3, batches=[1, 2])
    at_one, at_two = report.results[:2], report.results[2:]
    assert all(result.latency is not None for result in at_one)
    assert at_two[0].latency is None
    assert "fixed.onnx takes x: float32[1, 3, 32, 32] only" in at_two[0].error
    assert at_two[1].latency is not None
    assert at_two[1].speedup is None, "there is nothing to compare with"


def test_what_a_model_fixes_is_the_batch_unless_another_is_asked_for(tmp_path: Path) -> None:
    fixed = bench_models.convolutions(tmp_path / "fixed.onnx", batch=3)
    free = bench_models.convolutions(tmp_path / "free.onnx")
    assert [result.batch for result in bench([free, fixed], time_s=0.2).results] == [3, 3]
    with pytest.raises(SamplesError, match=r"takes x: float32\[3, 3, 32, 32\] only"):
        bench([fixed], time_s=0.2, batches=[2])


def test_samples_are_taken_as_they_are_or_brought_to_the_batch(tmp_path: Path) -> None:
    model = bench_models.convolutions(tmp_path / "m.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 3, 32, 32), np.float32))
    given = bench([model], time_s=0.1, samples=tmp_path / "inputs.npz")
    assert given.inputs == {2: "x: float32[2, 3, 32, 32]"}
    more = bench([model], time_s=0.1, samples=tmp_path / "inputs.npz", batches=[5])
    assert more.inputs == {5: "x: float32[5, 3, 32, 32]"}


def test_models_that_take_different_inputs_are_not_compared(tmp_path: Path) -> None:
    images = bench_models.convolutions(tmp_path / "images.onnx")
    rows = bench_models.elu_chain(tmp_path / "rows.onnx", is_quantized=False)
    with pytest.raises(SamplesError, match="does not take the inputs") as caught:
        bench([images, rows], time_s=0.1)
    assert "x: float32[batch, 3, 32, 32]" in str(caught.value)
    assert "x: float32[n, 1024]" in str(caught.value)


def test_too_little_time_for_a_single_run_is_refused_with_enough_of_it(tmp_path: Path) -> None:
    model = bench_models.matrix_chain(tmp_path / "m.onnx", rounds_products=True)
    with pytest.raises(UsageError, match="no time for a single run") as caught:
        bench([model], time_s=1e-6)
    assert caught.value.hint == "--time 1s"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time_s": 0.0}, "no time"),
        ({"time_s": float("nan")}, "no time"),
        ({"batches": [0]}, "no rows"),
        ({"threads": 0}, "compute nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        bench([tmp_path / "none.onnx"], **options)


def test_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="No model"):
        bench([])


def test_a_model_that_cannot_be_opened_is_an_error_of_its_own_kind(tmp_path: Path) -> None:
    good = bench_models.convolutions(tmp_path / "good.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(good.read_bytes()[:200])
    with pytest.raises(ConvkitError, match=r"broken\.onnx"):
        bench([good, broken], time_s=0.1)


def test_few_rounds_give_no_interval_and_a_note(tmp_path: Path) -> None:
    model = bench_models.convolutions(tmp_path / "m.onnx")
    report = bench([model, model], time_s=0.05)  # a turn takes 0.02 s at least
    assert [result.latency and result.latency.p50_ci_ms for result in report.results] == [None] * 2
    assert report.results[1].verdict == ""
    assert any("too few for an interval" in note for note in report.notes)


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    paths = [Path("a/m.onnx"), Path("b/m.onnx"), Path("c/n.onnx"), Path("c/n.onnx")]
    assert labels(paths) == ["a/m.onnx", "b/m.onnx", "n.onnx", "n.onnx (2)"]
    assert labels([Path("m.onnx"), Path("b/m.onnx")]) == ["m.onnx", "b/m.onnx"]


def test_sizes_that_any_model_fixes_count_for_all() -> None:
    free = [TensorSpec("x", "float32", ("batch", 3, "height", "width"))]
    fixed = [TensorSpec("image", "float32", ("batch", 3, 224, 192))]
    assert shared_sizes([free, fixed], 0, 8) == {"batch": 8, "height": 224, "width": 192}
    single = [TensorSpec("x", "float32", (4, 3, 224, 192))]
    assert batches_for([free, single], [], None) == [4]
    assert source_for([single, free], 8) == 1


def test_models_wait_for_their_threads_as_the_users_shell_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert "OMP_WAIT_POLICY" not in benchmark_machine.environment(None)
    monkeypatch.setenv(benchmark_machine.USERS_WAIT_POLICY, "")  # the command's own setting
    assert benchmark_machine.environment(2)["OMP_WAIT_POLICY"] is None
    monkeypatch.setenv(benchmark_machine.USERS_WAIT_POLICY, "active")
    assert benchmark_machine.environment(2) == {
        "OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "2", "TF_NUM_INTRAOP_THREADS": "2",
    }  # fmt: skip


def test_the_library_has_the_word() -> None:
    import convkit

    assert convkit.bench is benchmark.bench


@pytest.mark.slow
def test_models_of_several_formats_are_measured_on_the_same_inputs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from tests.tiny_models import ConvBnRelu

    network, x = ConvBnRelu().eval(), torch.zeros(2, 3, 32, 32)
    sizes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(network, (x,), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "m.pt2")
    graph = bench_models.convolutions(tmp_path / "m.onnx")
    report = bench([tmp_path / "m.pt2", graph], time_s=1, batches=[1, 4])
    assert [result.artifact.format for result in report.results] == ["torch", "onnx"] * 2
    assert not any(result.error for result in report.results)
    assert report.inputs[4].startswith("x: float32[4, 3, 32, 32]")
