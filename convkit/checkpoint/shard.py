"""One weights file of a folder: safetensors, or a pickle that holds weights only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from convkit.checkpoint.pickled import open_pickled
from convkit.safetensors_file import SafetensorsReader, StoredTensor


@dataclass(frozen=True)
class Shard:
    """The opened tensors of one weights file.

    Attributes:
        tensors: every tensor once, in file order.
        aliases: a further name of a tensor that several names share -> the name it is kept under.
    """

    tensors: tuple[StoredTensor, ...]
    aliases: Mapping[str, str]


@contextmanager
def open_shard(path: Path, *, trust: bool = False) -> Iterator[Shard]:
    """The tensors of one weights file, open while in the block.

    Raises:
        ModelError: the file cannot be read.
        UnsafeError: it is a pickle that holds more than weights, without trust; nothing of it was
            executed.
    """
    with ExitStack() as opened:
        if path.suffix == ".safetensors":
            reader = opened.enter_context(SafetensorsReader(path))
            yield Shard(reader.tensors, _aliases(reader))
        else:
            yield Shard(*open_pickled(path, opened, trust=trust))


def _aliases(reader: SafetensorsReader) -> dict[str, str]:
    """Shared tensors are written once; the metadata say under which name.

    Source: `safetensors.torch.save_model`.
    """
    names = {tensor.name for tensor in reader.tensors}
    return {
        alias: kept
        for alias, kept in reader.metadata.items()
        if kept in names and alias not in names
    }
