"""Networks that a factory builds: `package.module:factory`, with or without a weights file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, TensorSpec
from convkit.errors import InputsUnknownError, ModelError
from convkit.factory import call_factory, find_factory, kind_of
from convkit.formats.torch_checkpoint import fill, load_state
from convkit.formats.torch_runner import Example
from convkit.step import Feeds, Sizes
from convkit.torch_values import named_tensors, parameters_of, to_array

if TYPE_CHECKING:
    import torch

_SEED = 0
_KERAS_HINT = "Let its module import keras: that tells a factory of Keras models from others."


def build(artifact: Artifact) -> tuple[torch.nn.Module, Any]:
    """The network of an artifact's factory, weights filled in, and the example inputs it gave.

    A factory without weights is called under a fixed seed, so that each opening gives the same
    network.

    Raises:
        UsageError: the factory's name does not lead to something callable.
        ModelError: its module or the call fails, or it gives no network.
        WeightsMismatchError: the weights do not fit.
    """
    import torch

    name = artifact.opening.factory or ""
    factory = find_factory(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        made = call_factory(name, factory)
    network, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(network, torch.nn.Module):
        raise ModelError(
            f"{name} gave {kind_of(network)}, not a torch.nn.Module.",
            hint=_KERAS_HINT
            if type(network).__module__.startswith("keras")
            else "Let the factory return the network, or (network, example_inputs).",
        )
    if artifact.path.suffix != ".py":
        fill(network, load_state(artifact.path, artifact.opening), artifact.path)
    return network.eval(), examples


def inputs_of(
    network: torch.nn.Module, artifact: Artifact, examples: Any
) -> tuple[tuple[TensorSpec, ...], Example]:
    """Input specs and a maker of inputs: as the user said, else from what the network carries.

    Raises:
        InputsUnknownError: nobody says what the inputs look like.
    """
    from convkit.samples import draw

    names = list(parameters_of(network))
    specs = artifact.opening.inputs or artifact.inputs
    ranges: dict[str, tuple[float, float]] = {}
    if not specs:
        arrays = _example_arrays(network, examples, names)
        if not arrays:
            raise InputsUnknownError(artifact.opening.factory or str(artifact.path), names)
        specs = tuple(_spec(name, array) for name, array in arrays.items())
        ranges = {
            name: (0, int(array.max()))
            for name, array in arrays.items()
            if array.dtype.kind in "iu" and array.size and array.min() >= 0
        }

    def example(sizes: Sizes, seed: int) -> Feeds:
        return draw(specs, sizes, seed, ranges)

    return specs, example


def _example_arrays(network: Any, examples: Any, names: Sequence[str]) -> dict[str, Any]:
    """Example inputs by name, from the first source that has them.

    Source: Lightning's `example_input_array`, transformers' `dummy_inputs`, timm's `default_cfg`
    and `pretrained_cfg` (`input_size` is (channels, height, width)).
    """
    import numpy as np

    for found in (
        examples,
        getattr(network, "example_input_array", None),
        getattr(network, "dummy_inputs", None),
    ):
        arrays = _by_name(found, names)
        if arrays:
            return arrays
    for holder in ("default_cfg", "pretrained_cfg"):
        config = getattr(network, holder, None)
        size = config.get("input_size") if isinstance(config, Mapping) else None
        if size:
            return {(names or ["x"])[0]: np.zeros((1, *size), np.float32)}
    size = getattr(network, "input_size", None)
    if isinstance(size, tuple | list) and len(size) >= 2 and all(isinstance(n, int) for n in size):
        return {(names or ["x"])[0]: np.zeros((1, *size), np.float32)}
    return {}


def _by_name(found: Any, names: Sequence[str]) -> dict[str, Any]:
    import torch

    if found is None:
        return {}
    if isinstance(found, torch.Tensor):
        found = (found,)
    if isinstance(found, Mapping):
        return {key: to_array(tensor) for key, tensor in named_tensors(found)}
    tensors = [tensor for _, tensor in named_tensors(found)]
    filled = [*names, *(f"input_{i}" for i in range(len(names), len(tensors)))]
    return {name: to_array(tensor) for name, tensor in zip(filled, tensors, strict=False)}


def _spec(name: str, array: Any) -> TensorSpec:
    shape: tuple[int | str, ...] = array.shape
    if array.ndim >= 2:  # a lone vector may be anything; with two axes the first is the batch
        shape = ("batch", *shape[1:])
    return TensorSpec(name, array.dtype.name, shape)
