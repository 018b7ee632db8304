"""Hugging Face folders: `config.json` beside safetensors or weights-only pickles, or shards."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, Description, Opening
from convkit.checkpoint.adapter_settings import read_adapter_settings
from convkit.checkpoint.folder_files import (
    WEIGHT_NAMES,
    architecture,
    find_weight_files,
    read_config,
)
from convkit.checkpoint.quantization import Quantization, quantization_of
from convkit.errors import (
    ConvkitError,
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
from convkit.formats.torch_huggingface_plain import as_unquantized, load_plain
from convkit.formats.torch_lean_import import (
    network_class,
    without_compiler,
    without_meta_device,
)
from convkit.formats.torch_pickle import (
    is_pickle,
    is_zip_pickle,
    read_pickled,
    tensors_in,
)
from convkit.formats.torch_unpickling import TensorHeader

if TYPE_CHECKING:
    import torch


def is_folder(path: Path) -> bool:
    """Whether a folder looks like one that `save_pretrained` wrote."""
    if not path.is_dir() or (path / "saved_model.pb").exists():
        return False
    return (path / "config.json").is_file() or any((path / n).is_file() for n in WEIGHT_NAMES)


def read_headers(path: Path, opening: Opening) -> dict[str, TensorHeader]:
    """Header of every tensor in the folder, by name; no framework is loaded.

    Raises:
        ModelError, UnsafeError: see `find_weight_files`, `read_safetensors` and `read_pickled`.
    """
    headers: dict[str, TensorHeader] = {}
    for file in find_weight_files(path).shards:
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

    Quantized weights count as the numbers they stand for, and one such layer makes the folder what
    its method is, whatever the other tensors are.

    Raises:
        ModelError, UnsafeError: see `read_config` and `read_headers`.
        UnsupportedError: there is an adapter that cannot be merged.
    """
    from convkit.formats.torch_huggingface_inputs import likely_inputs

    config = read_config(path)
    headers = read_headers(path, opening)
    quantization = _quantization(path, config)
    details = {
        "architecture": architecture(config),
        "model_type": config.get("model_type", ""),
        "weight_files": [
            file.relative_to(path).as_posix() for file in find_weight_files(path).shards
        ],
    }
    if quantization is None:
        unread = config.get("quantization_config")
        if isinstance(unread, Mapping):
            details["quantization"] = str(unread.get("quant_method"))
        described = describe_tensors(headers.values(), **details)
    else:
        plain = as_unquantized(headers, quantization)
        described = describe_tensors(plain, **details, quantization=quantization.words)
        described = replace(described, precision=quantization.precision)
    if opening.adapter is not None:
        described = replace(described, details={**described.details, **_adapter(opening.adapter)})
    inputs = opening.inputs or likely_inputs(config, described.precision)
    return replace(described, inputs=inputs)


def _adapter(folder: Path) -> dict[str, Any]:
    settings = read_adapter_settings(folder)
    trained = {"adapter_base": settings.base} if settings.base else {}
    return {"adapter": str(folder), "adapter_rank": settings.settings.get("r"), **trained}


def load_folder(artifact: Artifact) -> torch.nn.Module:
    """The network of a folder with its weights, in evaluation mode, caches off, local files only.

    safetensors are memory-mapped, so weights cost memory only as they are touched. Quantized
    weights, and those that an adapter is merged into, become a plain network in float32.

    Raises:
        ModelError: the folder is damaged.
        UnsupportedError: transformers does not know the architecture.
        UnsafeError: the network is Python code inside the folder, without trust.
        WeightsMismatchError: the weights do not fit the network.
    """
    config = read_config(artifact.path)
    read_headers(artifact.path, artifact.opening)
    is_plain = _quantization(artifact.path, config) is None and artifact.opening.adapter is None
    found = _network_class(artifact.path, config, trust=artifact.opening.trust)
    try:
        network = _loaded(artifact, partial(_load_as_it_is if is_plain else load_plain, found))
    except ModelError as failure:
        unread = _unread_quantization(artifact.path, config, failure)
        if unread is None:
            raise
        raise unread from failure
    if getattr(network.config, "use_cache", False):
        network.config.use_cache = False
    ready: torch.nn.Module = network.eval()
    return ready


def _quantization(path: Path, config: Mapping[str, Any]) -> Quantization | None:
    """How the weights are quantized; None also where only transformers can read it."""
    try:
        return quantization_of(config, path)
    except UnsupportedError:
        return None


def _unread_quantization(
    path: Path, config: Mapping[str, Any], failure: ModelError
) -> UnsupportedError | None:
    """That weights are quantized in a way that neither convkit reads nor transformers; else None.

    transformers names a package to install, be it for GPUs alone, or fails in it.
    """
    try:
        quantization_of(config, path)
    except UnsupportedError as unread:
        said = [f"transformers, asked instead: {line}" for line in failure.why[:1]]
        return UnsupportedError(unread.what, why=[*unread.why, *said], hint=unread.hint)
    return None


def _load_as_it_is(kind: Any, artifact: Artifact) -> tuple[Any, dict[str, Any]]:
    network, info = kind.from_pretrained(
        artifact.path,
        local_files_only=True,
        dtype="auto",
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told below, by name
        **({"trust_remote_code": True} if artifact.opening.trust else {}),
    )
    return network, info


def _loaded(artifact: Artifact, load: Callable[[Artifact], tuple[Any, dict[str, Any]]]) -> Any:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with without_compiler(), without_meta_device(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, info = load(artifact)
    except ConvkitError:
        raise
    except Exception as cause:
        lines = [line.strip()[:400] for line in str(cause).splitlines() if line.strip()] or [""]
        raise ModelError(
            f"transformers cannot load {artifact.path}.",
            why=[f"{type(cause).__name__}: {lines[0]}", *lines[1:3]],
            hint="Is config.json the one that came with these weights?",
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
            hint=_layers_differ(artifact, missing)
            or "Does 'architectures' in config.json name the network these weights are from?",
        )
    return network


def _layers_differ(artifact: Artifact, missing: Sequence[str]) -> str:
    """A sentence where the weights have another number of layers than config.json says; else ""."""
    from convkit.families import layer_count
    from convkit.families.config import Config

    names = read_headers(artifact.path, artifact.opening)
    config = Config(read_config(artifact.path))
    with suppress(ModelError):  # a configuration that counts otherwise
        return layer_count.difference(config, names, missing[0]) if missing else ""
    return ""


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
    is_left_to_transformers = config.get("quantization_config") and not _quantization(path, config)
    if names and not is_left_to_transformers:
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
