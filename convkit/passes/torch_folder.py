"""The Hugging Face folders that passes lower, file by file."""

from __future__ import annotations

from pathlib import Path

from convkit.checkpoint.folder_files import WeightFiles as Checkpoint
from convkit.checkpoint.folder_files import find_weight_files
from convkit.checkpoint.shard import Shard, open_shard
from convkit.errors import UnsupportedError

__all__ = ["Checkpoint", "Shard", "find_checkpoint", "open_shard"]


def find_checkpoint(folder: Path) -> Checkpoint:
    """The weights of a Hugging Face folder: safetensors where there are any, else `.bin`.

    Raises:
        UnsupportedError: it is no Hugging Face folder, or its weights lie in folders below it.
        ModelError: the index is damaged or names a file that is missing; or there are no weights.
        UnsafeError: the index names a file outside the folder.
    """
    if not (folder / "config.json").is_file():
        raise UnsupportedError(
            f"{folder} is not a Hugging Face folder (no config.json in it).",
            why="PyTorch weights are lowered in folders that hold config.json and weights.",
            hint="Lower it on the exported graph instead:  convkit convert MODEL --to onnx --fp16",
        )
    found = find_weight_files(folder)
    below = next((shard for shard in found.shards if shard.parent != folder), None)
    if below is not None:
        raise UnsupportedError(
            f"{found.index} names a file in a folder of its own: {below}.",
            hint="Move the weights beside config.json, and take the folder out of the index.",
        )
    return found
