"""onnx_fp16 and onnx_bf16 on language models in folders: the cache, ranges, companions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit import graph, library
from convkit.artifact import Artifact
from convkit.errors import VerificationError
from convkit.formats.onnx_header import read_header
from convkit.onnx_language_graph import LanguageGraph, language_graph
from convkit.passes.onnx_fp16 import onnx_fp16
from convkit.report import Report
from convkit.step import Feeds, Work
from tests.language_models import continued, greedy, network_of
from tests.onnx_language_folders import changed_weight, huggingface_folder, onnx_folder

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

PROMPT = [0, 9, 33, 7, 250, 8]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("language")
    made = {}
    for name in ("llama", "gpt2"):
        source = huggingface_folder(name, place / name)
        made[name] = onnx_folder(source, place / f"{name}-onnx")
    made["fused"] = onnx_folder(place / "llama", place / "fused-onnx", attention="fused")
    return made


def interface(folder: Path) -> LanguageGraph:
    header = read_header(folder / "model.onnx")
    found = language_graph(header.inputs, header.outputs, folder)
    assert found is not None
    return found


def half(folder: Path, out: Path, precision: str = "fp16", **options: Any) -> Report:
    settings = {f"onnx-{precision}.{option}": value for option, value in options.items()}
    report = library.convert(folder, to="onnx", precision=precision, out=out, settings=settings)
    assert report.passed
    return report


def notes_of(source: Path, out: Path, feeds: list[Feeds], **options: Any) -> list[str]:
    """Runs the pass alone."""
    notes: list[str] = []
    work = Work(feeds, lambda artifact: None, notes.append, lambda *progress: None)
    onnx_fp16.rungs[0].run(graph.detect(source), out, work, **options)
    return notes


def samples_of(folder: Path) -> list[Feeds]:
    with library.load(folder) as runner:
        return [runner.example({"batch_size": 2, "sequence_length": 12}, 0)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "fused"])
def test_a_folder_becomes_a_folder_whose_cache_is_fp16(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    source, out = folders[name], tmp_path / "half"
    report = half(source, out)
    assert report.samples[0] == "input_ids (1, 64), attention_mask (1, 64)"
    assert {f.name for f in out.iterdir()} == {f.name for f in source.iterdir()}
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    given = interface(out)
    assert {spec.dtype for spec in given.past} == {"float16"}
    assert given.logits.dtype == "float32"
    assert (out / "model.onnx").stat().st_size < 0.7 * (source / "model.onnx").stat().st_size
    network = network_of("gpt2" if name == "gpt2" else "llama")
    with library.load(out) as runner:
        assert continued(runner.session(), PROMPT, 12) == greedy(network, PROMPT, 12)


def test_logits_are_fp16_where_outputs_need_not_stay(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    half(folders["llama"], tmp_path / "half", keep_io=False)
    assert interface(tmp_path / "half").logits.dtype == "float16"


def test_a_cache_becomes_bf16_as_well(folders: dict[str, Path], tmp_path: Path) -> None:
    half(folders["llama"], tmp_path / "half", "bf16")
    assert {spec.dtype for spec in interface(tmp_path / "half").past} == {"bfloat16"}


def test_keys_that_fp16_cannot_hold_stay_fp32_in_the_cache(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Keys a million times as large, queries a millionth: scores are what they were."""
    large = changed_weight(
        folders["llama"], tmp_path / "a", "model.layers.1.self_attn.k_proj.weight", 1e6
    )
    large = changed_weight(large, tmp_path / "b", "model.layers.1.self_attn.q_proj.weight", 1e-6)
    report = half(large, tmp_path / "half")
    told = " ".join(report.steps[0].notes)
    assert "layer_1/attention/key (Gemm)" in told
    given = interface(tmp_path / "half")
    assert {spec.name: spec.dtype for spec in given.past} == {
        "past_key_values.0.key": "float16",
        "past_key_values.0.value": "float16",
        "past_key_values.1.key": "float32",
        "past_key_values.1.value": "float16",
    }
    outputs = {spec.name: spec.dtype for spec in read_header(tmp_path / "half/model.onnx").outputs}
    assert outputs["present.1.key"] == "float32"
    assert outputs["present.1.value"] == "float16"


def test_unseen_overflow_fails_the_verification(folders: dict[str, Path], tmp_path: Path) -> None:
    large = changed_weight(
        folders["llama"], tmp_path / "a", "model.layers.0.self_attn.v_proj.weight", 1e6
    )
    with pytest.raises(VerificationError):
        half(large, tmp_path / "half", measure_ranges=False)


def test_operators_of_onnx_runtime_compute_in_fp16(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    notes_of(folders["fused"], tmp_path / "half", samples_of(folders["fused"]))
    model = onnx.load(tmp_path / "half" / "model.onnx")
    before = onnx.load(folders["fused"] / "model.onnx")
    names = ("GroupQueryAttention", "SkipSimplifiedLayerNormalization", "RotaryEmbedding")
    counts = [Counter(n.op_type for n in m.graph.node) for m in (before, model)]
    assert [counts[0][n] for n in names] == [counts[1][n] for n in names]
    made = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in names:
            assert made[node.input[0]].op_type != "Cast"
        if node.op_type == "SkipSimplifiedLayerNormalization":
            assert list(node.output)[1:3] == ["", ""]  # left out, as before
    masks = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT16 and not tensor.dims
    ]
    assert -30000.0 in masks


def test_norms_whose_squares_overflow_stay_fp32(folders: dict[str, Path], tmp_path: Path) -> None:
    """Residuals around 300: their squares leave fp16 inside the operator."""
    large = changed_weight(folders["fused"], tmp_path / "a", "model.embed_tokens.weight", 2e3)
    notes = notes_of(large, tmp_path / "half", samples_of(large))
    told = " ".join(note for note in notes if "inside" in note)
    assert "layer_0/normalized (SkipSimplifiedLayerNormalization)" in told


def test_data_beside_the_graph_keeps_its_name_and_other_graphs_stay_behind(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "model"
    (source / "onnx").mkdir(parents=True)
    for file in folders["llama"].glob("*.json"):
        (source / file.name).write_bytes(file.read_bytes())
    onnx.save(
        onnx.load(folders["llama"] / "model.onnx"),
        source / "onnx" / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
    )
    (source / "onnx" / "model_quantized.onnx").write_bytes(b"another")
    (source / ".cache").mkdir()
    (source / ".cache" / "lock").write_bytes(b"hidden")
    (source / "runs").mkdir()
    (source / "runs" / "notes.txt").write_text("kept")
    out = tmp_path / "half"
    out.mkdir()
    notes_of(source, out, samples_of(source))
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    companions = {file.name for file in folders["llama"].glob("*.json")}
    assert files == {*companions, "onnx/model.onnx", "onnx/model.onnx_data", "runs/notes.txt"}
    with library.load(out) as runner:
        assert np.isfinite(runner(samples_of(source)[0])["logits"]).all()


def test_a_single_file_is_made_of_a_folder_on_request(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    half(folders["llama"], tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").is_file()
    assert not (tmp_path / "tokenizer.json").exists()


def test_islands_of_one_kind_are_told_in_one_sentence(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    large = changed_weight(folders["llama"], tmp_path / "a", "model.embed_tokens.weight", 1e4)
    notes = notes_of(large, tmp_path / "half", samples_of(large))
    told = [note for note in notes if note.startswith("fp32: |x|")]
    assert len(told) < 5
    assert "more values: " in told[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_a_hugging_face_folder_goes_to_fp16_at_once(name: str, tmp_path: Path) -> None:
    source = huggingface_folder(name, tmp_path / "Net-0.1B")
    report = library.convert(source, to="onnx", precision="fp16")
    assert report.passed
    assert report.artifact.path == tmp_path / "Net-0.1B-fp16-onnx"
    assert [step.name for step in report.steps] == ["torch-to-onnx", "onnx-fp16"]
    artifact: Artifact = graph.detect(report.artifact.path)
    assert str(artifact.precision) == "fp16"
    with library.load(report.artifact.path) as runner:
        assert continued(runner.session(), PROMPT, 12) == greedy(network_of(name), PROMPT, 12)
