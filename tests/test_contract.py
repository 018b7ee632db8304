"""What every step promises, checked on a small real model for each step there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convkit
from convkit import graph, library, pipeline
from convkit.graph import ConverterGraph
from convkit.recipe import Recipe
from convkit.step import Converter, Pass, Step
from convkit.tensorflow_import import import_tensorflow
from tests.language_folders import llama_file, llama_folder

pytestmark = pytest.mark.filterwarnings("ignore")

_IMAGE = "input=float32[batch,3,16,16]"


def encoder_folder(folder: Path) -> Path:
    """A Hugging Face folder: a BERT of two layers with seeded weights."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=211,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder / "encoder")
    return folder / "encoder"


def traced_network(folder: Path) -> Path:
    """A TorchScript file: a traced convolutional network."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    nn = torch.nn
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4096, 8),
    ).eval()
    torch.jit.trace(network, torch.zeros(2, 3, 16, 16)).save(folder / "network.pt")
    return folder / "network.pt"


def linear_graph(folder: Path) -> Path:
    """An ONNX file: two matrix products with a Tanh between them."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    generator = np.random.default_rng(0)
    weights = {
        "w0": generator.standard_normal((64, 256)).astype(np.float32) / 8,
        "w1": generator.standard_normal((256, 8)).astype(np.float32) / 16,
    }
    text = """<ir_version: 10, opset_import: ["": 20]>
    two_layers (float[batch,64] x) => (float[batch,8] y)
    { a = MatMul(x, w0)  b = Tanh(a)  y = MatMul(b, w1) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    onnx.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


def saved_module(folder: Path) -> Path:
    """A SavedModel: a `tf.Module` with two matrix products and a Tanh between them."""
    tensorflow = imported_tensorflow()
    weights = two_layers()

    class TwoLayers(tensorflow.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = map(tensorflow.Variable, weights)

        @tensorflow.function(
            input_signature=[tensorflow.TensorSpec((None, 64), tensorflow.float32, "x")]
        )
        def __call__(self, x: Any) -> dict[str, Any]:
            return {"y": tensorflow.tanh(x @ self.first) @ self.second}

    module = TwoLayers()
    tensorflow.saved_model.save(
        module, str(folder / "saved"), signatures={"serving_default": module.__call__}
    )
    return folder / "saved"


def keras_archive(folder: Path) -> Path:
    """A `.keras` file: a convolutional network."""
    imported_tensorflow()
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((16, 16, 3), name="image"),
            layers.Conv2D(16, 3, activation="relu", name="convolution"),
            layers.MaxPooling2D(name="pooling"),
            layers.Flatten(name="flat"),
            layers.Dense(8, activation="softmax", name="scores"),
        ]
    )
    network.save(folder / "network.keras")
    return folder / "network.keras"


def frozen_graph(folder: Path) -> Path:
    """A GraphDef: two matrix products of constants with a Tanh between them."""
    tensorflow = imported_tensorflow()
    first, second = two_layers()
    graph = tensorflow.Graph()
    with graph.as_default():
        x = tensorflow.compat.v1.placeholder(tensorflow.float32, (None, 64), name="x")
        hidden = tensorflow.tanh(x @ tensorflow.constant(first))
        tensorflow.identity(hidden @ tensorflow.constant(second), name="y")
    (folder / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    return folder / "graph.pb"


def imported_tensorflow() -> Any:
    """TensorFlow, or a skip with the reason."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    return import_tensorflow()


def two_layers() -> tuple[Any, Any]:
    """Seeded weights of 64 x 256 and 256 x 8."""
    generator = np.random.default_rng(0)
    first = generator.standard_normal((64, 256)).astype(np.float32) / 8
    return first, generator.standard_normal((256, 8)).astype(np.float32) / 16


def language_model(folder: Path) -> Path:
    """A Hugging Face folder: a Llama of two layers with its tokenizer."""
    return llama_folder(folder / "language")


def language_file(folder: Path) -> Path:
    """A GGUF file of the same."""
    return llama_file(folder / "language.gguf")


def language_graph(folder: Path) -> Path:
    """An ONNX folder of the same, built by convkit."""
    convkit.convert(language_model(folder), to="onnx", out=folder / "graph", verify=False)
    return folder / "graph"


def language_file_in_bfloat16(folder: Path) -> Path:
    """The same in bfloat16."""
    return llama_file(folder / "language.gguf", "bfloat16")


_MAKERS = {
    "gguf": language_file,
    "torch": encoder_folder,
    "torchscript": traced_network,
    "onnx": linear_graph,
    "savedmodel": saved_module,
    "keras": keras_archive,
    "tf_frozen": frozen_graph,
}
_MAKERS_OF_STEPS = {
    "torch-to-gguf": language_model,
    "onnx-to-gguf": language_graph,
    "gguf-fp32": language_file_in_bfloat16,
}
"""Steps that want another model of their format."""
_INPUTS = {"torchscript": (_IMAGE,)}
_STEPS = list(graph.discover().steps.values())


def converted(step: Step, tmp_path: Path) -> tuple[Path, dict[Path, bytes], pipeline.Report]:
    """Runs one step alone; the source, its bytes before, and the report."""
    found = graph.discover()
    source = step.source if isinstance(step, Converter) else step.format
    model = _MAKERS_OF_STEPS.get(step.name, _MAKERS[source])(tmp_path)
    files = [model] if model.is_file() else [p for p in model.rglob("*") if p.is_file()]
    before = {path: path.read_bytes() for path in files}
    recipe = Recipe(
        model=str(model),
        to=step.target if isinstance(step, Converter) else step.format,
        precision=step.precision if isinstance(step, Pass) else None,
        inputs=_INPUTS.get(source, ()),
    )
    only = ConverterGraph(found.formats, {step.name: step}, {})
    return model, before, pipeline.run(recipe, converters=only)


@pytest.mark.parametrize("step", _STEPS, ids=lambda step: step.name)
def test_every_step_keeps_its_contract(step: Step, tmp_path: Path) -> None:
    _, before, report = converted(step, tmp_path)
    assert report.passed
    found = graph.detect(report.artifact.path)
    assert (found.format, found.precision) == report_state(step, report)
    assert {path: path.read_bytes() for path in before} == before
    if isinstance(step, Pass) and step.precision.bits < report.source.precision.bits:
        assert report.size_bytes < 0.8 * report.source_size_bytes


def report_state(step: Step, report: pipeline.Report) -> graph.State:
    """The format and precision a step declares to give."""
    return graph.after(step, (report.source.format, report.source.precision))


@pytest.mark.parametrize("name", sorted(graph.discover().formats))
def test_every_format_recognises_its_own_file_and_describes_what_it_opens(
    name: str, tmp_path: Path
) -> None:
    model = _MAKERS[name](tmp_path)
    inputs = _INPUTS.get(name, ())
    artifact, described = library.inspect(model, inputs=inputs)
    assert artifact.format == name
    assert described.parameter_count
    with library.load(model, inputs=inputs) as runner:
        if described.inputs:
            assert [spec.name for spec in described.inputs] == [spec.name for spec in runner.inputs]
        outputs = runner(runner.example({"batch": 2}, 0))
        assert all(np.isfinite(array).all() for array in outputs.values())


@pytest.mark.parametrize("name", sorted(graph.discover().formats))
def test_every_format_leaves_foreign_and_broken_files_alone(name: str, tmp_path: Path) -> None:
    from convkit.artifact import Opening

    format = graph.discover().format(name)
    for content in (b"", b"\x00" * 100, b"PK\x03\x04broken", b"\x80\x02}q\x00.", b"text\n" * 50):
        path = tmp_path / "file"
        path.write_bytes(content)
        assert format.matches(path, Opening()) in (True, False)
    assert not format.matches(tmp_path / "missing", Opening())
    assert not format.matches(tmp_path, Opening())


@pytest.mark.parametrize("step", _STEPS, ids=lambda step: step.name)
def test_every_step_says_what_it_does_and_loses(step: Step) -> None:
    assert step.doc
    assert step.loses
    assert step.name == step.name.lower()
