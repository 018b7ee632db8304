"""The rung on `torch.export` for causal language models: keys and values go in and come out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, TensorSpec
from convkit.checkpoint.folder_files import continues_texts
from convkit.converters.onnx_stream import ir_version_for
from convkit.converters.torch_to_onnx.callable import quiet
from convkit.converters.torch_to_onnx.exported import (
    GREATEST_OPSET,
    LEAST_OPSET,
    NEEDS,
    capture_error,
    translate,
)
from convkit.converters.torch_to_onnx.language_folder import copy_settings, graph_path
from convkit.converters.torch_to_onnx.naming import drop_traces, name_inputs, name_outputs
from convkit.converters.torch_to_onnx.stream import write
from convkit.errors import RungSkipped, StepError
from convkit.step import Package, Work, rung
from convkit.torch_values import parameters_of

if TYPE_CHECKING:
    import torch

_BATCH, _PAST, _SEQUENCE = 2, 5, 3
"""Sizes the network is captured at: at least 2 and unlike one another, or they count as fixed."""

_IDS = ("batch_size", "sequence_length")
_MASK = ("batch_size", "past_sequence_length + sequence_length")


@rung("export-cache", needs=(*NEEDS, Package("transformers", "torch")))
def exported_cache(source: Artifact, out: Path, work: Work, *, opset: int = 20) -> None:
    """Exports a causal language model with its cache; a folder unless `out` is called `.onnx`."""
    if opset < LEAST_OPSET:
        raise RungSkipped(f"it writes opset {LEAST_OPSET} and above, not {opset}")
    network = _causal_network(source, work)
    _spell_out_experts(network, work)
    layers = _cache_of(network)
    if opset > GREATEST_OPSET:
        work.note(f"PyTorch writes opset {GREATEST_OPSET} at most, so {opset} became that")
        opset = GREATEST_OPSET
    specs = _specs(network, layers)
    work.progress("tracing the network", 0, None)
    program = _capture(network, specs, layers)
    work.progress("translating operators", 0, None)
    model = translate(program, opset)
    lost = name_inputs(model.graph, specs)
    if lost:
        raise StepError(f"torch.export fixed sizes that vary as a text grows: {', '.join(lost)}.")
    name_outputs(model.graph, ["logits", *_names("present", len(layers))])
    drop_traces(model)
    work.progress("writing", 0, None)
    write(model, graph_path(out), ir_version=ir_version_for(opset))
    copy_settings(source.path, out)


def _causal_network(source: Artifact, work: Work) -> Any:
    """The network, if it is a language model that takes a cache."""
    if source.opening.factory is not None or not source.path.is_dir():
        raise RungSkipped("it serves Hugging Face folders only")
    takes, gives = ({s.name for s in specs} for specs in (source.inputs, source.outputs))
    if takes != {"input_ids", "attention_mask"} or gives != {"logits"}:
        raise RungSkipped("it serves language models, from token ids to logits")
    network = work.load(source)
    if not continues_texts(type(network).__name__):
        raise RungSkipped(f"{type(network).__name__} continues no texts")
    if "past_key_values" not in parameters_of(network):
        raise RungSkipped(f"{type(network).__name__} has no cache of keys and values")
    return network


def _spell_out_experts(network: Any, work: Work) -> None:
    """Has experts computed with operators that ONNX has."""
    has_experts = any(type(module).__name__.endswith("Experts") for module in network.modules())
    if has_experts and hasattr(network, "set_experts_implementation"):
        network.set_experts_implementation("batched_mm")
        work.note("the weights of experts are gathered for each token, which suits short prompts")


def _cache_of(network: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer after a short text, (batch, heads, length, size)."""
    import torch

    with quiet(), torch.no_grad():
        ids = torch.ones((_BATCH, _PAST), dtype=torch.int64)
        cache = network(input_ids=ids, use_cache=True).past_key_values
    kept = getattr(cache, "layers", None) or ()
    layers = [(getattr(c, "keys", None), getattr(c, "values", None)) for c in kept]
    wanted = (_BATCH, _PAST)
    for layer in layers:
        if any(t is None or t.ndim != 4 or (t.shape[0], t.shape[2]) != wanted for t in layer):
            raise RungSkipped("its cache is more than the keys and values of each layer")
    if not layers:
        raise RungSkipped("it keeps no keys and values")
    return layers  # type: ignore[return-value]


def _counts_positions(network: Any) -> bool:
    """Whether a network takes positions and, left alone, counts them from 0 whatever the mask says.

    Where the mask decides on them (OPT), it is left to decide in the graph as well.
    """
    import torch

    if "position_ids" not in parameters_of(network):
        return False
    ids = torch.ones((_BATCH, _SEQUENCE), dtype=torch.int64)
    mask = ids.clone()
    mask[-1, -1] = 0
    positions = torch.arange(_SEQUENCE).expand(_BATCH, -1)
    with quiet(), torch.no_grad():
        alone = network(input_ids=ids, attention_mask=mask).logits
        counted = network(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    return torch.equal(alone, counted)


def _names(start: str, count: int) -> list[str]:
    return [f"{start}.{layer}.{part}" for layer in range(count) for part in ("key", "value")]


def _specs(
    network: Any, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[TensorSpec, ...]:
    """Inputs under the names that optimum gives them.

    Source: optimum, `exporters/onnx/model_configs.py`.
    """
    text = [TensorSpec("input_ids", "int64", _IDS), TensorSpec("attention_mask", "int64", _MASK)]
    if _counts_positions(network):
        text.append(TensorSpec("position_ids", "int64", _IDS))
    parts = [tensor for layer in layers for tensor in layer]
    past = [
        TensorSpec(
            name,
            str(tensor.dtype).removeprefix("torch."),
            ("batch_size", tensor.shape[1], "past_sequence_length", tensor.shape[3]),
        )
        for name, tensor in zip(_names("past_key_values", len(layers)), parts, strict=True)
    ]
    return (*text, *past)


def _capture(
    network: Any,
    specs: Sequence[TensorSpec],
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> torch.export.ExportedProgram:
    """The program, every size that varies as a symbol."""
    import torch

    text = [spec.name for spec in specs if not spec.name.startswith("past")]

    class WithCache(torch.nn.Module):
        """Takes and gives the cache as plain tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            named = dict(zip(text, tensors, strict=False))
            cache = _filled(tensors[len(text) :])
            result = self.network(**named, past_key_values=cache, use_cache=True)
            parts = [(c.keys, c.values) for c in result.past_key_values.layers]
            return (result.logits, *(tensor for layer in parts for tensor in layer))

    sizes = {"batch_size": _BATCH, "sequence_length": _SEQUENCE, _MASK[1]: _PAST + _SEQUENCE}
    arguments = [
        torch.ones([sizes[str(size)] for size in spec.shape], dtype=torch.int64)
        for spec in specs[: len(text)]
    ]
    if "position_ids" in text:
        positions = torch.arange(_PAST, _PAST + _SEQUENCE)
        arguments[text.index("position_ids")] = positions.expand(_BATCH, -1).contiguous()
    arguments += [tensor.clone() for layer in layers for tensor in layer]
    automatic = tuple(
        {axis: torch.export.Dim.AUTO for axis, size in enumerate(s.shape) if isinstance(size, str)}
        for s in specs
    )
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(
                WithCache().eval(), tuple(arguments), dynamic_shapes=(automatic,), strict=False
            )
    except Exception as failure:
        raise capture_error(failure) from failure


def _filled(parts: Sequence[torch.Tensor]) -> Any:
    """Transformers' cache that holds these keys and values, layer by layer."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in zip(parts[::2], parts[1::2], strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
