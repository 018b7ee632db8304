"""A Hugging Face folder as named tensors read by rows, in whatever form its weights are kept.

Quantized weights are dequantized and a low-rank adapter is merged while rows are read; seen from
outside there are float tensors under the names and in the shapes that the plain model has.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convkit.checkpoint.adapter import HEAD, merge_adapter
from convkit.checkpoint.dequantized import dequantized
from convkit.checkpoint.folder_files import WeightFiles, find_weight_files, read_config
from convkit.checkpoint.quantization import Quantization, looks_quantized, quantization_of
from convkit.checkpoint.rows import Rows
from convkit.checkpoint.shard import open_shard
from convkit.checkpoint.stored import FLOAT_DTYPES, RecentArrays, Stored
from convkit.errors import ModelError, UnsupportedError
from convkit.safetensors_file import StoredTensor

HELD_BYTES = 32 << 20
"""Packed weights that have to be turned around, and factors of an adapter, held while in use."""


@dataclass
class Checkpoint:
    """The tensors of a folder. A context manager; `open_folder` makes it.

    Attributes:
        folder: where it lies.
        config: its `config.json`, as it is for the tensors: without `quantization_config`, changed
            where an adapter unties or resizes the embeddings.
        tensors: float tensors by name, each once, in the order of the files.
        other: integer and boolean tensors (tables of positions, masks), as they are stored.
        aliases: a further name of a tensor that the files hold once -> its name in `tensors`.
        quantization: how the weights are quantized, a sentence for a report; "" where they are not.
        notes: sentences for a report on what an adapter changed.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, Rows]
    other: Mapping[str, StoredTensor] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    quantization: str = ""
    notes: tuple[str, ...] = ()
    _opened: ExitStack = field(default_factory=ExitStack, repr=False)

    def close(self) -> None:
        """Closes the files; tensors cannot be read any more."""
        self._opened.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_folder(path: Path, *, adapter: Path | None = None, trust: bool = False) -> Checkpoint:
    """Opens the weights of a Hugging Face folder; tensors are read when they are asked for.

    Memory: a few rows at a time. A tensor that has to be turned around, because GPTQ and AWQ pack
    it the other way, is held whole in its packed form while it is read.

    Args:
        path: the folder.
        adapter: a folder with a PEFT low-rank adapter to be merged.
        trust: the user vouches for code in pickled weights.

    Raises:
        ModelError: the folder or the adapter is damaged, or they do not fit each other.
        UnsupportedError: the weights are quantized, or adapted, in a way that is not known.
        UnsafeError: an index points outside the folder; code in a pickle, without trust.
    """
    config = read_config(path)
    quantization = quantization_of(config, path)
    config.pop("quantization_config", None)
    files = find_weight_files(path)
    recent = RecentArrays(HELD_BYTES)
    with ExitStack() as opened:
        stored, aliases = _open_shards(files, opened, trust)
        tensors, other = _sorted_out(stored, quantization, config, recent)
        notes = []
        if adapter is not None:
            notes = merge_adapter(adapter, tensors, config, opened, recent, model=path, trust=trust)
        return Checkpoint(
            path,
            config,
            tensors,
            other,
            {alias: kept for alias, kept in aliases.items() if alias not in tensors},
            f"{quantization.words}; dequantized while it is read" if quantization else "",
            tuple(notes),
            opened.pop_all(),
        )


def _open_shards(
    files: WeightFiles, opened: ExitStack, trust: bool
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors of all shards, and further names of some."""
    stored: dict[str, StoredTensor] = {}
    aliases: dict[str, str] = {}
    for path in files.shards:
        shard = opened.enter_context(open_shard(path, trust=trust))
        here = path.relative_to(files.folder).as_posix()
        found = {tensor.name: tensor for tensor in shard.tensors}
        for name, place in files.places.items():
            if place == here and name not in found and name not in shard.aliases:
                raise ModelError(
                    f"{path} lacks the tensor '{name}' that {files.index} says is in it.",
                    hint="Download the folder again.",
                )
        stored |= found
        aliases |= shard.aliases
    return _under_own_names(stored, aliases)


def _under_own_names(
    stored: dict[str, StoredTensor], aliases: dict[str, str]
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Output embeddings that are tied are another name of the input embeddings, not the reverse."""
    own = next((alias for alias, kept in aliases.items() if kept == HEAD), None)
    if own is None:
        return stored, aliases
    renamed = {own if name == HEAD else name: tensor for name, tensor in stored.items()}
    others = {alias: own if kept == HEAD else kept for alias, kept in aliases.items()}
    del others[own]
    return renamed, {**others, HEAD: own}


def _sorted_out(
    stored: Mapping[str, StoredTensor],
    quantization: Quantization | None,
    config: Mapping[str, Any],
    recent: RecentArrays,
) -> tuple[dict[str, Rows], dict[str, StoredTensor]]:
    """Float tensors as rows, and the others as they are."""
    quantized = quantization.tensors(stored) if quantization else {}
    part_of = {part: tensor for tensor in quantized.values() for part in tensor.parts.values()}
    mark = None if quantization else looks_quantized(stored)
    if mark:
        raise ModelError(
            f"The weights are quantized ('{mark}'), but config.json has no quantization_config.",
            hint="Copy config.json from where the weights come from.",
        )
    tensors: dict[str, Rows] = {}
    other: dict[str, StoredTensor] = {}
    model_type = str(config.get("model_type"))
    for name, tensor in stored.items():
        whole = part_of.get(name)
        if whole and quantization:
            if whole.name not in tensors:
                tensors[whole.name] = dequantized(whole, stored, quantization, model_type, recent)
        elif tensor.dtype in FLOAT_DTYPES:
            if not (quantization and quantization.is_unused(name)):
                tensors[name] = Stored(tensor)
        elif tensor.dtype.startswith(("F8_", "C")):
            raise UnsupportedError(f"The tensor '{name}' is {tensor.dtype}, which is not read.")
        else:
            other[name] = tensor
    return tensors, other
