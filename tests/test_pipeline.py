"""The one way through, on toy formats: what is published, when, and what is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_rooms as toy

from convkit import pipeline
from convkit.artifact import Artifact
from convkit.errors import (
    MissingRequirementError,
    RungSkipped,
    SamplesError,
    StepError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from convkit.recipe import Recipe
from convkit.step import Converter, Rung, Work, ladder, rung


def to_b(*rungs: Rung) -> Converter:
    return ladder("a", "b", *rungs, carries=("fp32",), loses="nothing")


def to_c(*rungs: Rung) -> Converter:
    return ladder("b", "c", *rungs, carries=("fp32",), loses="nothing")


def copy(name: str = "copy", factor: float = 1.0, suffix: str = "") -> Rung:
    return rung(name)(toy.copying(name, "b", factor, suffix))


@rung("skips")
def skips(source: Artifact, out: Path, work: Work) -> None:
    """Never applies."""
    raise RungSkipped("only for folders")


@rung("crashes")
def crashes(source: Artifact, out: Path, work: Work) -> None:
    """Always breaks."""
    raise RuntimeError("segment 7 is bent\nsecond line")


@rung("writes_nothing")
def writes_nothing(source: Artifact, out: Path, work: Work) -> None:
    """Forgets its result."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.write(tmp_path / "m.a", "a")


def run(model: Path, *steps: Converter, **fields: object) -> object:
    recipe = Recipe.model_validate({"model": str(model), "to": "b", **fields})
    return pipeline.run(recipe, converters=toy.graph(*steps))


def left_beside(model: Path) -> set[str]:
    return {path.name for path in model.parent.iterdir()} - {model.name}


def test_result_lies_beside_the_source_with_its_manifest(model: Path) -> None:
    report = run(model, to_b(copy()))
    assert left_beside(model) == {"m.b", "m.b.convkit.json"}
    assert report.passed
    assert report.artifact.path == model.with_suffix(".b")


def test_manifest_tells_how_the_result_came_about(model: Path) -> None:
    run(model, to_b(copy()))
    manifest = json.loads(model.with_name("m.b.convkit.json").read_text())
    (entry,) = manifest["lineage"]
    assert entry["step"] == "a-to-b"
    assert len(entry["input_sha256"]) == 64
    assert manifest["verified"] is True
    assert all(check["passed"] for check in manifest["checks"])


def test_lineage_grows_along_a_chain(model: Path, tmp_path: Path) -> None:
    run(model, to_b(copy()))
    recipe = Recipe(model=str(tmp_path / "m.b"), to="c")
    report = pipeline.run(recipe, converters=toy.graph(toy.edge("b", "c")))
    assert [entry.step for entry in report.artifact.lineage] == ["a-to-b", "b-to-c"]


def test_lowered_precision_shows_in_the_default_name(model: Path) -> None:
    run(model, toy.edge("a", "b"), toy.lowering("b", "fp16"), precision="fp16")
    assert "m.fp16.b" in left_beside(model)


def test_source_file_is_unchanged(model: Path) -> None:
    before = model.read_bytes()
    run(model, to_b(copy()))
    assert model.read_bytes() == before


def test_an_existing_result_is_never_overwritten_without_force(model: Path) -> None:
    old = toy.write(model.with_suffix(".b"), "b", factor=7)
    with pytest.raises(UsageError, match="exists already"):
        run(model, to_b(copy()))
    assert "7" in old.read_text()
    run(model, to_b(copy()), force=True)
    assert "2.0" in old.read_text()


def test_of_two_runs_that_race_for_a_name_the_later_is_refused(model: Path) -> None:
    @rung("overtaken")
    def overtaken(source: Artifact, out: Path, work: Work) -> None:
        toy.write(out, "b")
        toy.write(model.with_suffix(".b"), "b", factor=7)  # another process is done first

    with pytest.raises(UsageError, match="exists already"):
        run(model, to_b(overtaken))
    assert "7" in model.with_suffix(".b").read_text()
    assert left_beside(model) == {"m.b"}


@pytest.mark.parametrize("out", ["m.a", "."])
def test_the_source_is_never_replaced_even_with_force(model: Path, out: str) -> None:
    before = model.read_bytes()
    with pytest.raises(UsageError, match="is the source model, or holds it"):
        run(model, to_b(copy()), out=model.parent / out, force=True)
    assert model.read_bytes() == before


def test_a_link_to_the_source_is_the_source(model: Path) -> None:
    link = model.with_name("link.b")
    link.symlink_to(model)
    with pytest.raises(UsageError, match="is the source model"):
        run(model, to_b(copy()), out=link, force=True)


def test_folders_made_for_a_result_that_failed_are_gone(model: Path) -> None:
    with pytest.raises(StepError):
        run(model, to_b(crashes), out=model.parent / "new" / "folder" / "m.b")
    assert left_beside(model) == set()


def test_an_opset_that_no_step_takes_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="--opset 18 has no effect"):
        run(model, to_b(copy()), opset=18)


def test_a_given_sample_that_the_source_refuses_is_an_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = toy.ToyRunner.__call__

    def picky(self: toy.ToyRunner, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if feeds["x"].shape[0] == 5:
            raise ValueError("five is too many")
        return fine(self, feeds)

    monkeypatch.setattr(toy.ToyRunner, "__call__", picky)
    samples = tmp_path / "samples"
    samples.mkdir()
    np.savez(samples / "0.npz", x=np.zeros((2, 4), np.float32))
    np.savez(samples / "1.npz", x=np.zeros((5, 4), np.float32))
    with pytest.raises(SamplesError, match="does not run on sample 1"):
        run(model, to_b(copy()), samples=samples)


def test_a_failed_run_with_force_keeps_the_old_result(model: Path) -> None:
    old = toy.write(model.with_suffix(".b"), "b", factor=7)
    with pytest.raises(VerificationError):
        run(model, to_b(copy(factor=1.5)), force=True)
    assert "7" in old.read_text()


def test_wrong_numbers_are_refused_and_kept_for_inspection(model: Path) -> None:
    with pytest.raises(VerificationError, match="Kept for inspection") as caught:
        run(model, to_b(copy(factor=1.5)))
    assert left_beside(model) == {".rejected"}
    assert (model.parent / ".rejected" / "m.b").exists()
    assert "cosine" not in str(caught.value).splitlines()[0]


def test_an_option_that_cannot_be_meant_ends_the_ladder(model: Path) -> None:
    @rung("strict")
    def strict(source: Artifact, out: Path, work: Work, *, factor: int = 1) -> None:
        raise UsageError(f"factor is at least 1, not {factor}.")

    with pytest.raises(UsageError, match="at least 1, not 0"):
        run(model, to_b(strict, copy()), settings={"a-to-b.factor": 0})
    assert left_beside(model) == set()


def test_a_rung_that_fails_gives_way_to_the_next_and_is_reported(model: Path) -> None:
    report = run(model, to_b(skips, crashes, copy("wrong", 1.5), copy("right")))
    (step,) = report.steps
    assert step.rung == "right"
    reasons = {rung.name: rung.reason for rung in step.rungs if not rung.served}
    assert reasons["skips"] == "only for folders"
    assert "segment 7 is bent" in reasons["crashes"]
    assert "too far from the source" in reasons["wrong"]
    assert left_beside(model) == {"m.b", "m.b.convkit.json"}


def test_a_rung_that_keeps_dynamic_dimensions_is_preferred(model: Path) -> None:
    report = run(model, to_b(copy("first", suffix="fixed"), copy("second")))
    assert report.steps[0].rung == "second"


def test_lost_dimensions_are_reported_by_name_when_no_rung_keeps_them(model: Path) -> None:
    report = run(model, to_b(copy("first", suffix="fixed")))
    assert "Dynamic dimensions that became fixed: x.batch" in report.steps[0].notes


def test_the_most_telling_failure_is_raised_with_the_others(model: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        run(model, to_b(crashes, copy("wrong", 1.5), skips))
    text = str(caught.value)
    assert "segment 7 is bent" in text
    assert "skips: only for folders" in text


def test_foreign_exceptions_become_a_step_error_with_their_first_line(model: Path) -> None:
    with pytest.raises(StepError, match=r"a-to-b \(crashes\) failed: RuntimeError: segment 7"):
        run(model, to_b(crashes))
    assert left_beside(model) == set()


def test_a_step_without_result_fails(model: Path) -> None:
    with pytest.raises(StepError, match="without writing a result"):
        run(model, to_b(writes_nothing))


def test_nothing_applies_is_unsupported(model: Path) -> None:
    with pytest.raises(UnsupportedError, match="only for folders"):
        run(model, to_b(skips))


def test_missing_packages_are_named_before_any_work(model: Path) -> None:
    with pytest.raises(MissingRequirementError, match=r"convkit-ml\[absent\]"):
        run(model, toy.edge("a", "b", needs=(toy.ABSENT,)))
    assert left_beside(model) == set()


def test_no_verify_publishes_and_says_so(model: Path) -> None:
    report = run(model, to_b(copy(factor=1.5)), verify=False)
    assert not report.verified
    assert not report.passed
    assert report.to_json()["passed"] is False


def test_settings_reach_the_step(model: Path) -> None:
    with pytest.raises(VerificationError):
        run(model, to_b(copy()), settings={"a-to-b.bias": 1.0})


def test_settings_of_a_step_not_on_the_route_are_refused(model: Path) -> None:
    steps = (to_b(copy()), toy.lowering("b", "fp16"))
    with pytest.raises(UsageError, match="has no effect"):
        run(model, *steps, settings={"b-fp16.keep_io": False})


def test_asking_for_what_is_there_is_a_usage_error(model: Path) -> None:
    recipe = Recipe(model=str(model), to="a")
    with pytest.raises(UsageError, match="already is a at fp32"):
        pipeline.run(recipe, converters=toy.graph())


def test_samples_that_do_not_fit_are_shown_side_by_side(model: Path, tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "s.npz", image=np.zeros((1, 4), np.float32))
    with pytest.raises(SamplesError, match=r"x: float32\[batch, 4\]"):
        run(model, to_b(copy()), samples=tmp_path / "s.npz")


def test_samples_are_used_and_varied_in_shape(model: Path, tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "s.npz", x=np.full((5, 4), 3, np.float32))
    report = run(model, to_b(copy()), samples=tmp_path / "s.npz")
    assert report.samples[:3] == ("x (5, 4)", "x (1, 4)", "x (3, 4)")


@pytest.mark.parametrize(
    ("ending", "name"), [(lambda artifact: "-bees", "net-1.7-bees"), (None, "net-1.7.b")]
)
def test_results_on_the_way_are_called_after_the_destination_and_what_they_are(
    ending: Callable[[Artifact], str] | None, name: str, tmp_path: Path
) -> None:
    seen: list[str] = []

    @rung("looks")
    def looks(source: Artifact, out: Path, work: Work) -> None:
        """Copies, and tells what it is given."""
        seen.append(source.path.name)
        toy.copying("copy", "c")(source, out, work)

    steps = replace(toy.edge("a", "b"), ending=ending), to_c(looks)
    model = str(toy.write(tmp_path / "m.a", "a"))
    recipe = Recipe(model=model, to="c", out=tmp_path / "net-1.7.c")
    pipeline.run(recipe, converters=toy.graph(*steps))
    assert seen == [name]
