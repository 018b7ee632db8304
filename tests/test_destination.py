"""What results are called where the user does not say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convkit.artifact import Artifact, Opening, Precision
from convkit.converters.torch_to_onnx import torch_to_onnx
from convkit.destination import default_destination
from convkit.graph import Route, discover
from convkit.opset_step import onnx_opset


def named(source: Path, format: str, *steps: str, scheme: str | None = None) -> str:
    """The default name of a result, its steps by name."""
    found = discover()
    taken = [onnx_opset if name == "onnx-opset" else found.step(name) for name in steps]
    route = Route((format, Precision.FP32), tuple(taken), 0.0)
    artifact = Artifact(source, format, Precision.FP32)
    out = default_destination(artifact, str(source), route, found, scheme)
    assert out.parent == source.parent
    return out.name


def folder(path: Path, architecture: str = "LlamaForCausalLM") -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return path


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (("torch-to-onnx",), "SmolLM2-1.7B-onnx"),
        (("torch-to-onnx", "onnx-fp16"), "SmolLM2-1.7B-fp16-onnx"),
        (("torch-to-onnx", "onnx-fp16", "onnx-opset"), "SmolLM2-1.7B-fp16-onnx"),
        (("torch-fp16",), "SmolLM2-1.7B-fp16"),
        (("torch-to-gguf",), "SmolLM2-1.7B.gguf"),
        (("torch-to-onnx", "onnx-to-savedmodel"), "SmolLM2-1.7B-savedmodel"),
    ],
)
def test_folders_of_language_models_are_called_as_on_hubs(
    steps: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    assert named(folder(tmp_path / "SmolLM2-1.7B"), "torch", *steps) == name


def test_what_lies_in_a_cache_of_a_hub_is_called_as_there_and_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "models--HuggingFaceTB--SmolLM2-135M" / "snapshots" / "93efa2f"
    snapshot.parent.mkdir(parents=True)
    found = discover()
    route = Route(("torch", Precision.FP32), (found.step("torch-to-gguf"),), 0.0)
    artifact = Artifact(folder(snapshot), "torch", Precision.FP32)
    out = default_destination(artifact, str(snapshot), route, found, None)
    assert out.absolute() == tmp_path / "SmolLM2-135M.gguf"
    route = Route(("gguf", Precision.FP32), (found.step("gguf-q4"),), 0.0)
    file = snapshot / "smollm2.gguf"
    artifact = Artifact(file, "gguf", Precision.FP32)
    out = default_destination(artifact, str(file), route, found, None)
    assert out.absolute() == tmp_path / "smollm2.q4.gguf"


def test_results_of_a_split_model_are_named_after_all_of_it(tmp_path: Path) -> None:
    source = tmp_path / "llama-00001-of-00003.gguf"
    assert named(source, "gguf", "gguf-to-torch") == "llama-hf"


def test_a_scheme_stands_for_its_precision(tmp_path: Path) -> None:
    source = folder(tmp_path / "SmolLM2-1.7B")
    steps = ("torch-to-gguf", "gguf-q4")
    assert named(source, "torch", *steps, scheme="q4_k_s") == "SmolLM2-1.7B.q4_k_s.gguf"


def test_other_folders_become_files_as_ever(tmp_path: Path) -> None:
    source = folder(tmp_path / "my-bert", "BertModel")
    assert named(source, "torch", "torch-to-onnx") == "my-bert.onnx"
    assert named(source, "torch", "torch-to-onnx", "onnx-fp16") == "my-bert.fp16.onnx"


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (("onnx-fp16",), "net-fp16-onnx"),
        (("onnx-opset",), "net-onnx"),
        (("onnx-to-torch",), "net-onnx.pt2"),
        (("onnx-to-savedmodel",), "net-savedmodel"),
    ],
)
def test_a_folder_has_the_ending_of_its_kind_once(
    steps: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    assert named(folder(tmp_path / "net-onnx"), "onnx", *steps) == name


def test_a_folder_without_an_ending_gets_none_that_says_nothing_new(tmp_path: Path) -> None:
    assert named(folder(tmp_path / "net"), "onnx", "onnx-fp16") == "net-fp16"


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (("onnx-fp16",), "net.v2.fp16.onnx"),
        (("onnx-to-savedmodel",), "net.v2"),
        (("onnx-to-torch",), "net.v2.pt2"),
    ],
)
def test_files_are_called_with_dots(steps: tuple[str, ...], name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.v2.onnx"
    path.touch()
    assert named(path, "onnx", *steps) == name


def test_results_of_a_factory_go_to_the_working_folder(tmp_path: Path) -> None:
    opening = Opening(factory="tests.tiny_models:Encoder")
    source = Artifact(tmp_path / "tiny_models.py", "torch", Precision.FP32, opening=opening)
    route = Route(("torch", Precision.FP32), (torch_to_onnx, discover().step("onnx-fp16")), 0.0)
    out = default_destination(source, "tests.tiny_models:Encoder", route, discover(), None)
    assert out == Path("encoder.fp16.onnx")
