"""transformers and bitsandbytes quantizing in memory, beside a folder that a pass quantized."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hugging_face_folder import cannot_load

from convkit.artifact import Artifact, Precision
from convkit.step import Pass, Work

torch = pytest.importorskip("torch", reason="PyTorch runs the networks")
transformers = pytest.importorskip("transformers", reason="transformers loads the results")
pytest.importorskip("bitsandbytes", reason="bitsandbytes quantizes in memory")

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
"""Outputs by 32 and inputs by 64: bitsandbytes' kernels for newer CPUs take no others."""


def saved(path: Path, kind: str, dtype: str = "float32", **changes: Any) -> Path:
    """A folder with a seeded network of transformers, saved by it."""
    network_class = getattr(transformers, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = network_class(network_class.config_class(**changes))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.05)
    transformers.utils.logging.disable_progress_bar()
    network.to(getattr(torch, dtype)).save_pretrained(path)
    (path / "notes.txt").write_text("kept")
    return path


def quantize(step: Pass, folder: Path, out: Path, **options: Any) -> list[str]:
    """Runs a pass alone; what it says."""
    notes: list[str] = []
    work = Work((), cannot_load, notes.append, lambda what, done, total, unit="": None)
    step.rungs[0].run(Artifact(folder, "torch", Precision.FP32), out, work, **options)
    return notes


def loaded(folder: Path) -> Any:
    """The network as transformers loads it, nothing missing and nothing left over."""
    network_class = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    network, info = getattr(transformers, network_class).from_pretrained(
        folder, device_map="cpu", output_loading_info=True
    )
    assert not any(info.values()), info
    return network


def in_memory(folder: Path, **how: Any) -> Any:
    """The network as transformers and bitsandbytes quantize it while loading."""
    settings = transformers.BitsAndBytesConfig(**how)
    name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    return getattr(transformers, name).from_pretrained(
        folder, quantization_config=settings, device_map="cpu"
    )


def assert_same(ours: Any, theirs: Any, feeds: Mapping[str, Any]) -> None:
    """Every tensor bit for bit, and every number they compute."""
    assert_same_tensors(ours.state_dict(), theirs.state_dict())
    with torch.inference_mode():
        got, want = (network.eval()(**feeds)[0] for network in (ours, theirs))
    assert torch.equal(got, want)


def assert_same_tensors(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, want in theirs.items():
        same: Callable[[Any, Any], bool] = state_equal if ".quant_state." in name else torch.equal
        assert ours[name].dtype == want.dtype, name
        assert same(ours[name], want), name


def state_equal(one: Any, other: Any) -> bool:
    """Settings as JSON, of which ours may end in spaces."""
    ours, theirs = (json.loads(bytes(tensor.tolist())) for tensor in (one, other))
    return bool(ours == theirs)
