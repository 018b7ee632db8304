"""A package that is missing is named before any work, with the line that brings it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import toy_rooms as toy

from convkit import library, pipeline
from convkit.artifact import Artifact, Precision
from convkit.errors import MissingRequirementError
from convkit.recipe import Recipe
from convkit.step import Package


def test_verifying_names_the_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Package, "is_available", property(lambda self: self.module != "tensorflow"))
    artifacts = [Artifact(Path("a"), name, Precision.FP32) for name in ("savedmodel", "onnx")]
    with pytest.raises(MissingRequirementError, match="not installed: tensorflow") as caught:
        library._require_packages(*artifacts)
    assert caught.value.exit_code == 4
    assert caught.value.hint == 'pip install "convkit-ml[savedmodel]"'
    library._require_packages(artifacts[1])


def test_packages_that_only_run_models_are_needed_only_to_verify(tmp_path: Path) -> None:
    running = replace(toy.toy_format("b"), needs=(toy.ABSENT,))
    converters = toy.graph(toy.edge("a", "b"))
    converters = replace(converters, formats={**converters.formats, "b": running})
    recipe = Recipe(model=str(toy.write(tmp_path / "m.a", "a")), to="b")
    with pytest.raises(MissingRequirementError, match="no_such_module") as caught:
        pipeline.run(recipe, converters=converters)
    assert "--no-verify" in caught.value.hint
    assert {path.name for path in tmp_path.iterdir()} == {"m.a"}
    unverified = recipe.model_copy(update={"verify": False})
    assert pipeline.run(unverified, converters=converters).size_bytes


def test_a_package_may_be_served_by_another() -> None:
    assert not toy.ABSENT.is_available
    assert replace(toy.ABSENT, instead=("another_absent", "json")).is_available
