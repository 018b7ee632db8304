"""What calibration found, kept in a file for the next run on the same model and data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convkit.errors import ResourceError
from convkit.onnx_structure import array_of
from convkit.quantization.observing import Batches
from convkit.quantization.value_range import Range

if TYPE_CHECKING:
    import onnx_ir as ir

_VERSION = 1


@dataclass(frozen=True)
class StatisticsFile:
    """A file of ranges that says what they are of.

    Attributes:
        path: of the file.
        key: what the ranges depend on: model, data and method.
        note: takes sentences for the report.
    """

    path: Path
    key: Mapping[str, str | int]
    note: Callable[[str], None] | None

    @classmethod
    def of(
        cls,
        path: Path,
        model: ir.Model,
        folder: Path,
        data: Batches,
        method: str,
        note: Callable[[str], None] | None,
    ) -> StatisticsFile:
        """The file for this model, data and method.

        Raises:
            ResourceError: it cannot be written, and there is no `note` to say so.
        """
        key: dict[str, str | int] = {
            "convkit_statistics": _VERSION,
            "model": _digest(model, folder),
            "data": data.digest,
            "method": method,
        }
        kept = cls(path, key, note)
        kept._check_writable()
        return kept

    def read(self, values: Collection[str]) -> dict[str, Range] | None:
        """The ranges of these values; None where the file is of something else, or is none."""
        try:
            document = json.loads(self.path.read_text())
            if any(document.get(name) != value for name, value in self.key.items()):
                return None
            pairs = {name: document["ranges"][name] for name in values}
            found = {name: Range(float(low), float(high)) for name, (low, high) in pairs.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        self._tell(f"Ranges were read from {self.path}: model, data and method are the same.")
        return found

    def write(self, ranges: Mapping[str, Range]) -> None:
        """Keeps the ranges; a file that cannot be written is told and ends nothing."""
        document = {
            **self.key,
            "ranges": {name: [each.low, each.high] for name, each in sorted(ranges.items())},
        }
        beside = None
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=self.path.parent, prefix=f".{self.path.name}.", delete=False
            ) as stream:
                beside = Path(stream.name)
                json.dump(document, stream)
            os.replace(beside, self.path)
        except OSError as cause:
            if beside is not None:
                with contextlib.suppress(OSError):
                    beside.unlink()
            self._tell(f"The statistics were not kept: {self.path}: {cause.strerror}.")

    def _check_writable(self) -> None:
        """Says before the work whether the file could be written, as far as can be known."""
        folder = self.path.parent
        if self.path.is_dir():
            why = "it is a folder"
        elif not folder.is_dir():
            why = f"there is no folder {folder}"
        elif not os.access(folder, os.W_OK):
            why = f"the folder {folder} is not writable"
        else:
            return
        if self.note is None:
            raise ResourceError(
                f"The statistics cache {self.path} cannot be written: {why}.",
                hint="Name a file in a folder of your own, or leave the cache out.",
            )
        self.note(f"The statistics will not be kept: {self.path}: {why}.")

    def _tell(self, text: str) -> None:
        if self.note is not None:
            self.note(text)


def _digest(model: ir.Model, folder: Path) -> str:
    """SHA-256 of a model's nodes and weights, wherever these lie."""
    digest = hashlib.sha256()
    for node in model.graph.all_nodes():
        inputs = [None if value is None else value.name for value in node.inputs]
        outputs = [value.name for value in node.outputs]
        digest.update(repr((node.domain, node.op_type, inputs, outputs)).encode())
        digest.update(repr(sorted((k, str(a)) for k, a in node.attributes.items())).encode())
    for name, value in sorted(model.graph.initializers.items()):
        digest.update(name.encode())
        if value.const_value is not None:
            array = array_of(value.const_value, folder)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
