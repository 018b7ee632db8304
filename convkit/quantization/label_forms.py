"""How labels go with an output: classes by number, two classes by a threshold, or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convkit.errors import SamplesError

Array = np.ndarray[Any, Any]

IGNORED = -100
"""A label that says nothing, as of padding. Source: PyTorch, CrossEntropyLoss `ignore_index`."""

_HALF = 0.5


@dataclass(frozen=True)
class Form:
    """An output, and how it says which class a row belongs to.

    Attributes:
        output: its name.
        rank: dimensions of the labels; the output has one more where it scores classes.
        threshold: above which a lone number says class 1; None: the largest of the scores wins.
        is_regression: whether labels are numbers to come near to.
        has_class_scores: whether labels score classes as the output does (one-hot).
    """

    output: str
    rank: int
    threshold: float | None = None
    is_regression: bool = False
    has_class_scores: bool = False

    def winners(self, scores: Array) -> Array:
        """The class of each row; -1 where a score is no number."""
        if self.threshold is None and scores.ndim <= self.rank:
            return scores  # classes already
        if self.threshold is not None:
            flat = scores.reshape(scores.shape[: self.rank])
            return np.where(np.isnan(flat), -1, flat > self.threshold)
        found = scores.argmax(-1)
        return np.where(np.isnan(scores).any(axis=-1), -1, found)

    def targets(self, labels: Array) -> Array:
        """The class of each row, as labels say it."""
        return labels.argmax(-1) if self.has_class_scores else labels

    def hits(self, scores: Array, targets: Array, top: int) -> Array:
        """Whether the right class is the winner, or among the `top` best."""
        if top == 1 or self.threshold is not None or scores.ndim <= self.rank:
            return np.asarray(self.winners(scores) == targets)
        safe = np.where(self.is_counted(targets), targets, 0).astype(np.int64)
        own = np.take_along_axis(scores, safe[..., None], -1)  # (..., 1)
        is_better = ~(scores <= own)  # so that a NaN is better than all
        return np.asarray(is_better.sum(-1) < top)

    def is_counted(self, targets: Array) -> Array:
        """Whether a label says something."""
        return np.asarray(targets != IGNORED)


def form_of(name: str | None, outputs: Mapping[str, Array], labels: Array, origin: str) -> Form:
    """The output that labels speak of.

    Args:
        name: of the metric; None: the labels' dtype decides.
        outputs: for all samples, rows first.
        labels: for all samples.
        origin: where they come from, for errors.

    Raises:
        SamplesError: they fit no output.
    """
    is_whole = labels.dtype.kind in "iubUS" or bool(np.all(np.mod(labels, 1) == 0))
    wants_numbers = name in ("mse", "mae") or (name is None and labels.dtype.kind == "f")
    if not wants_numbers:
        found = _classes(outputs, labels) if is_whole else None
        if found is not None:
            _check_classes(found, outputs[found.output], labels, origin)
            return found
    if wants_numbers or (name is None and labels.dtype.kind in "iub"):
        for output, array in outputs.items():
            if array.dtype.kind == "f" and array.size == labels.size and len(array) == len(labels):
                return Form(output, labels.ndim, is_regression=True)
    raise SamplesError(
        f"The labels in {origin} fit no output of the model.",
        why=[f"labels: {labels.dtype.name}[{', '.join(map(str, labels.shape))}]", *shown(outputs)],
        hint="Say what is right with a function of yours:  --metric package.module:function\n"
        "Compare with the source instead:  --metric agreement  or  --metric noise",
    )


def _classes(outputs: Mapping[str, Array], labels: Array) -> Form | None:
    for name, array in outputs.items():  # scores for each class
        if array.dtype.kind == "f" and array.shape[:-1] == labels.shape and array.shape[-1] > 1:
            return Form(name, labels.ndim)
    for name, array in outputs.items():  # classes themselves
        is_alike = array.dtype.kind == labels.dtype.kind or {
            array.dtype.kind,
            labels.dtype.kind,
        } <= set("iub")
        if is_alike and array.dtype.kind != "f" and array.shape == labels.shape:
            return Form(name, labels.ndim)
    for name, array in outputs.items():
        if array.dtype.kind != "f":
            continue
        if array.shape == labels.shape and labels.ndim > 1 and _is_one_hot(labels):
            return Form(name, labels.ndim - 1, has_class_scores=True)
        if array.shape in (labels.shape, (*labels.shape, 1)) and _is_binary(labels):
            is_probability = bool(np.nanmin(array) >= 0.0 and np.nanmax(array) <= 1.0)
            return Form(name, labels.ndim, threshold=_HALF if is_probability else 0.0)
    return None


def _is_one_hot(labels: Array) -> bool:
    return bool(np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(-1) == 1))


def _is_binary(labels: Array) -> bool:
    return bool(np.all((labels == 0) | (labels == 1)))


def _check_classes(form: Form, scores: Array, labels: Array, origin: str) -> None:
    if form.threshold is not None or form.has_class_scores or scores.ndim == labels.ndim:
        return
    classes = scores.shape[-1]
    wrong = np.argwhere(((labels < 0) & (labels != IGNORED)) | (labels >= classes))
    if len(wrong):
        raise SamplesError(
            f"The label of sample {wrong[0][0]} in {origin} is {labels[tuple(wrong[0])]}; "
            f"'{form.output}' has the classes 0 to {classes - 1}.",
            hint="Number the classes as the model does.",
        )


def shown(outputs: Mapping[str, Array]) -> list[str]:
    """Outputs with dtype and shape, a line each."""
    return [
        f"{name}: {array.dtype.name}[{', '.join(map(str, array.shape))}]"
        for name, array in outputs.items()
    ]
