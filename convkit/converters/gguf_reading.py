"""A Hugging Face folder from a GGUF file: tensors, configuration, tokenizer."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convkit.artifact import Precision
from convkit.checkpoint.rows import Rows
from convkit.checkpoint.writing import FolderModel, Target, is_exact_in
from convkit.families import mapping
from convkit.families.config import Config
from convkit.families.family import Family, family_of_architecture
from convkit.ggml.file import GgufFile
from convkit.ggml.header import Header
from convkit.ggml.kinds import require_model
from convkit.naming import listed

_DTYPES = {Precision.FP16: "F16", Precision.BF16: "BF16"}
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TRANSFORMERS = "5.0.0"
"""The generation whose spelling is written; transformers doubts older tokenizers of some models."""

_ROLES = ("bos", "eos", "padding")


def folder_model(file: GgufFile, precision: Precision) -> FolderModel:
    """What the folder will hold; quantized weights become float32, which holds them exactly.

    Raises:
        UnsupportedError: an architecture or a vocabulary without a way back.
        ModelError: a tensor is missing or of the wrong shape.
    """
    header = file.header
    family = family_in(file)
    config = config_of(family, file)
    mapped = mapping.to_torch(family, Config(config), file.tensors)
    targets, dtype, notes = _targets(mapped.tensors, _DTYPES.get(precision, "F32"))
    config |= {"dtype": _NAMES[dtype], "transformers_version": _TRANSFORMERS}
    files = text_files(file, family, config)
    finish = (functools.partial(_prove, header.path),) if "tokenizer.json" in files else ()
    return FolderModel(targets, files, notes, finish=finish)


def family_in(file: GgufFile) -> Family:
    """The family of a file's model.

    Raises:
        ModelError: the file holds no model.
        UnsupportedError: its architecture has no way back; says what is missing.
    """
    header = file.header
    require_model(header)
    stored = functools.partial(mapping.stored_of, header.get, file.tensors)
    return family_of_architecture(header.architecture, stored, header.path)


def text_files(file: GgufFile, family: Family, config: Mapping[str, Any]) -> dict[str, str]:
    """Path in a folder -> text: configuration and tokenizer."""
    stored = mapping.stored_of(file.header.get, file.tensors)
    own = {"config.json": config, **family.files(stored)}
    files = {name: _json(content) for name, content in own.items()} | _tokenizer(file.header)
    if not family.gives_embeddings:
        files["generation_config.json"] = _json(_token_ids(file.header))
    return files


def _prove(source: Path, folder: Path, note: Callable[[str], None]) -> None:
    """Sees to it that the folder's tokenizer makes the same tokens of a text as llama.cpp does."""
    from convkit.vocabulary import prove

    for text in prove(folder, source):
        note(text)


def config_of(family: Family, file: GgufFile) -> dict[str, Any]:
    """The configuration that a GGUF file stands for."""
    stored = mapping.stored_of(file.header.get, file.tensors)
    return {**family.config(stored), **_token_ids(file.header)}


def _token_ids(header: Header) -> dict[str, int]:
    """Ids that transformers keeps in configurations."""
    found = {}
    for role in _ROLES:
        number = header.get(f"tokenizer.ggml.{role}_token_id")
        if number is not None:
            found[f"{role.removesuffix('ding')}_token_id"] = int(number)
    return found


def _targets(
    tensors: Mapping[str, Rows], dtype: str
) -> tuple[dict[str, Target], str, tuple[str, ...]]:
    """Tensors in the folder's dtype; all keep float32 if one that has it does not fit the dtype.

    GGUF holds norms in float32 whatever the model is; they go back to what they were.
    """
    wide = [name for name, rows in tensors.items() if rows.dtype == "F32"]
    if dtype != "F32" and (left := [n for n in wide if not is_exact_in(tensors[n], dtype)]):
        note = (
            f"{listed(left, 3)} do not fit {_NAMES[dtype]} and stay in float32; config.json says "
            "float32, so that loading does not round them"
        )
        kept = {n: Target(r, "F32" if n in left else dtype) for n, r in tensors.items()}
        return kept, "F32", (note,)
    return {name: Target(rows, dtype) for name, rows in tensors.items()}, dtype, ()


def _tokenizer(header: Header) -> dict[str, str]:
    from convkit.vocabulary import from_metadata

    if header.get("tokenizer.ggml.model", "none") == "none":
        return {}
    plain = {k: v.content if k.endswith(("tokens", "merges")) else v.plain()
             for k, v in header.metadata.items() if k.startswith("tokenizer.")}  # fmt: skip
    return from_metadata(plain)


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
