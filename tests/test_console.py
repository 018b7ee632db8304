"""What reaches which stream."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convkit import console, graph
from convkit.artifact import Artifact, Description, Precision
from convkit.errors import ModelError


def test_what_foreign_code_prints_while_work_goes_on_is_kept_off_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with console.progressing(is_quiet=True, is_verbose=False):
        print("from Python")  # noqa: T201
        os.system("echo from a process")
    console.print_json({"passed": True})
    out, err = capfd.readouterr()
    assert out == '{\n  "passed": true\n}\n'
    assert "from Python" in err
    assert "from a process" in err


def test_standard_output_comes_back_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(ValueError, match="bent"),
        console.progressing(is_quiet=True, is_verbose=False),
    ):
        raise ValueError("bent")
    os.system("echo back")
    assert capfd.readouterr().out == "back\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_read_permission_is_a_model_error(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"\x08\x0a")
    model.chmod(0)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        graph.detect(model)


def test_sizes_by_type_have_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    types = {
        "Q4_K": {"tensors": 9, "elements": 1_048_576, "bytes": 589_824},
        "F32": {"tensors": 3, "elements": 7_000, "bytes": 28_000},
    }
    described = Description(Precision.Q4, details={"types": types, "context_length": 8192})
    made = Artifact(tmp_path / "m.gguf", "gguf", Precision.Q4)
    console.print_description(made, described, {"size_bytes": 617_824})
    lines = [line.strip("\u2502 ") for line in capsys.readouterr().out.splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith("types"))
    assert "Q4_K: tensors 9, elements 1,048,576, 0.6 MiB" in lines[first]
    assert "F32: tensors 3, elements 7000, 0.0 MiB" in lines[first + 1]
    assert "8192" in lines[first + 2]
