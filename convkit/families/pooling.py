"""How an embedding model makes one vector of many: sentence-transformers' files, and GGUF's number.

Source: sentence-transformers, `modules.json` and `1_Pooling/config.json` of its folders; llama.cpp,
`LLAMA_POOLING_TYPE_*` in `include/llama.h`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convkit.errors import ModelError, UnsupportedError
from convkit.families.family import Stored

POOLING = "ARCH.pooling_type"

_NUMBERS = {"mean_tokens": 1, "cls_token": 2, "lasttoken": 3}
"""`pooling_mode_*` -> number."""
_OTHERS = ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
_SHORT = {"mean": "mean_tokens", "cls": "cls_token"}
_WITHOUT_WEIGHTS = ("Transformer", "Pooling", "Normalize")
"""Modules that GGUF's pooled embeddings take in; vectors are normalized by who asks for them."""


def metadata_of(folder: Path) -> dict[str, Any]:
    """The pooling that the files in a model's folder tell; nothing where there are none.

    Raises:
        UnsupportedError: llama.cpp has no such pooling, or more is done to the vectors.
        ModelError: a file is damaged.
    """
    modules = _read(folder / "modules.json")
    if not isinstance(modules, list):
        return {}
    kinds = {str(module.get("type")).rpartition(".")[2]: module for module in modules}
    more = [kind for kind in kinds if kind not in _WITHOUT_WEIGHTS]
    if more:
        raise UnsupportedError(
            f"Embeddings of this model go through {', '.join(more)} once they are pooled.",
            why="GGUF has no place for that; without it they would be others.",
            hint=f"Without it, the tokens' own vectors:  mv {folder / 'modules.json'} elsewhere",
        )
    if "Pooling" not in kinds:
        return {}
    file = folder / str(kinds["Pooling"].get("path", "1_Pooling")) / "config.json"
    return {POOLING: _number(_read(file) or {}, file)}


def _number(pooling: dict[str, Any], file: Path) -> int:
    mode = pooling.get("pooling_mode")
    found = [_SHORT.get(mode, mode)] if isinstance(mode, str) else []
    found += [name for name in (*_NUMBERS, *_OTHERS) if pooling.get(f"pooling_mode_{name}")]
    if len(found) != 1 or found[0] not in _NUMBERS:
        raise UnsupportedError(
            f"llama.cpp cannot pool by {' and '.join(map(str, found)) or 'nothing'}.",
            why=f"{file} asks for it; there are {', '.join(_NUMBERS)}, one of them.",
        )
    return _NUMBERS[found[0]]


def files_of(stored: Stored) -> dict[str, Any]:
    """sentence-transformers' files for a GGUF file's pooling; none where it does not say."""
    number = stored.get(POOLING, 0)
    if number not in _NUMBERS.values():
        return {}
    modes = {f"pooling_mode_{name}": _NUMBERS.get(name) == number for name in (*_NUMBERS, *_OTHERS)}
    kind = "sentence_transformers.models"
    return {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": stored.shapes["token_embd.weight"][1],
            **modes,
            "include_prompt": True,
        },
        "sentence_bert_config.json": {
            "max_seq_length": stored.get("ARCH.context_length"),
            "do_lower_case": False,
        },
    }


def _read(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise ModelError(f"{file} is damaged.", why=str(cause)) from cause
