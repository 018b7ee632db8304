"""Runs the text files in `commands/`: what a user types, sees, and gets as exit code.

A block is `$ convkit ...`, the lines it prints on either stream, and `[exit N]` unless N is 0. A
line `...` stands for any lines; `...` inside a line for any text. Files are made by lines of
`$ write NAME CONTENT` (Python string escapes), models by `$ make NAME` (see `_MAKERS`).
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from convkit import cli
from tests.language_folders import llama_folder

_FOLDER = Path(__file__).parent / "commands"


class Step(NamedTuple):
    """One command with what it must print and return."""

    line: int
    command: str
    expected: list[str]
    code: int


def steps_in(path: Path) -> Iterator[Step]:
    """The commands of all console blocks of a file."""
    lines = path.read_text().splitlines()
    inside, found = False, []
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith("$ "):
            found.append(Step(number, line[2:], [], 0))
        elif inside and (code := re.fullmatch(r"\[exit (\d+)\]", line)):
            found[-1] = found[-1]._replace(code=int(code[1]))
        elif inside:
            found[-1].expected.append(line)
    return iter(found)


def make_relu(name: str) -> None:
    """An ONNX file with one Relu."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    text = '<ir_version: 10, opset_import: ["":20]> g (float[batch,4] x) => (float[batch,4] y) '
    onnx.save(onnx.parser.parse_model(text + "{ y = Relu(x) }"), name)


def make_tanh(name: str) -> None:
    """An ONNX file with the same signature that computes something else."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    text = '<ir_version: 10, opset_import: ["":20]> g (float[batch,4] x) => (float[batch,4] y) '
    onnx.save(onnx.parser.parse_model(text + "{ y = Tanh(x) }"), name)


def make_language_model(name: str) -> None:
    """A Hugging Face folder with a Llama of two layers."""
    llama_folder(Path(name))


def make_folder(name: str) -> None:
    """A folder with a file that is no model."""
    Path(name).mkdir()
    Path(name, "holiday.jpg").write_bytes(b"not to be lost")


def make_snapshot(name: str) -> None:
    """A folder as caches of hubs have them, whose links lost what they led to."""
    Path(name).mkdir()
    for file in ("config.json", "model.safetensors"):
        Path(name, file).symlink_to(f"../blobs/{file}")


def make_adapter(name: str) -> None:
    """A folder that says which model its adapter is for."""
    Path(name).mkdir()
    Path(name, "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')


def make_ggufs(name: str) -> None:
    """A folder with GGUF files, as repositories have them."""
    Path(name).mkdir()
    for scheme in ("Q4_K_M", "Q8_0"):
        Path(name, f"model.{scheme}.gguf").write_bytes(b"GGUF")


def make_link(name: str) -> None:
    """A link that leads nowhere."""
    Path(name).symlink_to("nowhere.onnx")


def make_samples(name: str, shape: tuple[int, ...]) -> None:
    """A sample of zeros for an input `x`."""
    np.savez(name, x=np.zeros(shape, np.float32))


_MAKERS: dict[str, Callable[[str], None]] = {
    "relu.onnx": make_relu,
    "tanh.onnx": make_tanh,
    "language-model/": make_language_model,
    "photos/": make_folder,
    "snapshot/": make_snapshot,
    "adapter/": make_adapter,
    "ggufs/": make_ggufs,
    "dangling.onnx": make_link,
    "narrow.npz": lambda name: make_samples(name, (2, 3)),
    "hollow.npz": lambda name: make_samples(name, (0, 4)),
}


def pattern_of(lines: list[str]) -> str:
    """A regular expression for expected lines with their wildcards."""
    parts = []
    for line in lines:
        if line.strip() == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            parts.append(re.escape(line.rstrip()).replace(r"\.\.\.", "[^\n]*") + "[ ]*\n")
    return "".join(parts)


@pytest.mark.parametrize("path", sorted(_FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_commands_print_and_return_what_the_file_says(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for step in steps_in(path):
        words = shlex.split(step.command)
        if words[0] == "write":
            Path(words[1]).write_bytes(words[2].encode().decode("unicode_escape").encode("latin-1"))
            continue
        if words[0] == "make":
            _MAKERS[words[1]](words[1])
            continue
        monkeypatch.setattr(sys, "argv", words)
        code = cli.outcome(lambda: cli.cli.main(prog_name="convkit", standalone_mode=False))
        captured = capfd.readouterr()
        printed = captured.out + captured.err
        where = f"{path.name}:{step.line}: $ {step.command}\n{printed}"
        assert code == step.code, where
        wanted = pattern_of(step.expected)
        assert re.fullmatch(wanted, "".join(f"{li.rstrip()}\n" for li in printed.splitlines())), (
            where
        )
