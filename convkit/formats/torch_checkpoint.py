"""Weight files: safetensors, and state dicts that `torch.save` wrote (zip or legacy pickle)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Description, Opening, Precision
from convkit.errors import ModelError, UsageError, WeightsMismatchError
from convkit.formats.torch_pickle import (
    is_pickle,
    is_zip_pickle,
    nested_states,
    read_pickled,
    tensors_in,
)
from convkit.formats.torch_unpickling import TensorHeader
from convkit.git_lfs import refuse_pointer

if TYPE_CHECKING:
    import torch

_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16",
    "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_HEADER_LIMIT_BYTES = 100_000_000  # Source: safetensors refuses longer headers.
_NOT_WEIGHTS = frozenset({"int64", "int32", "int16", "bool", "uint64", "uint32", "uint16"})
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning


def is_safetensors(path: Path) -> bool:
    """Whether a file starts like safetensors: a header length, then a JSON object."""
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError:
        return False
    return (
        len(start) == 9
        and start[8:] == b"{"
        and 2 <= struct.unpack("<Q", start[:8])[0] <= _HEADER_LIMIT_BYTES
    )


def read_safetensors(path: Path) -> dict[str, TensorHeader]:
    """Tensor headers of a safetensors file; its sizes are checked against the file's.

    Source: the safetensors format (github.com/huggingface/safetensors): 8 bytes of header length,
    little endian, then JSON `name -> {dtype, shape, data_offsets}`, then the data.

    Raises:
        ModelError: not safetensors, or truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _HEADER_LIMIT_BYTES):
            raise ModelError(
                f"{path} is not a safetensors file, or is truncated.",
                why=f"It has {size} bytes; its first 8 promise a header of {length} bytes.",
                size_bytes=size,
            )
        text = stream.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        tensors = {
            name: TensorHeader(
                _SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"].lower()),
                tuple(entry["shape"]),
            )
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as cause:
        raise ModelError(
            f"{path} is not a safetensors file: its header is no table of tensors.",
            why=f"{type(cause).__name__}: {cause}",
        ) from cause
    if size < end:
        raise ModelError(
            f"{path} is truncated: it has {size} bytes, its header promises {end}.",
            hint="Copy or download it again.",
            size_bytes=size,
            expected_bytes=end,
        )
    return tensors


def describe_tensors(tensors: Iterable[TensorHeader], **details: Any) -> Description:
    """Precision and parameter count of a model from its tensor headers."""
    elements: dict[str, int] = {}
    for tensor in tensors:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.count
    count = sum(number for dtype, number in elements.items() if dtype not in _NOT_WEIGHTS)
    return Description(Precision.of_weights(elements), parameter_count=count, details=details)


def describe_checkpoint(path: Path, opening: Opening) -> Description:
    """Precision and parameter count of a weight file, from headers only.

    Raises:
        ModelError: missing, empty, truncated or no weight file.
        UnsafeError: a pickle with code.
    """
    require_file(path)
    if is_safetensors(path) or path.suffix == ".safetensors":
        return describe_tensors(read_safetensors(path).values(), container="safetensors")
    if not (is_zip_pickle(path) or is_pickle(path)):
        raise _not_weights(path)
    container = "zip pickle" if is_zip_pickle(path) else "legacy pickle"
    pickled = read_pickled(path, trust=opening.trust)
    if pickled.foreign:
        return describe_tensors(
            tensors_in(pickled.tree), container=container, code=list(pickled.foreign)
        )
    states = nested_states(pickled.tree)
    if opening.weights_key or len(states) == 1:
        key = opening.weights_key or next(iter(states))
        state = _at_key(path, pickled.tree, key)
        nested = {"weights_key": key} if key else {}
        return describe_tensors(tensors_in(state), container=container, **nested)
    return describe_tensors(tensors_in(pickled.tree), container=container)


def load_state(path: Path, opening: Opening) -> dict[str, torch.Tensor]:
    """The state dict in a weight file, on the CPU, memory-mapped where the container allows it.

    Raises:
        ModelError: missing, empty, truncated or no weight file.
        UnsafeError: a pickle with code, without trust.
        UsageError: the file nests its state dict and no key was named, or a wrong one.
    """
    require_file(path)
    if is_safetensors(path) or path.suffix == ".safetensors":
        read_safetensors(path)
        from safetensors.torch import load_file

        return dict(load_file(path))
    if not (is_zip_pickle(path) or is_pickle(path)):
        raise _not_weights(path)
    headers = read_pickled(path, trust=opening.trust)
    loaded = load_pickle(path, trust=opening.trust and bool(headers.foreign))
    state = _at_key(path, loaded, opening.weights_key or "")
    if not isinstance(state, Mapping) or not _tensors(state):
        raise _nested(path, nested_states(headers.tree), opening.weights_key or "")
    return _tensors(state)


def load_pickle(path: Path, *, trust: bool) -> Any:
    """`torch.load` on the CPU; only tensors and plain containers unless `trust`.

    Raises:
        ModelError: PyTorch cannot read it.
    """
    import torch

    is_zip = is_zip_pickle(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust, mmap=is_zip)
    except Exception as cause:
        raise ModelError(
            f"PyTorch cannot load {path}.", why=f"{type(cause).__name__}: {_first_line(cause)}"
        ) from cause


def fill(network: torch.nn.Module, state: Mapping[str, torch.Tensor], weights: Path) -> None:
    """Loads a state dict into a network, in place; a wrapper's common prefix is taken off.

    Tensors that belong to no layer (names without a dot, as a loss keeps beside the network) may be
    left over where the network itself is filled; anything else that differs is an error.

    Raises:
        WeightsMismatchError: keys or shapes differ.
    """
    own = network.state_dict()
    state = _unwrapped(state, own)
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key}: file {_shape(state[key])}, network {_shape(own[key])}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    # num_batches_tracked counts training steps; checkpoints older than PyTorch 0.4.1 lack it.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    is_leftover = len(unexpected) < len(own) and not any("." in key for key in unexpected)
    if missing or shapes or (unexpected and not is_leftover):
        raise WeightsMismatchError(
            str(weights), missing=missing, unexpected=unexpected, shapes=shapes
        )
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:  # the file's precision is the model's
        network.to(dtypes.pop())
    network.load_state_dict(state, strict=False)


def require_file(path: Path) -> None:
    """Sees to it that a file is there and not empty.

    Raises:
        ModelError: it is missing, or has no bytes.
    """
    if not path.exists():
        raise ModelError(f"{path} does not exist.", hint="Check the path.")
    if path.is_file() and path.stat().st_size == 0:
        raise ModelError(f"{path} is empty: it has 0 bytes.", hint="Copy or download it again.")
    refuse_pointer(path)


def _not_weights(path: Path) -> ModelError:
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
    return ModelError(
        f"{path} is not a PyTorch model.",
        why=f"Its {size} bytes start with {start.hex(' ')}: neither safetensors, nor a zip "
        "archive, nor a pickle. A damaged or half-copied file looks like this too.",
        size_bytes=size,
    )


def _at_key(path: Path, tree: Any, key: str) -> Any:
    for part in filter(None, key.split(".")):
        if not isinstance(tree, Mapping) or part not in tree:
            keys = sorted(map(str, tree)) if isinstance(tree, Mapping) else []
            raise UsageError(
                f"{path} has no key '{key}'.",
                why=f"Where '{part}' was looked for it has: {', '.join(keys[:12])}" if keys else (),
                hint=f"Name another:  --weights {path}:KEY",
                known=keys,
            )
        tree = tree[part]
    return tree


def _nested(path: Path, states: Mapping[str, Any], key: str) -> UsageError:
    keys = [key for key in states if key]
    best = max(keys, key=lambda key: len(states[key]), default="KEY")
    return UsageError(
        f"{path} does not hold its weights {f'under {key!r}' if key else 'at the top'}.",
        why=f"Tensors lie under: {', '.join(keys[:8])}" if keys else "It holds no tensors.",
        hint=f"Name the key:  --weights {path}:{best}",
        keys=keys,
    )


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    import torch

    return {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _unwrapped(
    state: Mapping[str, torch.Tensor], own: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    for prefix in _WRAPPERS:
        if not set(state) & set(own) and all(key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first_line(cause: BaseException) -> str:
    return (str(cause).strip().splitlines() or [""])[0]
