"""PyTorch: Hugging Face folders, exported programs, factories with weights, pickled modules.

The kinds are told by content: a folder with `config.json`, or with source that convkit wrote; a zip
archive with a program in it; `package.module:factory` (in `Opening.factory`) with or without a
weights file; a pickle. A bare state dict can be described, but only a factory makes a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convkit.artifact import Artifact, Description, Opening, Precision
from convkit.errors import ModelError, UsageError
from convkit.formats import (
    onnx_folder,
    torch_checkpoint,
    torch_huggingface,
    torch_pickle,
    torch_program,
    torch_source,
)
from convkit.step import Format, Package, Runner

_SCHEMES = {"llm_int8": Precision.INT8, "nf4": Precision.Q4, "fp4": Precision.Q4}
"""As bitsandbytes calls them."""

_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".th")


def matches(path: Path, opening: Opening) -> bool:
    """Whether a path is a PyTorch model; TorchScript archives are a format of their own."""
    if opening.factory:
        return True
    if path.is_dir():
        if onnx_folder.is_folder(path):  # its config.json is there for the tokenizer's sake
            return False
        return torch_source.is_source_folder(path) or torch_huggingface.is_folder(path)
    if not path.is_file() or torch_pickle.is_torchscript(path):
        return False
    return (
        torch_program.is_program(path)
        or torch_checkpoint.is_safetensors(path)
        or torch_pickle.is_zip_pickle(path)
        or (torch_pickle.is_pickle(path) and path.suffix.lower() in _PICKLE_SUFFIXES)
    )


def describe(path: Path, opening: Opening) -> Description:
    """What headers tell of a PyTorch model; PyTorch itself is not loaded.

    Raises:
        ModelError: missing, empty, truncated, or no PyTorch model.
        UnsafeError: a pickle with code, without trust.
    """
    torch_checkpoint.require_file(path)
    is_source = torch_source.is_source_folder(path)
    if path.is_dir() and not is_source:
        return torch_huggingface.describe_folder(path, opening)
    if opening.adapter is not None:
        raise UsageError(
            f"--adapter has no effect: {opening.factory or path} is no Hugging Face folder.",
            hint="Name the folder of the model that the adapter was trained on.",
        )
    if opening.factory and path.suffix == ".py":
        return Description(Precision.FP32, inputs=opening.inputs)
    if is_source:
        return torch_source.describe_source(path)
    if torch_program.is_program(path):
        return torch_program.describe_program(path, trust=opening.trust)
    described = torch_checkpoint.describe_checkpoint(path, opening)
    return Description(
        described.precision,
        inputs=opening.inputs,
        parameter_count=described.parameter_count,
        details=described.details,
    )


def load(artifact: Artifact) -> Any:
    """The network, a `torch.nn.Module` in evaluation mode on the CPU.

    Raises:
        ModelError: it cannot be loaded, see `describe`; or the pickle holds no module.
        UsageError: a bare state dict, without a factory to make its network.
        UnsafeError: code in the model, without trust.
        WeightsMismatchError: the weights do not fit the network.
    """
    return _load(artifact)[0]


def open_torch(artifact: Artifact) -> Runner:
    """A runner on PyTorch's eager CPU kernels.

    Raises:
        InputsUnknownError: nothing says what the inputs look like.
        ModelError, UsageError, UnsafeError, WeightsMismatchError: see `load`.
    """
    from convkit.formats import torch_factory, torch_huggingface_inputs, torch_language
    from convkit.formats.torch_runner import TorchRunner

    network, examples = _load(artifact)
    if artifact.opening.factory is None and torch_source.is_source_folder(artifact.path):
        inputs = torch_source.inputs_of_source(artifact)
    elif artifact.opening.factory is None and artifact.path.is_dir():
        given = artifact.opening.inputs
        inputs = torch_huggingface_inputs.inputs_of(network, artifact.precision, given)
        if torch_language.is_causal(network, inputs[0]):
            return torch_language.TorchLanguageRunner(network, *inputs, artifact.path)
    elif artifact.opening.factory is None and torch_program.is_program(artifact.path):
        inputs = torch_program.inputs_of_program(artifact)
    else:
        inputs = torch_factory.inputs_of(network, artifact, examples)
    return TorchRunner(network, *inputs)


def _load(artifact: Artifact) -> tuple[Any, Any]:
    """The network, and example inputs where a factory gave some."""
    torch_checkpoint.require_file(artifact.path)
    if artifact.opening.factory:
        from convkit.formats import torch_factory

        return torch_factory.build(artifact)
    if torch_source.is_source_folder(artifact.path):
        return torch_source.load_source(artifact), None
    if artifact.path.is_dir():
        return torch_huggingface.load_folder(artifact), None
    if torch_program.is_program(artifact.path):
        trust = artifact.opening.trust
        return torch_program.load_program(artifact.path, trust=trust).module(), None
    return _load_pickled_module(artifact), None


def _load_pickled_module(artifact: Artifact) -> Any:
    """A module pickled whole; only with trust, since unpickling runs code."""
    import torch

    path = artifact.path
    described = torch_checkpoint.describe_checkpoint(path, artifact.opening)
    if not described.details.get("code"):
        raise _bare_weights(path, described)
    found = torch_checkpoint.load_pickle(path, trust=True)
    if not isinstance(found, torch.nn.Module):
        raise ModelError(
            f"{path} holds a {type(found).__name__}, not a network.",
            hint=f"Name the network:  convkit convert package.module:factory --weights {path}",
        )
    return found.eval()


def _bare_weights(path: Path, described: Description) -> UsageError:
    key = described.details.get("weights_key")
    file = f"{path}:{key}" if key else str(path)
    count = described.parameter_count or 0
    return UsageError(
        f"{path} holds weights only ({count:,} numbers), not the network they belong to.",
        hint="Name what builds the network:  "
        f"convkit convert package.module:factory --weights {file}",
    )


torch = Format(
    name="torch",
    suffixes=(".pt2", ".safetensors", ".bin", ".pth", ".pt", ""),
    needs=(Package("torch", "torch"), Package("safetensors", "torch")),
    matches=matches,
    describe=describe,
    open=open_torch,
    load=load,
    schemes=_SCHEMES,
    heeds=("adapter",),
)
