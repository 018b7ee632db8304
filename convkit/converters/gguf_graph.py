"""The ONNX graph of a GGUF model, its weights moved block by block."""

from __future__ import annotations

from pathlib import Path

from convkit.artifact import Artifact, Precision
from convkit.converters.decoder_graph.build import build
from convkit.converters.decoder_graph.families import blueprint
from convkit.converters.gguf_reading import config_of, family_in, text_files
from convkit.converters.torch_to_onnx.language_folder import external_over_bytes, graph_path
from convkit.errors import UnsupportedError
from convkit.families import mapping
from convkit.families.config import Config
from convkit.ggml.file import GgufFile
from convkit.step import Work

_FLOATS = (Precision.FP32, Precision.FP16, Precision.BF16)


def write_graph(
    source: Artifact, out: Path, work: Work, *, opset: int, attention: str, accuracy_level: int
) -> None:
    """Writes the graph, and around it, where `out` is a folder, configuration and tokenizer.

    Raises:
        UnsupportedError: an architecture without a graph of its own.
        ModelError: a tensor is missing or of the wrong shape.
    """
    with GgufFile(source.path) as file:
        family = family_in(file)
        if family.gives_embeddings:
            raise UnsupportedError(
                f"{source.path.name} gives embeddings ({family.architecture}); graphs are built "
                "for models that continue texts.",
                hint=f"Take the way over PyTorch:  convkit convert {source.words} --to torch",
            )
        config = config_of(family, file)
        tensors = mapping.to_torch(family, Config(config), file.tensors).tensors
        work.progress("building the graph", 0, None)
        built = build(
            blueprint(config),
            tensors,
            config,
            precision=source.precision if source.precision in _FLOATS else Precision.FP32,
            attention=attention,
            opset=opset,
            accuracy_level=accuracy_level,
        )
        total = sum(weight.byte_count for weight in built.weights)

        def progress(done: int) -> None:
            work.progress("writing weights", done, total, "B")

        path = graph_path(out)
        built.write(path, external_over_bytes=external_over_bytes(out), progress=progress)
        for note in built.notes:
            work.note(note)
        if out.is_dir():
            for name, text in text_files(file, family, config).items():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).write_text(text, encoding="utf-8")
