"""RapidOCR's three networks: where words are, whether they stand on their head, what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quantization_models.case import Case, Outputs, copy_model, package_file, share_right
from quantization_models.photos import draw

Array = np.ndarray[Any, Any]

_ABOVE = 0.3  # Source: rapidocr-onnxruntime 1.4, config.yaml: Det.thresh
_SPLIT = {"words": (64, 200), "turned": (64, 200), "pages": (16, 32)}


def build(part: str, drawn: str, truth: str) -> Callable[[Path], None]:
    """What writes the files of one of the networks."""

    def write(folder: Path) -> None:
        copy_model(package_file("rapidocr_onnxruntime", f"models/*_{part}_infer.onnx"), folder)
        draw("words", folder)
        with np.load(folder / "words.npz") as known:
            inputs, right = known[drawn], known[truth]
        (folder / "words.npz").unlink()
        if right.dtype.kind == "U":
            right = _coded(right, folder / "model.onnx")
        first, second, third = np.split(np.arange(len(inputs)), np.cumsum(_SPLIT[drawn]))
        np.savez(folder / "calibration", x=inputs[first])
        np.savez(folder / "control", x=inputs[second], labels=right[second])
        np.savez(folder / "evaluation", x=inputs[third])
        np.savez(folder / "answers", labels=right[third])

    return write


def words_read(outputs: Outputs, labels: Array) -> float:
    """Share of words of which every letter is right: repeats and blanks fall away.

    Source: Graves and others, Connectionist temporal classification, 2006: the best path.
    """
    best = next(iter(outputs.values())).argmax(-1)  # (words, steps); 0 is the blank
    right = 0
    for path, label in zip(best, labels, strict=True):
        is_letter = (path > 0) & (np.diff(path, prepend=0) != 0)
        right += list(path[is_letter]) == [code for code in label if code > 0]
    return right / len(best)


def overlap(outputs: Outputs, labels: Array) -> float:
    """Of pixels that are found or are words, the share that are both."""
    found = next(iter(outputs.values()))[:, 0] > _ABOVE
    return float((found & (labels > 0)).sum() / (found | (labels > 0)).sum())


def _score(function: Callable[[Outputs, Array], float]) -> Callable[[Outputs, Outputs], float]:
    return lambda outputs, answers: function(outputs, answers["labels"])


def _turned_right(outputs: Outputs, labels: Array) -> float:
    return share_right(next(iter(outputs.values())), labels)


REC = Case(
    name="rapidocr-rec",
    words="drawn words read without a mistake",
    build=build("rec", "words", "texts"),
    score=_score(words_read),
    metric="quantization_models.text_recognition:words_read",
    is_convolutional=True,
    classifies=True,
)
CLS = Case(
    name="rapidocr-cls",
    words="words told to stand upright or on their head",
    build=build("cls", "turned", "upside_down"),
    score=_score(_turned_right),
    classifies=True,
    is_convolutional=True,
)
DET = Case(
    name="rapidocr-det",
    words="pixels of words found, intersection over union",
    build=build("det", "pages", "boxes"),
    score=_score(overlap),
    metric="quantization_models.text_recognition:overlap",
    is_convolutional=True,
    batches=(1, 8),
    rows=8,
)


def _coded(texts: Array, model: Path) -> Array:
    """Places in the model's own list of letters, which begins after the blank; 0 is the end."""
    import onnx

    known = {each.key: each.value for each in onnx.load(model).metadata_props}
    letters = {letter: i for i, letter in enumerate(known["character"].splitlines(), 1)}
    codes = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text in zip(codes, texts, strict=True):
        row[: len(text)] = [letters[letter] for letter in text]
    return codes
