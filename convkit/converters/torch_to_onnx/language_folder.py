"""A language model as a folder: its graph, and beside it what turns text into tokens and back."""

from __future__ import annotations

import shutil
from pathlib import Path

from convkit.artifact import Artifact
from convkit.converters.onnx_stream import EXTERNAL_OVER_BYTES
from convkit.onnx_language_graph import is_causal

_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of a Hugging Face folder that say how to use the weights.

Source: `save_pretrained` of transformers' configs and tokenizers.
"""


def folder_ending(source: Artifact) -> str | None:
    """`-onnx` for the folder that a language model becomes; None for what becomes a file."""
    is_folder = source.opening.factory is None and source.path.is_dir()
    return "-onnx" if is_folder and is_causal(source.path) else None


def graph_place(source: Artifact, out: Path) -> Path:
    """Where the graph of any model goes: of a language model as `graph_path` says, else `out`."""
    return graph_path(out) if folder_ending(source) else out


def graph_path(out: Path) -> Path:
    """Where the graph of a result goes: `out` if it is called `.onnx`, else `model.onnx` in it.

    Any other name is a folder's (`SmolLM2-1.7B` has no suffix, whatever pathlib says); it is made.
    """
    if out.suffix.lower() == ".onnx":
        return out
    out.mkdir(exist_ok=True)
    return out / "model.onnx"


def external_over_bytes(out: Path) -> int:
    """From how many bytes on weights lie beside the graph that goes to `graph_path(out)`.

    In a folder early, for ONNX Runtime maps them where they lie: it opens SmolLM2-135M with 100 MiB
    less memory and a quarter less time than from one file, which it copies. A file that was asked
    for stays one as long as it can.
    """
    return _MAPPED_OVER_BYTES if out.is_dir() else EXTERNAL_OVER_BYTES


_MAPPED_OVER_BYTES = 64 << 20


def copy_settings(source: Path, out: Path) -> None:
    """Copies configuration and tokenizer of a Hugging Face folder into the folder `out`.

    Where `out` is no folder, the graph was asked for as a single file and stays one.
    """
    if not out.is_dir():
        return
    for name in _SETTINGS:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
