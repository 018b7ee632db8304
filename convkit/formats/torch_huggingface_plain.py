"""Plain float32 networks of folders whose weights are quantized, or that an adapter is merged into.

Neither bitsandbytes nor a package for GPTQ or AWQ is needed. Tensors are unpacked one by one while
transformers fills the network, under the names of the checkpoint: renaming and stacking (of
experts) is left to its own loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, dtype_bits
from convkit.checkpoint.quantization import Quantization, Quantized
from convkit.errors import UnsupportedError
from convkit.formats.torch_unpickling import TensorHeader

if TYPE_CHECKING:
    import torch

    from convkit.checkpoint.folder import Checkpoint
    from convkit.checkpoint.rows import Rows
    from convkit.safetensors_file import StoredTensor

_PIECE_ELEMENTS = 1 << 20


def as_unquantized(
    headers: Mapping[str, TensorHeader], quantization: Quantization
) -> list[TensorHeader]:
    """Headers of the tensors that a quantized checkpoint stands for.

    Of a quantized one the element count is right, the shape unknown: it may be inside the file.

    Raises:
        ModelError: a part of a quantized tensor is missing.
    """
    quantized = quantization.tensors(headers)
    parts = {part for tensor in quantized.values() for part in tensor.parts.values()}
    others = [
        header
        for name, header in headers.items()
        if name not in parts and not quantization.is_unused(name)
    ]
    dtype = "int8" if quantization.bits == 8 else "int4"
    counts = (_count(tensor, headers, quantization.bits) for tensor in quantized.values())
    return [*others, *(TensorHeader(dtype, (count,)) for count in counts)]


def _count(tensor: Quantized, headers: Mapping[str, TensorHeader], bits: int) -> int:
    """Weights of a quantized tensor, from the size of what it is packed in."""
    part = {role: headers[name] for role, name in tensor.parts.items()}
    packed = part.get("weight") or part["qweight"]
    if tensor.layout.bits:
        bits = tensor.layout.bits
    elif part["scales"].count:  # of GPTQ each layer may have its own
        bits = part["qzeros"].count * 32 // part["scales"].count or bits
    return packed.count * dtype_bits(packed.dtype) // bits


def load_plain(kind: Any, artifact: Artifact) -> tuple[Any, dict[str, Any]]:
    """The network of a transformers class, filled, and transformers' report on its loading.

    Raises:
        ModelError, UnsafeError, UnsupportedError: see `convkit.checkpoint.folder.open_folder`.
        UnsupportedError: the class is code inside the folder.
    """
    import torch
    import transformers

    from convkit.checkpoint.folder import open_folder

    opening = artifact.opening
    with open_folder(artifact.path, adapter=opening.adapter, trust=opening.trust) as checkpoint:
        settings = dict(checkpoint.config)
        known = getattr(kind, "config_class", None)
        model_type = str(settings.get("model_type"))
        if known is None and model_type in transformers.CONFIG_MAPPING:
            known = transformers.CONFIG_MAPPING[model_type]
        if known is None:
            raise UnsupportedError(
                f"{artifact.path} brings its own network code; its weights are quantized or "
                "adapted.",
                why="Only transformers' own networks are filled with such weights.",
                hint="Save it unquantized and merged first.",
            )
        network, info = kind.from_pretrained(
            None,
            config=known.from_dict(settings),
            state_dict=_state(checkpoint),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        _take_generation_settings(network, artifact)
        return network, info


def _state(checkpoint: Checkpoint) -> dict[str, Any]:
    floats = {name: _LazyTensor(rows) for name, rows in checkpoint.tensors.items()}
    tied = {alias: floats[kept] for alias, kept in checkpoint.aliases.items() if kept in floats}
    others = {name: _LazyOther(tensor) for name, tensor in checkpoint.other.items()}
    return {**floats, **tied, **others}


def _take_generation_settings(network: Any, artifact: Artifact) -> None:
    import transformers

    if network.can_generate() and (artifact.path / "generation_config.json").is_file():
        network.generation_config = transformers.GenerationConfig.from_pretrained(
            artifact.path, local_files_only=True
        )


class _LazyTensor:
    """A tensor that is read when transformers asks for all of it, as of a safetensors slice."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __getitem__(self, everything: Any) -> torch.Tensor:
        import torch

        rows = self._rows
        whole = torch.empty(rows.row_count, rows.row_length)
        filled = whole.numpy()
        for begin, end in rows.spans(_PIECE_ELEMENTS):
            filled[begin:end] = rows.read(begin, end)
        return whole.reshape(() if getattr(rows, "is_scalar", False) else rows.shape)


class _LazyOther:
    """The same for an integer or boolean tensor."""

    def __init__(self, tensor: StoredTensor) -> None:
        self._tensor = tensor

    def __getitem__(self, everything: Any) -> torch.Tensor:
        import torch

        from convkit.checkpoint.stored import whole

        array = whole(self._tensor).copy()
        return torch.from_numpy(array.view(bool) if self._tensor.dtype == "BOOL" else array)
