from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convkit import graph, library, pipeline
from convkit.artifact import Artifact
from convkit.converters.torch_to_onnx.exported_cache import exported_cache
from convkit.errors import RungSkipped
from convkit.formats.onnx_header import read_header
from convkit.formats.onnx_language import OnnxLanguageRunner
from convkit.recipe import Recipe
from convkit.step import Work, ladder
from tests.language_models import continued, greedy, language_folder, network_of

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
for package in ("transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed")

PROMPT = [0, 9, 33, 7, 250, 8]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def seen(folder: Path) -> Artifact:
    """The model with inputs and outputs as its run shows them."""
    with library.load(folder) as runner:
        for sizes in ({"batch": 1, "sequence": 5}, {"batch": 3, "sequence": 8}):
            runner(runner.example(sizes, 0))
        return replace(graph.detect(folder), inputs=runner.inputs, outputs=runner.outputs)


def exported(source: Artifact, out: Path, **options: int) -> list[str]:
    """Runs the rung alone; its notes."""
    notes: list[str] = []
    load = graph.discover().format("torch").load
    assert load is not None
    work = Work([], load, notes.append, lambda what, done, total: None)
    exported_cache.run(source, out, work, **options)
    return notes


def check_against_transformers(name: str, folder: Path, out: Path) -> None:
    """Logits of padded batches, and a text of 20 tokens."""
    with library.load(folder) as source, library.load(out) as runner:
        assert isinstance(runner, OnnxLanguageRunner)
        assert runner.has_cache
        for sizes in ({"batch": 1, "sequence": 11}, {"batch": 3, "sequence": 13}):
            feeds = source.example(sizes, 0)
            assert (feeds["attention_mask"] == 0).any() == (sizes["batch"] > 1)
            np.testing.assert_allclose(
                runner(feeds)["logits"], source(feeds)["logits"], rtol=0, atol=1e-4
            )
        wanted = greedy(network_of(name), PROMPT, 20)
        assert continued(runner.session(), PROMPT, 20) == wanted


def test_the_export_is_a_folder_as_optimum_writes_it_and_continues_as_transformers_does(
    tmp_path: Path,
) -> None:
    folder = language_folder("gpt_neox", tmp_path / "model")
    out = tmp_path / "NeoX-0.1B"  # no suffix, whatever pathlib says
    exported(seen(folder), out)
    assert {file.name for file in out.iterdir()} == {
        "model.onnx", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    header = read_header(out / "model.onnx")
    text = "int64[batch_size, sequence_length]"
    assert [str(spec) for spec in header.inputs] == [
        f"input_ids: {text}",
        "attention_mask: int64[batch_size, past_sequence_length + sequence_length]",
        f"position_ids: {text}",
        *(
            f"past_key_values.{layer}.{part}: float32[batch_size, 4, past_sequence_length, 8]"
            for layer in range(2)
            for part in ("key", "value")
        ),
    ]
    assert [spec.name for spec in header.outputs] == [
        "logits", *(f"present.{i}.{part}" for i in range(2) for part in ("key", "value")),
    ]  # fmt: skip
    check_against_transformers("gpt_neox", folder, out)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "olmoe", "bloom"])
def test_sliding_windows_experts_and_biases_are_exported_with_the_cache(
    name: str, tmp_path: Path
) -> None:
    folder = language_folder(name, tmp_path / "model")
    notes = exported(seen(folder), tmp_path / "out")
    assert bool(notes) == (name == "olmoe")
    check_against_transformers(name, folder, tmp_path / "out")


@pytest.mark.slow
def test_positions_that_follow_from_the_mask_are_left_to_the_graph(tmp_path: Path) -> None:
    folder = language_folder("opt", tmp_path / "model", has_tokenizer=False)
    exported(seen(folder), tmp_path / "opt.onnx")
    names = [spec.name for spec in read_header(tmp_path / "opt.onnx").inputs]
    assert names[:3] == ["input_ids", "attention_mask", "past_key_values.0.key"]
    assert not (tmp_path / "config.json").exists()
    check_against_transformers("opt", folder, tmp_path / "opt.onnx")


@pytest.mark.parametrize(
    ("name", "words"),
    [("bert", "continues no texts|keeps no keys"), ("mamba", "no cache of keys and values")],
)
def test_networks_without_such_a_cache_are_passed_over(
    name: str, words: str, tmp_path: Path
) -> None:
    source = seen(language_folder(name, tmp_path / "model", has_tokenizer=False))
    with pytest.raises(RungSkipped, match=words):
        exported(source, tmp_path / "out")
    with pytest.raises(RungSkipped, match="opset 18 and above"):
        exported(source, tmp_path / "out", opset=17)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_ladder_verifies_the_cache_in_half_precision(tmp_path: Path, dtype: str) -> None:
    folder = language_folder("olmo", tmp_path / "model")
    network_of("olmo").to(getattr(torch, dtype)).save_pretrained(folder)
    found = graph.discover()
    step = ladder("torch", "onnx", exported_cache, carries=("fp32", "fp16", "bf16"), loses="-")
    only = replace(found, steps={step.name: step})
    recipe = Recipe(model=str(folder), to="onnx", out=tmp_path / "out")
    report = pipeline.run(recipe, converters=only)
    assert report.passed
    assert report.artifact.path == tmp_path / "out"
    assert json.loads((tmp_path / "out.convkit.json").read_text())["format"] == "onnx"
    assert report.artifact.precision == report.source.precision
