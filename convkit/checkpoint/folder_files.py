"""What a Hugging Face folder holds: its configuration, and which files have its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from convkit.errors import ModelError, UnsafeError
from convkit.git_lfs import refuse_pointer

WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order transformers looks for them.

Source: `transformers.utils` (`SAFE_WEIGHTS_NAME` and on).
"""

_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel)$")


@dataclass(frozen=True)
class WeightFiles:
    """The files with a folder's weights.

    Attributes:
        folder: the folder.
        shards: the files, by name.
        index: the index beside them; None for a single file.
        places: what the index says: tensor name -> name of its shard.
    """

    folder: Path
    shards: tuple[Path, ...]
    index: Path | None = None
    places: Mapping[str, str] = field(default_factory=dict)

    def byte_count(self) -> int:
        """Bytes of all shards."""
        return sum(shard.stat().st_size for shard in self.shards)


def read_config(path: Path) -> dict[str, Any]:
    """The folder's `config.json`.

    Raises:
        ModelError: it is missing, no JSON object, or names neither architecture nor model type.
    """
    file = path / "config.json"
    if not file.is_file():
        raise ModelError(
            f"{path} has weights but no config.json, so its network is unknown.",
            hint="Copy config.json from where the weights come from, or name the network:  "
            "convkit convert package.module:factory --weights FILE",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as cause:
        refuse_pointer(file)
        raise ModelError(
            f"{file} is not valid JSON.",
            why=f"It has {file.stat().st_size} bytes; {cause}",
            hint="Copy or download it again.",
        ) from cause
    if not isinstance(config, dict) or not (
        config.get("architectures") or config.get("model_type")
    ):
        keys = ", ".join(list(config)[:8]) if isinstance(config, dict) else type(config).__name__
        raise ModelError(
            f"{file} names neither 'architectures' nor 'model_type', so its network is unknown.",
            why=f"It holds: {keys or 'nothing'}"
            if isinstance(config, dict)
            else f"It is a {keys}.",
            hint="Copy config.json from where the weights come from.",
        )
    return config


def architecture(config: Mapping[str, Any]) -> str:
    """The class of the network that a configuration names; empty where it names none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def continues_texts(architecture: str) -> bool:
    """Whether a class of transformers, by its name, gives logits of the next token."""
    return bool(_CAUSAL.search(architecture))


def find_weight_files(path: Path) -> WeightFiles:
    """The folder's weight files, every shard of them; their presence and names are checked.

    Raises:
        ModelError: there are none, the index is broken, or a shard is missing.
        UnsafeError: the index points outside the folder.
    """
    name = next((name for name in WEIGHT_NAMES if (path / name).is_file()), None)
    if name is None:
        names = ", ".join(sorted(p.name for p in path.iterdir())[:8])
        raise ModelError(
            f"{path} has no weights: neither model.safetensors nor pytorch_model.bin.",
            why=f"It holds: {names}",
            hint="Download the folder again, weights included.",
        )
    if not name.endswith(".index.json"):
        return WeightFiles(path, (path / name,))
    places = _read_index(path / name)
    shards = sorted(set(places.values()))
    missing = [shard for shard in shards if not (path / shard).is_file()]
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} of {len(shards)} weight shards: {missing[0]} is missing.",
            why=[f"also missing: {shard}" for shard in missing[1:5]],
            hint="Download the folder again.",
            missing=missing,
        )
    return WeightFiles(path, tuple(path / shard for shard in shards), path / name, places)


def _read_index(index: Path) -> dict[str, str]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        places = {str(name): str(shard) for name, shard in table.items()}
        if not places:
            raise ValueError("it is empty")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as cause:
        raise ModelError(
            f"{index} is no index of weight shards.", why=f"{type(cause).__name__}: {cause}"
        ) from cause
    for shard in places.values():
        pure = PureWindowsPath(shard)  # knows drives, and slashes of either kind
        if pure.anchor or ".." in pure.parts:
            raise UnsafeError(
                f"{index} points outside its folder: {shard}", why="Nothing was read.", found=shard
            )
    return places
