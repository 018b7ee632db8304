"""Where ONNX folders keep their files, and where those of a result go."""

from __future__ import annotations

from pathlib import Path

import pytest

from convkit.artifact import Artifact, Precision
from convkit.onnx_folder import copy_companions, data_name, graph_file, result_file


def written(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)
    return path


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_the_graph_of_a_result_lies_as_in_its_source(place: str, tmp_path: Path) -> None:
    source = written(tmp_path / "model", place)
    assert graph_file(source) == source / place
    made = result_file(source, tmp_path / "half-1.7B")
    assert made == tmp_path / "half-1.7B" / place
    assert made.parent.is_dir()


def test_results_called_onnx_and_results_of_files_are_single_files(tmp_path: Path) -> None:
    source = written(tmp_path / "model", "model.onnx")
    for path, out in ((source, "half.ONNX"), (source / "model.onnx", "half")):
        assert result_file(path, tmp_path / out) == tmp_path / out
        assert not (tmp_path / out).exists()


@pytest.mark.parametrize(
    ("beside", "name"),
    [("model.onnx_data", "model.onnx_data"), ("other.bin", "model.onnx.data")],
)
def test_data_are_called_as_those_that_lie_beside_the_graph(
    beside: str, name: str, tmp_path: Path
) -> None:
    assert data_name(written(tmp_path, "model.onnx", beside) / "model.onnx") == name


def test_all_that_is_no_graph_no_weight_and_not_hidden_is_copied(tmp_path: Path) -> None:
    source = written(
        tmp_path / "model", "config.json", "onnx/model.onnx", "onnx/model_fp16.onnx",
        "onnx/model.onnx_data", "onnx/weights.bin", "runs/a/notes.md", ".git/config",
    )  # fmt: skip
    data = (source / "onnx/weights.bin",)
    artifact = Artifact(source, "onnx", Precision.FP32, data_files=data)
    out = tmp_path / "out"
    copy_companions(artifact, out)  # no folder: nothing happens
    out.mkdir()
    copy_companions(artifact, out)
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert files == {"config.json", "runs/a/notes.md"}
