"""What reaches which stream."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convkit import console, graph
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
