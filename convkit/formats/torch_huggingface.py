"""Hugging Face folders: `config.json` beside safetensors or weights-only pickles, or shards."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, Description, Opening
from convkit.errors import (
    MissingRequirementError,
    ModelError,
    UnsafeError,
    UnsupportedError,
    WeightsMismatchError,
)
from convkit.formats.torch_checkpoint import (
    describe_tensors,
    read_safetensors,
    require_file,
)
from convkit.formats.torch_lean_import import network_class, without_compiler
from convkit.formats.torch_pickle import (
    is_pickle,
    is_zip_pickle,
    read_pickled,
    tensors_in,
)
from convkit.formats.torch_unpickling import TensorHeader

if TYPE_CHECKING:
    import torch

_WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order transformers looks for them.

Source: `transformers.utils` (`SAFE_WEIGHTS_NAME` and on).
"""


def is_folder(path: Path) -> bool:
    """Whether a folder looks like one that `save_pretrained` wrote."""
    if not path.is_dir() or (path / "saved_model.pb").exists():
        return False
    return (path / "config.json").is_file() or any((path / n).is_file() for n in _WEIGHT_NAMES)


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
    except (ValueError, OSError) as cause:
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


def weight_files(path: Path) -> tuple[Path, ...]:
    """The folder's weight files, every shard of them; their presence and names are checked.

    Raises:
        ModelError: there are none, the index is broken, or a shard is missing.
        UnsafeError: the index points outside the folder.
    """
    name = next((name for name in _WEIGHT_NAMES if (path / name).is_file()), None)
    if name is None:
        names = ", ".join(sorted(p.name for p in path.iterdir())[:8])
        raise ModelError(
            f"{path} has no weights: neither model.safetensors nor pytorch_model.bin.",
            why=f"It holds: {names}",
            hint="Download the folder again, weights included.",
        )
    if not name.endswith(".index.json"):
        return (path / name,)
    shards = _shards(path / name)
    missing = [shard for shard in shards if not (path / shard).is_file()]
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} of {len(shards)} weight shards: {missing[0]} is missing.",
            why=[f"also missing: {shard}" for shard in missing[1:5]],
            hint="Download the folder again.",
            missing=missing,
        )
    return tuple(path / shard for shard in shards)


def read_headers(path: Path, opening: Opening) -> dict[str, TensorHeader]:
    """Header of every tensor in the folder, by name; no framework is loaded.

    Raises:
        ModelError, UnsafeError: see `weight_files`, `read_safetensors` and `read_pickled`.
    """
    headers: dict[str, TensorHeader] = {}
    for file in weight_files(path):
        require_file(file)
        if file.suffix == ".safetensors":
            headers.update(read_safetensors(file))
        elif is_zip_pickle(file) or is_pickle(file):
            tree = read_pickled(file, trust=opening.trust).tree
            named = tree if isinstance(tree, Mapping) else {}
            found = {str(k): v for k, v in named.items() if isinstance(v, TensorHeader)}
            headers.update(found or {str(i): t for i, t in enumerate(tensors_in(tree))})
        else:
            raise ModelError(
                f"{file} is not a PyTorch weight file.",
                why=f"Its {file.stat().st_size} bytes are neither a zip archive nor a pickle.",
                hint="Download it again.",
            )
    return headers


def describe_folder(path: Path, opening: Opening) -> Description:
    """Precision, parameter count and inputs from `config.json` and headers only.

    Raises:
        ModelError, UnsafeError: see `read_config` and `read_headers`.
    """
    from dataclasses import replace

    from convkit.formats.torch_huggingface_inputs import likely_inputs

    config = read_config(path)
    described = describe_tensors(
        read_headers(path, opening).values(),
        architecture=(config.get("architectures") or [""])[0],
        model_type=config.get("model_type", ""),
        weight_files=[file.name for file in weight_files(path)],
    )
    inputs = opening.inputs or likely_inputs(config, described.precision)
    return replace(described, inputs=inputs)


def load_folder(artifact: Artifact) -> torch.nn.Module:
    """The network of a folder with its weights, in evaluation mode, caches off, local files only.

    safetensors are memory-mapped, so weights cost memory only as they are touched.

    Raises:
        ModelError: the folder is damaged.
        UnsupportedError: transformers does not know the architecture.
        UnsafeError: the network is Python code inside the folder, without trust.
        WeightsMismatchError: the weights do not fit the network.
    """
    config = read_config(artifact.path)
    read_headers(artifact.path, artifact.opening)
    found = _network_class(artifact.path, config, trust=artifact.opening.trust)
    network = _from_pretrained(artifact, found)
    if getattr(network.config, "use_cache", False):
        network.config.use_cache = False
    ready: torch.nn.Module = network.eval()
    return ready


def _from_pretrained(artifact: Artifact, kind: Any) -> Any:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with without_compiler(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, info = kind.from_pretrained(
                artifact.path,
                local_files_only=True,
                dtype="auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, by name
                **({"trust_remote_code": True} if artifact.opening.trust else {}),
            )
    except Exception as cause:
        first = (str(cause).strip().splitlines() or [""])[0]
        raise ModelError(
            f"transformers cannot load {artifact.path}.",
            why=f"{type(cause).__name__}: {first[:400]}",
        ) from cause
    missing = sorted(info.get("missing_keys") or ())
    shapes = [_shape_difference(entry) for entry in sorted(info.get("mismatched_keys") or ())]
    if missing and not shapes and all(key.startswith("pooler.") for key in missing):
        # A sentence encoder saved without the pooler that its class has: leave the pooler out.
        network.pooler = None
        missing = []
    if missing or shapes:
        raise WeightsMismatchError(
            str(artifact.path),
            missing=missing,
            unexpected=sorted(info.get("unexpected_keys") or ()),
            shapes=shapes,
            hint="Does 'architectures' in config.json name the network these weights are from?",
        )
    return network


def _shape_difference(entry: tuple[str, Sequence[int], Sequence[int]]) -> str:
    """Source: `mismatched_keys` of transformers' loading info: (key, shape in file, own shape)."""
    key, in_file, own = entry
    return f"{key}: file {'x'.join(map(str, in_file))}, network {'x'.join(map(str, own))}"


def _network_class(path: Path, config: Mapping[str, Any], *, trust: bool) -> Any:
    """The class that `architectures` names; the bare model of `model_type` without it."""
    try:
        import transformers
    except ImportError as cause:
        raise MissingRequirementError(
            f"Loading {path} needs transformers, which is not installed.",
            hint='pip install "convkit-ml[torch]"',
        ) from cause
    names = config.get("architectures") or []
    if names and not config.get("quantization_config"):
        native = network_class(str(names[0]))
    else:
        native = getattr(transformers, str(names[0]), None) if names else None
    if native is not None and hasattr(native, "from_pretrained"):
        return native
    if config.get("auto_map"):
        if not trust:
            raise UnsafeError(
                f"{path} brings its own network code (auto_map in config.json).",
                why=f"Loading {names[0] if names else 'it'} would run Python from the folder.",
                hint="If you trust where it comes from:  --trust",
                found=str(config["auto_map"]),
            )
        return transformers.AutoModel
    if not names and config.get("model_type") in transformers.CONFIG_MAPPING:
        return transformers.AutoModel
    wanted = str(names[0] if names else config.get("model_type"))
    known = [name for name in dir(transformers) if not name.startswith("_")]
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.8)
    raise UnsupportedError(
        f"transformers {transformers.__version__} has no architecture {wanted}.",
        hint=f"Did you mean '{near[0]}' in config.json?"
        if near
        else "pip install --upgrade transformers",
    )


def _shards(index: Path) -> list[str]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(table.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as cause:
        raise ModelError(
            f"{index} is no index of weight shards.", why=f"{type(cause).__name__}: {cause}"
        ) from cause
    for shard in shards:
        pure = PurePosixPath(str(shard).replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts:
            raise UnsafeError(
                f"{index} points outside its folder: {shard}", why="Nothing was read.", found=shard
            )
    return shards
