"""A GGUF model from a checkpoint's tensors, its configuration and its tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact, Precision
from convkit.checkpoint.folder import Checkpoint, open_folder
from convkit.checkpoint.rows import Rows
from convkit.errors import UnsupportedError
from convkit.families import mapping
from convkit.families.config import Config
from convkit.families.family import Family, family_of
from convkit.ggml.mixture import is_quantizable, plain_type, quantizer_order
from convkit.ggml.mixture_rules import layer_of
from convkit.ggml.model import GgufModel, Measurement, Output
from convkit.ggml.types import DEFAULT_SCHEMES, SCHEMES, Scheme
from convkit.ggml.values import typed
from convkit.hub_cache import cached_name
from convkit.naming import listed
from convkit.step import Package, Work
from convkit.vocabulary.tokens import Vocabulary

if TYPE_CHECKING:
    from convkit.ggml.importance import Importance

_RUNS_FOLDERS = (Package("torch", "torch"), Package("transformers", "torch"))
_UNPACKED = (Precision.INT8, Precision.Q4)


@contextmanager
def gguf_model(source: Artifact) -> Iterator[GgufModel]:
    """The model of a Hugging Face folder, its tensors read as they are written.

    Raises:
        UnsupportedError: no folder, or an architecture or tokenizer that llama.cpp does not have.
        ModelError: the folder is damaged or incomplete.
    """
    if source.opening.factory or not source.path.is_dir():
        raise UnsupportedError(
            f"{source.words} is no Hugging Face folder, and GGUF holds language models from such.",
            why="llama.cpp computes by the architecture that config.json names.",
            hint="Save it with save_pretrained, weights, configuration and tokenizer.",
        )
    opening = source.opening
    with open_folder(source.path, adapter=opening.adapter, trust=opening.trust) as checkpoint:
        yield built(checkpoint, source)


def built(checkpoint: Checkpoint, source: Artifact) -> GgufModel:
    """The model of an open checkpoint."""
    from convkit.vocabulary import of_folder

    config = Config(checkpoint.config)
    family = family_of(config, list(checkpoint.tensors))
    mapped = mapping.to_gguf(family, config, checkpoint.tensors, checkpoint.other)
    vocabulary = of_folder(checkpoint.folder, checkpoint.config)
    precision = Precision.FP32 if source.precision in _UNPACKED else source.precision
    scheme = SCHEMES[DEFAULT_SCHEMES[precision]]
    metadata = _metadata(family, config, checkpoint.folder, scheme, vocabulary)
    unpacked = [checkpoint.quantization] if checkpoint.quantization else []
    notes = [
        *unpacked,
        *checkpoint.notes,
        *family.notes(config),
        *vocabulary.notes,
        *_told(mapped.dropped),
    ]
    outputs = tuple(_outputs(mapped.tensors, scheme))
    is_torch = source.format == "torch"  # of which the inside can be looked at while it runs
    return GgufModel(
        metadata={key: typed(value) for key, value in metadata.items()},
        tensors=outputs,
        notes=tuple(notes),
        importance=_measurement(source, family, config, outputs) if is_torch else None,
        finish=(functools.partial(_prove, checkpoint.folder),),
    )


def _metadata(
    family: Family, config: Config, folder: Path, scheme: Scheme, vocabulary: Vocabulary
) -> Mapping[str, Any]:
    said = {**family.metadata(config), **family.beside(folder)}
    own = {key.replace("ARCH", family.architecture): value for key, value in said.items()}
    return {
        "general.architecture": family.architecture,
        "general.type": "model",
        "general.name": _name(family, folder),
        "general.file_type": scheme.file_type,
        "general.quantization_version": 2,
        **own,
        **vocabulary.metadata(),
    }


def _name(family: Family, folder: Path) -> str:
    """The folder's name, or the hub's.

    llama.cpp knows how Phi-3 strips spaces by the model's name alone.

    Source: llama.cpp, `src/llama-vocab.cpp` (`phi-3` in `general.name`).
    """
    name = cached_name(folder.absolute()) or folder.resolve().name
    is_told = family.architecture != "phi3" or "phi-3" in name.lower()
    return name if is_told else f"{name} (Phi-3)"


def _outputs(tensors: Mapping[str, Rows], scheme: Scheme) -> Iterator[Output]:
    for name in sorted(tensors, key=quantizer_order):
        rows = tensors[name]
        yield Output(name, rows, plain_type(name, rows.shape, scheme.default))


def _measurement(
    source: Artifact, family: Family, config: Config, outputs: Sequence[Output]
) -> Measurement:
    """How to measure the importance of columns; of the layers, as llama-imatrix does."""
    inside = {
        one.name: one.shape for one in outputs if layer_of(one.name) >= 0 and is_quantizable(one)
    }

    def take(text: Path, most_pieces: int | None, work: Work) -> Importance:
        from convkit.converters.torch_importance import measured, pieces_of
        from convkit.vocabulary.codec import Codec

        pieces = pieces_of(Codec(source.path), text, config.context)[:most_pieces]
        found = measured(work.load(source), pieces, family, config, inside, work.progress)
        return replace(found, datasets=(text.name,))

    return Measurement(frozenset(inside), take, _RUNS_FOLDERS)


def _told(dropped: Mapping[str, str]) -> Iterator[str]:
    """Which tensors are not needed, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        yield f"left out: {listed(names, 1)}: {reason}"


def _prove(folder: Path, out: Path, note: Callable[[str], None]) -> None:
    """Sees to it that llama.cpp makes the same tokens of a text as the folder's tokenizer does."""
    from convkit.vocabulary import prove

    for text in prove(folder, out):
        note(text)
