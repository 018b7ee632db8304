"""What installers and scripts promise: extras, pins, builds, and failures in a sentence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from convkit.graph import discover

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("prepare", "quickstart", "test", "check")
EXTRAS = {"torch", "onnx", "savedmodel", "gguf", "bitsandbytes", "tensorrt", "report"} | {
    "all",
    "material",
    "dev",
}


def all_requirements() -> list[Requirement]:
    return [Requirement(text) for text in requires("convkit-ml") or []]


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_extras_are_named_as_formats() -> None:
    assert set(metadata("convkit-ml").get_all("Provides-Extra") or []) == EXTRAS


def test_every_requirement_of_every_extra_is_pinned_and_the_pin_satisfies_it() -> None:
    pins = constraints()
    for requirement in all_requirements():
        if requirement.name == "convkit-ml":
            continue
        pin = pins[canonicalize_name(requirement.name)]
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert requirement.specifier.contains(specifier.version), requirement.name


def test_what_steps_need_comes_with_an_extra_that_exists() -> None:
    graph = discover()
    records = [*graph.formats.values(), *graph.steps.values()]
    needs = [need for record in records for need in record.needs]
    assert needs
    assert {need.extra for need in needs} <= EXTRAS


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
        ("win32", "ARM64", "onnxruntime"),
    ],
)
def test_exactly_one_build_of_onnxruntime_is_asked_for(
    system: str, machine: str, expected: str
) -> None:
    environment = {"sys_platform": system, "platform_machine": machine, "extra": "onnx"}
    asked = [
        requirement.name
        for requirement in all_requirements()
        if requirement.name.startswith("onnxruntime")
        and requirement.marker
        and requirement.marker.evaluate(environment)
    ]
    assert asked == [expected]


def test_pins_leave_the_build_and_the_index_to_the_machine() -> None:
    text = (ROOT / "constraints.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    assert "index-url" not in text
    assert "://" not in text
    assert str(constraints()["torch"].specifier) == "==2.13.0"
    assert not re.search(r"==[\w.]+\+", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash_that_parses(name: str) -> None:
    script = ROOT / "scripts" / name
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()


def copied(name: str, folder: Path) -> Path:
    (folder / "scripts").mkdir()
    return Path(shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name))


def tools(folder: Path, *names: str, **scripts: str) -> str:
    """A PATH with only these system tools, and small shell scripts under the given names."""
    place = folder / "tools"
    place.mkdir()
    for name in names:
        (place / name).symlink_to(shutil.which(name) or name)
    for name, script in scripts.items():
        (place / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
        (place / name).chmod(0o755)
    return str(place)


def run(script: Path, *arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", str(script), *arguments],
        capture_output=True, text=True, check=False, env={"PATH": path},
    )  # fmt: skip


def test_preparing_without_python_says_what_is_missing(tmp_path: Path) -> None:
    done = run(copied("prepare", tmp_path), "onnx", path=tools(tmp_path, "dirname", "rm"))
    assert done.returncode != 0
    assert "convkit needs Python 3.10 or later, and none was found." in done.stderr
    assert "scripts/prepare failed while looking for Python" in done.stderr


def test_preparing_again_installs_nothing_until_the_pins_change(tmp_path: Path) -> None:
    script = copied("prepare", tmp_path)
    (tmp_path / "pyproject.toml").write_text("a")
    (tmp_path / "constraints.txt").write_text("b")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    log = tmp_path / "log"
    path = tools(tmp_path, "dirname", "rm", "cat", "sha256sum", "cut")
    python = tmp_path / ".venv/bin/python"
    python.write_text(
        f'#!{shutil.which("bash")}\n[[ "$*" == *install* ]] && echo "$*" >>{log}; true'
    )
    python.chmod(0o755)
    for _ in range(2):
        assert run(script, "onnx", path=path).returncode == 0
    assert log.read_text().count("install") == 1
    (tmp_path / "constraints.txt").write_text("c")
    assert "==> installing convkit-ml[onnx]" in run(script, "onnx", path=path).stdout
    assert log.read_text().count("install") == 2


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    """scripts/check on a folder where ruff and mypy are content."""
    for name in ("convkit", "tests"):
        (folder / name).mkdir(exist_ok=True)
    path = tools(
        folder, "dirname", "find", "grep", "xargs", "wc", "awk", ruff="exit 0", mypy="exit 0"
    )
    return run(copied("check", folder), path=path)


def test_a_clean_tree_passes_the_check(tmp_path: Path) -> None:
    (tmp_path / "convkit").mkdir()
    (tmp_path / "convkit/graph.py").write_text("x = 1\n" * 400)
    done = checked(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["utils.py", "common/__init__.py", "managers.py"])
def test_names_that_say_nothing_fail_the_check(tmp_path: Path, name: str) -> None:
    (tmp_path / "convkit" / name).parent.mkdir(parents=True)
    (tmp_path / "convkit" / name).touch()
    done = checked(tmp_path)
    assert done.returncode == 1
    assert "scripts/check: names failed" in done.stderr
    assert name.split("/")[0] in done.stdout


def test_long_files_fail_the_check(tmp_path: Path) -> None:
    (tmp_path / "convkit").mkdir()
    (tmp_path / "convkit/graph.py").write_text("x = 1\n" * 401)
    done = checked(tmp_path)
    assert done.returncode == 1
    assert "401 convkit/graph.py" in done.stdout
