"""The vocabulary of a Hugging Face folder, whichever files it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from convkit.errors import ModelError, UnsupportedError
from convkit.vocabulary.byte_level import of_byte_level
from convkit.vocabulary.chat_templates import templates_of
from convkit.vocabulary.folder import LOOKED_FOR, TokenizerFolder
from convkit.vocabulary.sentence_piece import of_sentence_piece
from convkit.vocabulary.tokens import Vocabulary
from convkit.vocabulary.word_piece import of_word_piece


def of_folder(path: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a Hugging Face folder, one token for each row of the embedding.

    Args:
        path: the folder.
        config: its `config.json`; `vocab_size`, `model_type` and ids of special tokens are read.

    Raises:
        ModelError: there is no tokenizer, a file is damaged, or the embedding is too small.
        UnsupportedError: llama.cpp has no tokenizer that splits text alike.
    """
    folder = TokenizerFolder(path, str(config.get("model_type", "")))
    vocabulary = _of_kind(folder, config)
    return replace(vocabulary, templates=templates_of(folder.path, folder.config))


def _of_kind(folder: TokenizerFolder, config: Mapping[str, Any]) -> Vocabulary:
    if not folder.tokenizer:
        if folder.model:
            return of_sentence_piece(folder, config)
        raise missing(folder)
    model = folder.tokenizer["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "")
    if kind == "BPE" and model.get("byte_fallback"):
        return of_sentence_piece(folder, config)
    if kind == "BPE":
        return of_byte_level(folder, config)
    if kind == "WordPiece":
        return of_word_piece(folder, config)
    raise UnsupportedError(
        f"The tokenizer in {folder.path} is of kind {kind or 'unknown'}; "
        "BPE and WordPiece can be converted.",
        why="llama.cpp uses unigram vocabularies for T5 and XLM-RoBERTa alone."
        if kind == "Unigram"
        else (),
    )


def missing(folder: TokenizerFolder) -> ModelError:
    """The error for a folder without a tokenizer."""
    there = sorted(file.name for file in folder.path.glob("*") if file.is_file())
    tekken = " It has tekken.json, Mistral's own form." if "tekken.json" in there else ""
    return ModelError(
        f"There is no tokenizer in {folder.path}.{tekken}",
        why=[
            f"Looked for: {', '.join(LOOKED_FOR)}",
            f"There are:  {', '.join(there[:12]) or 'no files'}{' ...' * (len(there) > 12)}",
        ],
        hint="Copy the tokenizer's files of the model it was trained from into the folder.",
    )
