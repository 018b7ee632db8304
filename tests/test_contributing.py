"""The worked example of CONTRIBUTING.md, installed as a plugin and used from the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime", reason="the example ends in ONNX")
GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the example's two files and its entry points."""
    site = tmp_path_factory.mktemp("site")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    (site / "your_package").mkdir()
    for language, text in blocks:
        if language == "python":
            name = text.partition("\n")[0].removeprefix("# ")
            (site / "your_package" / name).write_text(text)
    (points,) = [text for language, text in blocks if language == "toml"]
    info = site / "your_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: your-package\nVersion: 1.0\n")
    lines = [line.replace('"', "") for line in points.splitlines()[1:]]
    (info / "entry_points.txt").write_text("\n".join(["[convkit.plugins]", *lines]))
    return site


def convkit(site: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from convkit.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
    )


def test_the_worked_example_converts_and_verifies(site: Path, tmp_path: Path) -> None:
    weight, bias = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]], [0.5, -0.25]
    model = tmp_path / "model.linear.json"
    model.write_text(json.dumps({"linear": {"weight": weight, "bias": bias}}))
    done = convkit(site, "convert", model.name, "--to", "onnx", "-o", "m.onnx", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    x = np.random.default_rng(0).standard_normal((5, 3), np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {"x": x})
    np.testing.assert_allclose(found, x @ np.float32(weight) + np.float32(bias), rtol=1e-5)


def test_the_worked_example_refuses_what_is_not_its_own(site: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.linear.json").write_text('{"linear": {"weight": [[1]], "bias": []}}')
    done = convkit(site, "convert", "broken.linear.json", "--to", "onnx", folder=tmp_path)
    assert done.returncode == 5, done.stderr


def test_the_worked_example_passes_the_linter(site: Path) -> None:
    pytest.importorskip("ruff", reason="ruff is a developer's tool")
    files = sorted(map(str, (site / "your_package").glob("*.py")))
    configuration = str(GUIDE.parent / "pyproject.toml")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", configuration, *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
