"""Tokenizers between Hugging Face folders and GGUF metadata, proven on both sides.

of_folder(path, config)     a folder's vocabulary; its `metadata()` are the keys of a GGUF file
from_metadata(metadata)     the files of a folder
prove(path, gguf)           both split a stress text alike, or an error says where they do not
"""

from __future__ import annotations

from convkit.vocabulary.proof import prove
from convkit.vocabulary.reading import of_folder
from convkit.vocabulary.tokens import TokenType, Vocabulary, of_metadata
from convkit.vocabulary.writing import files, from_metadata

__all__ = ["TokenType", "Vocabulary", "files", "from_metadata", "of_folder", "of_metadata", "prove"]
