"""Recipes: read, checked with the line, overridden."""

from __future__ import annotations

from pathlib import Path

import pytest

from convkit import recipe as recipes
from convkit.artifact import Precision
from convkit.errors import UsageError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_recipe_is_read(tmp_path: Path) -> None:
    text = "model: m.onnx\nto: onnx\nprecision: fp16\nset:\n  onnx-fp16.keep_io: false\n"
    recipe = recipes.read(written(tmp_path, text))
    assert recipe.precision is Precision.FP16
    assert recipe.settings == {"onnx-fp16.keep_io": False}


def test_relative_paths_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    recipe = recipes.read(written(tmp_path, "model: m.onnx\nto: onnx\nout: build/x.onnx\n"))
    assert recipe.model == str(tmp_path / "m.onnx")
    assert recipe.out == tmp_path / "build/x.onnx"


def test_factories_stay_as_they_are(tmp_path: Path) -> None:
    assert recipes.read(written(tmp_path, "model: a.b:c\nto: onnx\n")).model == "a.b:c"


def test_unknown_field_is_named_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2: there is no field 'too'; did you mean 'to'"):
        recipes.read(written(tmp_path, "model: m\ntoo: onnx\n"))


def test_wrong_value_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 3: precision: .*fp32"):
        recipes.read(written(tmp_path, "model: m\nto: onnx\nprecision: fp12\n"))


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "model: m\nto: onnx\nset: {onnx-fp16.keep_io: true}\n")
    recipe = recipes.read(path, {"to": "torch", "onnx-fp16.keep_io": False})
    assert recipe.to == "torch"
    assert recipe.settings == {"onnx-fp16.keep_io": False}


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [", "\x00"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        recipes.read(written(tmp_path, text))


def test_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        recipes.read(tmp_path / "none.yaml")


def test_a_drop_is_a_share_or_a_percentage() -> None:
    assert recipes.make(model="m", to="onnx", max_drop="1%").max_drop == 0.01
    assert recipes.make(model="m", to="onnx", max_drop="0.005").max_drop == 0.005
    with pytest.raises(UsageError, match=r"'1x%' is no max_drop .*\n  A share is written as 1%"):
        recipes.make(model="m", to="onnx", max_drop="1x%")
