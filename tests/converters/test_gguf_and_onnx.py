"""GGUF to ONNX with its quantized weights as they are, and graphs of convkit's own back to GGUF."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import convkit
from convkit import graph, library, pipeline, recording, verification
from convkit.artifact import Precision
from convkit.errors import UnsupportedError
from convkit.ggml.file import GgufFile
from convkit.recipe import Recipe
from tests.language_folders import llama_file, llama_folder

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("language") / "model")


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    with GgufFile(path) as file:
        return {name: tensor.array() for name, tensor in file.tensors.items()}


@pytest.mark.parametrize("scheme", ["q4_k_m", "q8_0"])
def test_a_graph_of_quantized_weights_predicts_as_llama_cpp_does(
    folder: Path, tmp_path: Path, scheme: str
) -> None:
    convkit.convert(folder, to="gguf", scheme=scheme, out=tmp_path / "m.gguf", verify=False)
    settings = {"gguf-to-onnx.accuracy_level": 1}
    report = convkit.convert(
        tmp_path / "m.gguf", to="onnx", out=tmp_path / "graph", settings=settings
    )
    assert report.passed
    operators = convkit.inspect(tmp_path / "graph")[1].operators
    assert operators["com.microsoft::MatMulNBits"] >= 14
    # Six bits become eight, and scales of blocks are float32: still far from the float graph.
    assert report.size_bytes < 1.7 * report.source_size_bytes
    assert "metadata" not in convkit.inspect(tmp_path / "graph")[1].details  # convkit's own
    assert {path.name for path in (tmp_path / "graph").iterdir()} >= {
        "model.onnx",
        "config.json",
        "tokenizer.json",
        "generation_config.json",
    }


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float_weights_stay_float(tmp_path: Path, dtype: str) -> None:
    report = convkit.convert(llama_file(tmp_path / "m.gguf", dtype), to="onnx", out=tmp_path / "g")
    expected = {"float32": Precision.FP32, "float16": Precision.FP16}[dtype]
    assert report.passed
    assert report.artifact.precision is expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_folders_in_half_precision_become_graphs_of_every_other_precision(
    tmp_path: Path, dtype: str
) -> None:
    folder = llama_folder(tmp_path / "model", dtype)
    torch = graph.discover().format("torch")
    source = recording.record_source(graph.detect(folder), None, torch)
    for precision in ("fp32", "fp16", "int8", "q4"):
        made = convkit.convert(
            folder, to="onnx", precision=precision, out=tmp_path / precision, verify=False
        ).artifact
        with library.open_as_verified(made) as runner:
            compared = verification.compare(source, runner, made.precision)
        assert compared.passed, (precision, compared.failures)


def test_a_graph_of_our_own_comes_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    direct, over_graph = tmp_path / "direct.gguf", tmp_path / "over.gguf"
    convkit.convert(folder, to="gguf", out=direct, verify=False)
    convkit.convert(folder, to="onnx", out=tmp_path / "graph", verify=False)
    assert convkit.convert(tmp_path / "graph", to="gguf", out=over_graph).passed
    assert direct.read_bytes() == over_graph.read_bytes().replace(b"graph", b"model")


@pytest.mark.parametrize("scheme", ["q4_0", "q4_k_m"])  # with offsets and without, at 4 and 8 bits
def test_quantized_graphs_come_back_with_the_numbers_they_stand_for(
    folder: Path, tmp_path: Path, scheme: str
) -> None:
    file, back = tmp_path / "m.gguf", tmp_path / "back.gguf"
    convkit.convert(folder, to="gguf", scheme=scheme, out=file, verify=False)
    convkit.convert(file, to="onnx", out=tmp_path / "graph", verify=False)
    assert convkit.convert(tmp_path / "graph", to="gguf", out=back).passed
    there, again = tensors_of(file), tensors_of(back)
    assert there.keys() == again.keys()
    for name, expected in there.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(again[name], expected, atol=1e-6 * scale, err_msg=name)


def test_experts_stacked_in_a_graph_come_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    folder = llama_folder(tmp_path / "model")
    config = transformers.MixtralConfig(
        vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"],
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    (folder / "model.safetensors").unlink()
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    convkit.convert(folder, to="gguf", out=tmp_path / "direct.gguf", verify=False)
    convkit.convert(folder, to="onnx", out=tmp_path / "graph", verify=False)
    convkit.convert(tmp_path / "graph", to="gguf", out=tmp_path / "over.gguf", verify=False)
    there, again = tensors_of(tmp_path / "direct.gguf"), tensors_of(tmp_path / "over.gguf")
    assert there.keys() == again.keys()
    assert all(np.array_equal(there[name], again[name]) for name in there)


def test_a_foreign_graph_is_refused_with_the_way_that_works(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["":20]> g (float[b,4] x) => (float[b,4] y) '
    onnx.save(onnx.parser.parse_model(text + "{ y = Relu(x) }"), tmp_path / "relu.onnx")
    with pytest.raises(UnsupportedError, match="does not say which Hugging Face model") as caught:
        convkit.convert(tmp_path / "relu.onnx", to="gguf")
    assert "convkit convert FOLDER --to gguf" in caught.value.hint


def test_a_foreign_graph_is_not_planned_through_gguf(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["":20]> g (float[b,4] x) => (float[b,4] y) '
    onnx.save(onnx.parser.parse_model(text + "{ y = Relu(x) }"), tmp_path / "relu.onnx")
    route = pipeline.plan(
        Recipe(model=str(tmp_path / "relu.onnx"), to="onnx", precision="q4")
    ).route
    assert [step.name for step in route.steps] == ["onnx-q4"]


def test_a_scheme_of_gguf_becomes_a_graph_by_way_of_it(folder: Path, tmp_path: Path) -> None:
    convkit.convert(folder, to="gguf", precision="q4", out=tmp_path / "m.gguf", verify=False)
    job = pipeline.plan(Recipe(model=str(tmp_path / "m.gguf"), to="onnx"))
    assert [step.name for step in job.route.steps] == ["gguf-to-onnx"]
    assert graph.after(job.route.steps[-1], job.route.states[-2]) == ("onnx", Precision.Q4)
