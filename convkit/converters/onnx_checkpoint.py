"""The checkpoint behind an ONNX graph: its initializers as the tensors that they were made from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convkit.artifact import Artifact
from convkit.checkpoint.folder import Checkpoint
from convkit.checkpoint.ranges import RangeReader
from convkit.checkpoint.rows import Array, Computed, Rows, Stacked
from convkit.converters.decoder_graph.packed import Form, form_of, restored
from convkit.converters.decoder_graph.weights import CHANGED, DTYPES
from convkit.errors import ModelError, UnsupportedError
from convkit.onnx_folder import graph_file, text_folder
from convkit.onnx_metadata import CONFIG_KEY, WEIGHTS_KEY, read_metadata
from convkit.onnx_structure import read_structure
from convkit.safetensors_file import ITEM_BYTES

if TYPE_CHECKING:
    import onnx

_ONE_OF_STACK = re.compile(r"^matrix (\d+)$")


@contextmanager
def open_graph(source: Artifact) -> Iterator[Checkpoint]:
    """The tensors of a graph, read when they are asked for.

    Raises:
        UnsupportedError: the graph does not say which tensors its weights are.
        ModelError: what it says does not fit its weights.
    """
    file = graph_file(source.path)
    metadata = read_metadata(file)
    if CONFIG_KEY not in metadata or WEIGHTS_KEY not in metadata:
        raise UnsupportedError(
            f"{source.path} does not say which Hugging Face model it was made from.",
            why="GGUF holds checkpoints of language models; a graph alone does not tell which "
            "tensor is which. Graphs that convkit built say it.",
            hint="Convert the Hugging Face folder instead:  convkit convert FOLDER --to gguf",
        )
    try:
        config: dict[str, Any] = json.loads(metadata[CONFIG_KEY])
        places: dict[str, list[str]] = json.loads(metadata[WEIGHTS_KEY])
    except ValueError as cause:
        raise ModelError(f"{file}: what it says of its weights is damaged.") from cause
    with ExitStack() as opened:
        initializers = _Initializers(read_structure(file), file.parent, opened)
        tensors = dict(_tensors(places, initializers))
        if not any(name.endswith("lm_head.weight") for name in tensors):
            config["tie_word_embeddings"] = True  # equal matrices are kept once
        yield Checkpoint(text_folder(source.path), config, tensors)


class _Initializers:
    """The initializers of a graph as rows, or as arrays, read by position."""

    def __init__(self, proto: onnx.ModelProto, folder: Path, opened: ExitStack) -> None:
        self._tensors: dict[str, onnx.TensorProto] = {
            tensor.name: tensor for tensor in proto.graph.initializer
        }
        self._folder = folder
        self._opened = opened
        self._readers: dict[str, RangeReader] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def rows(self, name: str) -> Rows:
        """A float initializer."""
        tensor = self._tensor(name)
        dtype = DTYPES.get(tensor.data_type)
        if dtype is None:
            raise ModelError(f"The initializer '{name}' holds no floats.")
        return _InitializerRows(self, name, tuple(tensor.dims), dtype)

    def bytes_of(self, name: str, begin: int, end: int) -> Array:
        """Some of the bytes of an initializer: uint8."""
        tensor = self._tensor(name)
        if tensor.data_location != tensor.EXTERNAL:
            return np.frombuffer(tensor.raw_data, np.uint8)[begin:end]
        entries = {entry.key: entry.value for entry in tensor.external_data}
        at = int(entries.get("offset", 0))
        raw = self._reader(entries["location"]).read(at + begin, end - begin)
        return np.frombuffer(raw, np.uint8)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its sizes."""
        return tuple(self._tensor(name).dims)

    def _tensor(self, name: str) -> onnx.TensorProto:
        if name not in self._tensors:
            raise ModelError(
                f"The graph has no initializer '{name}', though it says so.",
                hint="Was it changed by another tool? Convert the Hugging Face folder again.",
            )
        return self._tensors[name]

    def _reader(self, location: str) -> RangeReader:
        if location not in self._readers:
            reader = RangeReader(self._folder / location)
            self._readers[location] = self._opened.enter_context(reader)
        return self._readers[location]


class _InitializerRows(Rows):
    """A float initializer."""

    def __init__(
        self, initializers: _Initializers, name: str, shape: tuple[int, ...], dtype: str
    ) -> None:
        self._initializers, self._name = initializers, name
        self.shape, self.dtype = shape or (1,), dtype
        self._row_bytes = self.row_length * ITEM_BYTES[dtype]

    def stored(self, begin: int, end: int) -> Array:
        """Rows as stored."""
        begin_byte, end_byte = begin * self._row_bytes, end * self._row_bytes
        raw = self._initializers.bytes_of(self._name, begin_byte, end_byte)
        rows: Array = raw.reshape(end - begin, self._row_bytes)
        return rows


class _PackedRows(Computed):
    """A block-quantized matrix, unpacked to the numbers it stands for."""

    def __init__(self, initializers: _Initializers, name: str, form: Form) -> None:
        self._initializers, self._name, self._form = initializers, name, form
        count, blocks, self._block_bytes = initializers.shape(name)
        self._blocks = blocks
        self.shape = (count, blocks * form.block)

    def read(self, begin: int, end: int) -> Array:
        """Rows in float32."""
        levels = self._part("", np.dtype(np.uint8), self._blocks * self._block_bytes, begin, end)
        scales = self._part(".scales", np.dtype(np.float32), self._blocks, begin, end)
        offsets = None
        if self._form.has_offsets:
            offsets = self._part(".offsets", np.dtype(np.float32), self._blocks, begin, end)
        shaped = levels.reshape(end - begin, self._blocks, self._block_bytes)
        return restored(shaped, scales, offsets, self._form).values()

    def _part(self, suffix: str, dtype: np.dtype[Any], width: int, begin: int, end: int) -> Array:
        row = width * dtype.itemsize
        raw = self._initializers.bytes_of(self._name + suffix, begin * row, end * row)
        part: Array = raw.view(dtype).reshape(end - begin, width)
        return part


def _tensors(
    places: Mapping[str, list[str]], initializers: _Initializers
) -> Iterator[tuple[str, Rows]]:
    """Name in the checkpoint -> tensor."""
    stacks: dict[str, dict[int, Rows]] = {}
    for name, (source, how) in places.items():
        told = [part for part in how.split(", ") if part and not part.startswith(CHANGED)]
        number = next((int(m[1]) for part in told if (m := _ONE_OF_STACK.match(part))), None)
        form = next((found for part in told if (found := form_of(part))), None)
        if form is not None and name.endswith((".scales", ".offsets")):
            continue  # they come with their levels
        rows = _PackedRows(initializers, name, form) if form else initializers.rows(name)
        if number is None:
            yield source, rows
        else:
            stacks.setdefault(source, {})[number] = rows
    for source, parts in stacks.items():
        yield source, Stacked([parts[i] for i in sorted(parts)], is_new_axis=True)
