"""Which weights of a model bitsandbytes quantizes when transformers loads it: linear layers.

Transformers asks the network itself. Of decoders as most are, names tell; of others the network is
made without memory for its weights, and asked.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convkit.errors import UnsupportedError, UsageError
from convkit.naming import listed

_DECODERS = frozenset(
    f"{name}ForCausalLM"
    for name in (
        "Gemma", "Gemma2", "Gemma3", "Granite", "Llama", "Mistral", "Olmo2", "Phi3", "Qwen2",
        "Qwen3", "SmolLM3", "StableLm",
    )
)  # fmt: skip
"""Networks whose linear layers are those that `_PROJECTION` names, and the output embeddings.

Source: transformers, `models/*/modeling_*.py`; tests compare with the networks.
"""

_PROJECTION = re.compile(r"(model\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj)\.weight")
_HEAD = "lm_head"
_NAMED = 6


@dataclass(frozen=True)
class Layers:
    """The linear layers of a network.

    Attributes:
        modules: name of a weight in the checkpoint -> name of its layer in the network.
        turned: those of the weights that are kept as (inputs, outputs).
        left_out: patterns of the layers that transformers does not quantize.
        strange: layers of the network whose weights the checkpoint does not have by themselves.
    """

    modules: Mapping[str, str]
    turned: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = (_HEAD,)
    strange: tuple[str, ...] = ()


def layers_of(config: Mapping[str, Any], names: Collection[str]) -> Layers:
    """The linear layers of a model.

    Args:
        config: its configuration.
        names: of the tensors in its checkpoint.

    Raises:
        UnsupportedError: transformers has no network for it.
    """
    architectures = config.get("architectures") or [""]
    if architectures[0] in _DECODERS:
        found = {name: match[1] for name in names if (match := _PROJECTION.fullmatch(name))}
        head = {f"{_HEAD}.weight": _HEAD} if f"{_HEAD}.weight" in names else {}
        if found:
            return Layers({**found, **head})
    return _asked(_empty_network(config), names)


def chosen(layers: Layers, skipped: Sequence[str]) -> dict[str, str]:
    """The weights to quantize, in the order of the checkpoint, and the layers they belong to.

    Args:
        layers: of the network.
        skipped: names or patterns of further layers that stay as they are.

    Raises:
        UsageError: a name fits no layer; offers the nearest.
        UnsupportedError: there is no layer left.
    """
    for pattern in skipped:
        _require_match(pattern, layers.modules.values())
    left_out = (*layers.left_out, *skipped)
    found = {w: m for w, m in layers.modules.items() if not is_left_out(m, left_out)}
    if not found:
        held = listed(list(layers.modules.values()), _NAMED)
        raise UnsupportedError(
            "The model has no linear layer that could be quantized.",
            why=f"These are left out: {held}"
            if layers.modules
            else "bitsandbytes quantizes linear layers only.",
            hint="Quantize its graph instead:  convkit convert MODEL --to onnx --int8",
        )
    return found


def is_left_out(module: str, patterns: Iterable[str]) -> bool:
    """Whether a layer stays as it is.

    A pattern is a regular expression of how its name begins, up to a dot or the end, or how it
    ends. Source: transformers, `quantizers_utils.should_convert_module`.
    """
    return any(
        module.endswith(pattern) or re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", module)
        for pattern in patterns
    )


def _require_match(pattern: str, modules: Collection[str]) -> None:
    try:
        if any(is_left_out(module, [pattern]) for module in modules):
            return
    except re.error as cause:
        raise UsageError(
            f"'{pattern}' is neither a layer's name nor a regular expression.", why=str(cause)
        ) from cause
    parts = {part for module in modules for part in (module, module.rpartition(".")[2])}
    near = difflib.get_close_matches(pattern, sorted(parts), n=1, cutoff=0.5)
    raise UsageError(
        f"No linear layer is called '{pattern}'.",
        why=f"There are {listed(sorted({m.rpartition('.')[2] for m in modules}), 12)}.",
        hint=f"Did you mean '{near[0]}'?" if near else "",
    )


def _empty_network(config: Mapping[str, Any]) -> Any:
    """The network of a configuration, of tensors that hold nothing."""
    import torch
    import transformers

    name = str((config.get("architectures") or [""])[0])
    kind = getattr(transformers, name, None)
    known = transformers.CONFIG_MAPPING
    model_type = str(config.get("model_type"))
    if kind is None and not name and model_type in known:
        kind = transformers.AutoModel
    if kind is None or model_type not in known:
        raise UnsupportedError(
            f"transformers {transformers.__version__} has no network for {name or model_type}.",
            why="Which of its layers are linear is not known; code inside a folder is not run.",
            hint="Quantize its graph instead:  convkit convert MODEL --to onnx --q4",
        )
    settings = known[model_type].from_dict(dict(config))
    with torch.device("meta"):
        if kind is transformers.AutoModel:
            return kind.from_config(settings)
        return kind(settings)


def _asked(network: Any, names: Collection[str]) -> Layers:
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert

    linear = {
        name: isinstance(module, Conv1D)
        for name, module in network.named_modules()
        if isinstance(module, Conv1D) or type(module) is nn.Linear
    }
    own_names = _own_names(network, names)
    modules = {
        name: module
        for name in names
        if (module := own_names[name].removesuffix(".weight")) in linear
        and own_names[name].endswith(".weight")
    }
    left_out = [*get_keys_to_not_convert(network), *(network._keep_in_fp32_modules or ())]
    held = set(modules.values())
    return Layers(
        modules,
        frozenset(weight for weight, module in modules.items() if linear[module]),
        tuple(sorted(left_out)),
        tuple(module for module in linear if module not in held),
    )


def _own_names(network: Any, names: Collection[str]) -> dict[str, str]:
    """What the network calls the tensors of a checkpoint: transformers renames some on loading."""
    prefix = network.base_model_prefix
    own = set(network.state_dict())
    rename = _renaming(network)
    found = {}
    for name in names:
        new = rename(name)
        spellings = (new, f"{prefix}.{new}", new.removeprefix(f"{prefix}."))
        found[name] = next((one for one in spellings if one in own), name)
    return found


def _renaming(network: Any) -> Any:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # transformers 4 renames otherwise
        return lambda name: name
    renamings = [
        one for one in get_model_conversion_mapping(network) if isinstance(one, WeightRenaming)
    ]
    return lambda name: rename_source_key(name, renamings, [])[0]
