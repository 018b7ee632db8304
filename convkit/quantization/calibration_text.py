"""A text that a language model is calibrated on: pieces of it as the graph takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit import samples
from convkit.errors import SamplesError
from convkit.onnx_language_graph import LanguageGraph
from convkit.quantization.calibration_data import CalibrationData
from convkit.step import Feeds

if TYPE_CHECKING:
    from convkit.vocabulary.codec import Codec

PIECE_TOKENS = 512
MOST_PIECES = 20
"""Tokens of a piece, and pieces of a text, that are read. With a fifth held out, 8,192 tokens are
calibrated on, five for each input of the widest product of a model of 135M.

Source: Frantar et al., GPTQ, 2023, section 4 takes 128 pieces of 2,048 for models of 175,000M.
"""


class TextPieces(CalibrationData):
    """Pieces of one length, each of which begins as a text does.

    Args:
        path: a text in UTF-8.
        graph: what the language model takes.
        codec: between text and its token ids.

    Raises:
        SamplesError: the text cannot be read, or is shorter than a piece.
    """

    def __init__(self, path: Path, graph: LanguageGraph, codec: Codec) -> None:
        batch, length = graph.ids.shape
        if not isinstance(length, int):
            length = min(PIECE_TOKENS, codec.settings.context_length or PIECE_TOKENS)
        self.path = path
        self.inputs = graph.inputs
        self.is_random = False
        self.fixed_rows = batch if isinstance(batch, int) else None
        self._graph = graph
        self._pieces = _pieces(path, codec, length)[:MOST_PIECES]
        self._chosen = np.arange(len(self._pieces))

    @property
    def labels(self) -> None:
        """None: nobody says what is right."""
        return

    def dtypes(self, name: str) -> set[str]:
        """The type that the graph takes."""
        return {spec.dtype for spec in self.inputs if spec.name == name}

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids, hexadecimal."""
        return hashlib.sha256(self._pieces[self._chosen].astype("<i8").tobytes()).hexdigest()

    def largest(self) -> CalibrationData:
        """One of them; all have one length."""
        return self.head(1)

    def batches(self, rows: int = 1) -> Iterator[Feeds]:
        """Ids as the graph takes them: with mask, positions and an empty cache."""
        ids_spec, rows = self._graph.ids, self.fixed_rows or rows
        for begin in range(0, self.count, rows):
            ids = self._pieces[self._chosen[begin : begin + rows]]
            if self.fixed_rows and len(ids) < rows:
                ids = ids[np.arange(rows) % len(ids)]
            yield self._graph.completed({ids_spec.name: ids.astype(ids_spec.dtype)})


def _pieces(path: Path, codec: Codec, length: int) -> np.ndarray[Any, Any]:
    """Token ids (pieces, length), as many whole pieces as there are."""
    ids = codec.encode(samples.read_text(path))
    beginning: Sequence[int] = codec.beginning
    own = length - len(beginning)
    count = len(ids) // own if own > 0 else 0
    if not count:
        raise SamplesError(
            f"{path} is too short to calibrate on: it has {len(ids)} tokens.",
            why=f"A piece has {length}; {MOST_PIECES} are read where there are as many.",
            hint="Give a longer text, of the kind that the model will be used on.",
        )
    rows = np.asarray(ids[: count * own], np.int64).reshape(count, own)
    first = np.broadcast_to(np.asarray(beginning, np.int64), (count, len(beginning)))
    return np.concatenate([first, rows], axis=1)
