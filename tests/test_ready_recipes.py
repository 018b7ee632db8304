"""The recipes that come with convkit: each parses and plans, and runs on a small model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_contract import (
    encoder_folder,
    language_file,
    language_model,
    linear_graph,
    saved_module,
    traced_network,
)

from convkit import pipeline
from convkit import recipe as recipes

_FOLDER = Path(__file__).parent.parent / "recipes"
_ALL = sorted(_FOLDER.glob("*.yaml"))


_MAKERS = {
    "network.pt": traced_network,
    "network.onnx": linear_graph,
    "exported": saved_module,
    "language-model": language_model,
    "model.gguf": language_file,
}


def beside_its_model(recipe: Path, folder: Path) -> Path:
    """A copy of the recipe next to the model it names."""
    copy = Path(shutil.copy(recipe, folder))
    named = recipes.read(copy).model
    _MAKERS.get(Path(named).name, encoder_folder)(folder).rename(folder / named)
    return copy


def test_there_are_recipes() -> None:
    assert len(_ALL) >= 3


@pytest.mark.parametrize("path", _ALL, ids=lambda path: path.stem)
def test_every_recipe_plans_and_runs(path: Path, tmp_path: Path) -> None:
    recipe = recipes.read(beside_its_model(path, tmp_path))
    plan = pipeline.plan(recipe)
    assert plan.route.steps
    report = pipeline.run(recipe)
    assert report.passed
    assert report.artifact.path == tmp_path / recipe.out
