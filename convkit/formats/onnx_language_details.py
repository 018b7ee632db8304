"""What `inspect` tells of a language model in ONNX beside its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convkit.checkpoint.folder_files import architecture
from convkit.errors import ModelError
from convkit.onnx_language_graph import LanguageGraph, read_config
from convkit.vocabulary.codec import has_tokenizer
from convkit.vocabulary.folder_settings import context_length, read_settings


def language_details(graph: LanguageGraph, folder: Path) -> dict[str, Any]:
    """What `inspect` tells of a language model beside its graph."""
    config = read_config(folder)
    details: dict[str, Any] = {
        "architecture": architecture(config),
        "model_type": config.get("model_type") or "",
        "context_length": context_length(config),
        "kv_cache": _cache_in_words(graph),
    }
    if has_tokenizer(folder):
        try:
            has_template = bool(read_settings(folder).chat_template)
        except ModelError:
            has_template = False
        details["tokenizer"] = "with a chat template" if has_template else "without chat template"
    return {name: value for name, value in details.items() if value}


def _cache_in_words(graph: LanguageGraph) -> str:
    if not graph.past:
        return "none: every token computes the whole text again"
    first = graph.past[0]
    shape = ", ".join(map(str, first.shape))
    return f"{len(graph.past)} tensors of {first.dtype}[{shape}]"
