"""A model that is quantized and judged: its files in a folder, and how well it answers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

SCRIPTS = Path(__file__).resolve().parent.parent
ROOT = SCRIPTS.parent
CACHE = Path(os.environ.get("CONVKIT_BENCH_CACHE", ROOT / ".venvs/quantization-models")).resolve()
"""What was downloaded, trained and exported, so that it is made once."""

PICTURES_PYTHON = ROOT / ".venvs/material/bin/python"
PICTURES_PACKAGES = (
    "pillow==13.0.0",
    "scikit-image==0.26.0",
    "foolbox==3.3.4",
    "codespell==2.4.3",
    "scipy==1.17.1",
)
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(SCRIPTS),  # where factories and metrics of this folder are found
}

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]


@dataclass(frozen=True)
class Case:
    """A model in float, data to calibrate and to judge with, and what its answers are worth.

    Its folder has `model.onnx`; `calibration.npz`, inputs without labels; `control.npz`, inputs of
    which `--max-drop` judges, with labels where there are any; `evaluation.npz`, inputs that
    nothing else saw; and `answers.npz`, what the score needs to know of those.

    Attributes:
        name: on the command line.
        words: what the score is, for the table.
        build: writes these files into a folder.
        score: (outputs of all evaluation inputs, answers) -> 0 to 1.
        metric: the same as `module:function`, for `--metric`; None: as labels suggest.
        is_convolutional: whether most of its time goes into convolutions.
        is_transformer: whether it is one; a peer wants to be told.
        classifies: whether the last dimension of its first output is classes.
        batches: whose latency is measured.
        rows: evaluation inputs that are computed at once.
        compared: of the evaluation inputs, those whose noise and agreement count; None: all.
        options: more of the command line, for int8.
    """

    name: str
    words: str
    build: Callable[[Path], None]
    score: Callable[[Outputs, Outputs], float]
    metric: str | None = None
    is_convolutional: bool = False
    is_transformer: bool = False
    classifies: bool = False
    batches: tuple[int, ...] = (1, 32)
    rows: int = 32
    compared: int | None = None
    options: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return CACHE / self.name

    def prepare(self) -> Path:
        """The folder, after its files were made."""
        done = self.folder / "done"
        if not done.exists():
            print(f"==> preparing {self.name} in {self.folder}", flush=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.build(self.folder)
            done.touch()
        return self.folder


def convkit(*arguments: str | Path) -> str:
    """Runs `convkit convert` quietly, and gives what it printed.

    Raises:
        subprocess.CalledProcessError: it failed; what it said was printed.
    """
    command = [ROOT / ".venv/bin/convkit", "convert", *arguments, "--force"]
    done = subprocess.run(
        [str(part) for part in command], env=ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], flush=True)
        done.check_returncode()
    return done.stdout


def package_file(package: str, pattern: str) -> Path:
    """The first file of an installed package that fits the pattern.

    Raises:
        FileNotFoundError: the package or the file is missing.
    """
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        for found in sorted(Path(place).glob(pattern)):
            return found
    raise FileNotFoundError(f"{package} has no {pattern}; run `bash scripts/test` once")


def copy_model(source: Path, folder: Path) -> None:
    """The model of a package, under the name all have."""
    shutil.copyfile(source, folder / "model.onnx")


def share_right(scores: Array, labels: Array) -> float:
    """Share of rows (rows, classes) whose largest score is at the label."""
    return float((scores.argmax(-1) == labels).mean())
