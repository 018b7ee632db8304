"""A network's journey: transformers' folder, GGUF in float32, and the folder that comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convkit.checkpoint.folder import open_folder
from convkit.families import mapping
from convkit.families.config import Config
from convkit.families.family import Family, family_of, family_of_architecture
from convkit.ggml.file import GgufFile
from convkit.ggml.llama import LlamaModel
from convkit.ggml.model import GgufModel, Output, write
from convkit.ggml.types import TYPES
from convkit.ggml.values import typed
from tests.families.networks import HALF_GELU, Network

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Made:
    """A GGUF file.

    Attributes:
        path: the file.
        family: of the network.
        config: of the network.
        mapped: its tensors.
    """

    path: Path
    family: Family
    config: Config
    mapped: mapping.Mapped

    def computed(self, ids: torch.Tensor) -> Array:
        """What llama.cpp computes: logits, or vectors of tokens."""
        with LlamaModel(self.path, threads=1) as model:
            read = model.embeddings if self.family.gives_embeddings else model.logits
            return read(ids.tolist())


def to_gguf(folder: Path, path: Path, metadata: Mapping[str, Any] | None = None) -> Made:
    """A folder as GGUF in float32, without a tokenizer; `metadata` replaces some."""
    with open_folder(folder) as checkpoint:
        config = Config(checkpoint.config)
        family = family_of(config, list(checkpoint.tensors))
        mapped = mapping.to_gguf(family, config, checkpoint.tensors, checkpoint.other)
        keys = {
            "general.architecture": family.architecture,
            "ARCH.vocab_size": int(config["vocab_size"]),
            "tokenizer.ggml.model": "none",
            **family.metadata(config),
            **family.beside(folder),
            **(metadata or {}),
        }
        content = {
            key.replace("ARCH", family.architecture): typed(value) for key, value in keys.items()
        }
        outputs = (Output(name, rows, TYPES["F32"]) for name, rows in mapped.tensors.items())
        write(GgufModel(content, tuple(outputs)), path)
    return Made(path, family, config, mapped)


def back(path: Path, folder: Path) -> dict[str, Any]:
    """A GGUF file as a folder; gives its configuration."""
    from safetensors.torch import save_file

    with GgufFile(path) as file:
        family = family_of_architecture(file.header.architecture)
        stored = mapping.stored_of(file.header.get, file.tensors)
        config = family.config(stored)
        mapped = mapping.to_torch(family, Config(config), file.tensors)
        arrays = {
            name: torch.from_numpy(np.array(rows.array())) for name, rows in mapped.tensors.items()
        }
        documents = {"config.json": config, **family.files(stored)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    for name, document in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(document))
    return config


def loaded(folder: Path) -> Any:
    """The network in a folder, as transformers loads it."""
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    network, report = getattr(transformers, name).from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    missing = {name for name in report["missing_keys"] if not name.startswith("pooler.")}
    assert not missing
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return network.eval()


def computed(network: Any, ids: torch.Tensor) -> Array:
    """What transformers computes: logits, or vectors of tokens."""
    encoder = getattr(network, "bert", network)
    with torch.inference_mode():
        found = encoder(ids[None])
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state)[0].numpy()


class HalfGelu(torch.nn.Module):
    """gelu as llama.cpp has it on the CPU: by tanh, in a table from half precision to half.

    Source: ggml, `ggml_vec_gelu_f32` in `ggml/src/ggml-cpu/vec.h`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        looked_up = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x.abs() < 10, looked_up, x.clamp(min=0))


def take_half_gelu(network: Any) -> None:
    """Gives a network the activation that llama.cpp computes."""
    for module in network.modules():
        for name in {"act", "act_fn", "intermediate_act_fn"} & module._modules.keys():
            setattr(module, name, HalfGelu())


def divergence(reference: Array, candidate: Array) -> float:
    """Mean KL of the distributions that rows are the logits of, in nats."""
    logs = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (reference, candidate))
    p, q = logs
    return float((p.exp() * (p - q)).sum(-1).mean())


@dataclass(frozen=True)
class Journey:
    """What came out.

    Attributes:
        network: that set out.
        folder: where it was saved.
        made: the GGUF file.
        reference: what transformers computes.
        with_half_gelu: what it computes with llama.cpp's gelu, where the network has one.
        there: what llama.cpp computes.
        config: the configuration that came back.
        again: what transformers computes with what came back.
        returned: the folder that came back.
    """

    network: Network
    folder: Path
    made: Made
    reference: Array
    with_half_gelu: Array
    there: Array
    config: Mapping[str, Any]
    again: Array
    returned: Path


def travel(network: Network, place: Path) -> Journey:
    """Goes there and back."""
    built, ids = network.build(), network.ids()
    built.save_pretrained(place / "hf")
    made = to_gguf(place / "hf", place / "model.gguf")
    config = back(made.path, place / "back")
    reference = with_half_gelu = computed(built, ids)
    if network.limit == HALF_GELU:
        take_half_gelu(built)
        with_half_gelu = computed(built, ids)
    return Journey(
        network,
        place / "hf",
        made,
        reference,
        with_half_gelu,
        made.computed(ids),
        config,
        computed(loaded(place / "back"), ids),
        place / "back",
    )
