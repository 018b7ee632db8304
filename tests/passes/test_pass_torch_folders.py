"""What torch-fp16 and torch-bf16 make of a Hugging Face folder; safetensors reads the results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hugging_face_folder import INDEX, cannot_load, lower, make_folder, safetensors_torch

from convkit.artifact import Artifact, Precision
from convkit.passes.torch_bf16 import torch_bf16
from convkit.passes.torch_fp16 import torch_fp16
from convkit.step import Work

torch = pytest.importorskip("torch", reason="PyTorch is the reference for rounding")

PASSES = {"float16": torch_fp16, "bfloat16": torch_bf16}


@pytest.fixture(params=PASSES)
def target(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def weights() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "embeddings.weight": torch.randn(50, 8, generator=generator),
        "scale": torch.tensor(0.1),
        "odd": torch.randn(3, generator=generator),
        "empty": torch.zeros(0, 4),
        "wide": torch.randn(6, generator=generator, dtype=torch.float64),
        "position_ids": torch.arange(7),
        "mask": torch.tensor([True, False, True]),
        "already.half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    }


def expected(tensor: Any, target: str) -> Any:
    is_wide = tensor.dtype in (torch.float32, torch.float64)
    return tensor.to(getattr(torch, target)) if is_wide else tensor


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_floating_tensors_are_rounded_and_others_untouched(
    tmp_path: Path, target: str, weights: dict[str, Any]
) -> None:
    folder = make_folder(tmp_path / "model", weights)
    notes = lower(PASSES[target], folder, tmp_path / "out")
    wanted = {name: expected(tensor, target) for name, tensor in weights.items()}
    assert_same(safetensors_torch.load_file(tmp_path / "out/model.safetensors"), wanted)
    assert notes == []


def test_the_source_folder_is_not_touched(tmp_path: Path, weights: dict[str, Any]) -> None:
    folder = make_folder(tmp_path / "model", weights)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    lower(torch_fp16, folder, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_shards_keep_their_names_and_the_index_fits_them(
    tmp_path: Path, target: str, weights: dict[str, Any]
) -> None:
    folder = make_folder(tmp_path / "model", {})
    (folder / "model.safetensors").unlink()
    shards: dict[str, dict[str, Any]] = {}
    for position, (name, tensor) in enumerate(weights.items()):
        shards.setdefault(f"model-0000{position % 2 + 1}-of-00002.safetensors", {})[name] = tensor
    for file, tensors in shards.items():
        safetensors_torch.save_file(tensors, folder / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    out = tmp_path / "out"
    lower(PASSES[target], folder, out)
    index = json.loads((out / INDEX).read_text())
    assert index["weight_map"] == weight_map
    total = 0
    for file, tensors in shards.items():
        wanted = {name: expected(tensor, target) for name, tensor in tensors.items()}
        assert_same(safetensors_torch.load_file(out / file), wanted)
        total += sum(tensor.nbytes for tensor in wanted.values())
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_pickled_weights_become_safetensors_with_tied_tensors_once(
    tmp_path: Path, is_zip: bool, weights: dict[str, Any]
) -> None:
    folder = make_folder(tmp_path / "model", {})
    (folder / "model.safetensors").unlink()
    state = {**weights, "decoder.weight": weights["embeddings.weight"]}
    state["transposed"] = weights["embeddings.weight"].T
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)

    out = tmp_path / "out"
    lower(torch_fp16, folder, out)
    wanted = {name: expected(tensor, "float16") for name, tensor in weights.items()}
    wanted["transposed"] = wanted["embeddings.weight"].T
    assert_same(safetensors_torch.load_file(out / "model.safetensors"), wanted)
    with _safe_open(out / "model.safetensors") as file:
        assert file.metadata()["decoder.weight"] == "embeddings.weight"
    assert not (out / "pytorch_model.bin").exists()


def _safe_open(path: Path) -> Any:
    import safetensors

    return safetensors.safe_open(path, "pt")


def test_tensors_begin_at_multiples_of_their_item_size(
    tmp_path: Path, weights: dict[str, Any]
) -> None:
    weights["odd.wide"] = torch.tensor([1e6, 1.0, 2.0])
    weights["odd.bytes"] = torch.arange(5, dtype=torch.uint8)
    folder = make_folder(tmp_path / "model", weights)
    lower(torch_fp16, folder, tmp_path / "out")
    content = (tmp_path / "out/model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    sizes = {"F16": 2, "F32": 4, "F64": 8, "I64": 8, "BOOL": 1, "U8": 1}
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    for name, entry in header.items():
        assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0, name


def test_a_tensor_beyond_half_range_stays_wide_and_is_named(tmp_path: Path) -> None:
    big = torch.full((3_000_000,), 0.25)  # several pieces; the value that overflows is in the last
    big[-1] = -70000.0
    tensors = {"a.big": big, "b": torch.tensor([0.5, float("inf")]), "c": torch.ones(2)}
    folder = make_folder(tmp_path / "model", tensors, torch_dtype="float32")
    notes = lower(torch_fp16, folder, tmp_path / "out")
    wanted = {"a.big": big, "b": tensors["b"].half(), "c": tensors["c"].half()}
    assert_same(safetensors_torch.load_file(tmp_path / "out/model.safetensors"), wanted)
    assert len(notes) == 1
    assert notes[0].startswith("beyond the range of float16, so left as they are: a.big;")
    # A loader that casts everything to config.json's dtype would make that value infinite.
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"dtype": "float32"}, {"dtype": "float16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "float16"}),
        ({}, {"torch_dtype": "float16"}),
        (
            {"dtype": "float32", "text_config": {"dtype": "float32", "n": 1}},
            {"dtype": "float16", "text_config": {"dtype": "float16", "n": 1}},
        ),
    ],
    ids=["dtype", "torch_dtype", "neither", "nested"],
)
def test_the_configuration_names_the_new_dtype(
    tmp_path: Path, config: dict[str, Any], changed: dict[str, Any]
) -> None:
    folder = make_folder(tmp_path / "model", {"w": torch.ones(2)}, **config)
    lower(torch_fp16, folder, tmp_path / "out")
    found = json.loads((tmp_path / "out/config.json").read_text())
    assert found == {"model_type": "bert", **changed}


def test_companions_are_copied_and_other_weights_left_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", {"w": torch.ones(2)})
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").write_bytes(b"x")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / ".gitattributes").write_text("x")
    notes = lower(torch_fp16, folder, tmp_path / "out")
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    assert files == {"1_Pooling/config.json", "config.json", "tokenizer.json", "model.safetensors"}
    assert notes == [
        "other weights in the folder were not copied: onnx/model.onnx, pytorch_model.bin"
    ]


def test_progress_counts_the_bytes_of_the_weights(tmp_path: Path, weights: dict[str, Any]) -> None:
    folder = make_folder(tmp_path / "model", weights)
    seen: list[Any] = []
    work = Work((), cannot_load, lambda note: None, lambda *told: seen.append(told))
    source = Artifact(folder, "torch", Precision.FP32)
    torch_fp16.rungs[0].run(source, tmp_path / "out", work)
    size = (folder / "model.safetensors").stat().st_size
    assert [told[1] for told in seen] == sorted(told[1] for told in seen)
    assert seen[-1] == ("float16 weights", size, size, "B")


def test_a_gigantic_tensor_needs_a_few_megabytes_and_no_framework(tmp_path: Path) -> None:
    import safetensors.numpy

    folder = make_folder(tmp_path / "model", {})
    tensor = np.ones((8192, 8192), np.float32)  # 256 MiB
    safetensors.numpy.save_file({"w": tensor}, folder / "model.safetensors")
    code = f"""
import sys
from pathlib import Path
from convkit.artifact import Artifact, Precision
from convkit.passes.torch_fp16 import torch_fp16
from convkit.resources import peak_rss_bytes
from convkit.step import Work
work = Work((), None, print, lambda *told: None)
source = Artifact(Path({str(folder)!r}), "torch", Precision.FP32)
torch_fp16.rungs[0].run(source, Path({str(tmp_path / "out")!r}), work)
assert "torch" not in sys.modules and "safetensors" not in sys.modules
print(peak_rss_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The interpreter with numpy takes about 35 MiB, the pieces in flight about 40.
    assert int(done.stdout) < 128 << 20


@pytest.mark.slow
def test_transformers_loads_the_result_with_tied_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", reason="transformers reads the result")
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=99, n_positions=16)
    torch.manual_seed(1)
    network = transformers.GPT2LMHeadModel(config).eval()
    network.save_pretrained(tmp_path / "model")
    lower(torch_fp16, tmp_path / "model", tmp_path / "out")
    lowered, told = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert lowered.dtype == torch.float16
    ids = torch.arange(10)[None]
    with torch.no_grad():
        difference = (network(ids).logits - lowered.float()(ids).logits).abs().max()
    # Weights of about 0.02 lose at most 2^-12 of themselves; two layers add little.
    assert difference < 1e-3
