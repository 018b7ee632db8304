"""Small tokenizers of every kind, trained in a moment, and GGUF files that hold a vocabulary only.

The vocabulary of bytes is trained without cutting text first, so its tokens reach across every
boundary a pre-tokenizer may set: wherever two cut differently, the tokens differ.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convkit import vocabulary
from convkit.ggml.values import typed
from convkit.ggml.writer import Layout
from convkit.vocabulary import Vocabulary
from convkit.vocabulary.stress_texts import PLAIN

Json = dict[str, Any]

ENDS = ("<|begin|>", "<|end|>")
BYTES_ONLY = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
WORDS_OF_BYTES = {**BYTES_ONLY, "use_regex": True}


def split(regex: str) -> Json:
    pattern = {"Regex": regex}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@functools.cache
def merged_bytes(cut: str = "") -> str:
    """A `tokenizer.json` as text that merges bytes; trained on text cut as `cut`, JSON, says."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    settings = json.loads(tokenizer.to_str()) | {"pre_tokenizer": json.loads(cut or "null")}
    settings["pre_tokenizer"] = settings["pre_tokenizer"] or BYTES_ONLY
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        min_frequency=1,
        special_tokens=list(ENDS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    tokenizer.train_from_iterator([text for text in PLAIN if len(text) < 200] * 2, trainer)
    return tokenizer.to_str()


def byte_level(
    cut: Json, *, is_trained_on_cut: bool = False, ignore_merges: bool = False, **parts: Any
) -> Json:
    """A `tokenizer.json` that cuts and then merges bytes."""
    tokenizer: Json = json.loads(merged_bytes(json.dumps(cut) if is_trained_on_cut else ""))
    tokenizer["pre_tokenizer"] = cut
    tokenizer["decoder"] = BYTES_ONLY
    tokenizer["model"]["ignore_merges"] = ignore_merges
    return tokenizer | parts


def saved(
    folder: Path, tokenizer: Json | None = None, config: Mapping[str, Any] | None = None
) -> Path:
    """A folder with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        if content is not None:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def restored(folder: Path, found: Vocabulary) -> Path:
    """The folder that a vocabulary's metadata become."""
    for name, text in vocabulary.from_metadata(found.metadata()).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def vocabulary_file(path: Path, found: Vocabulary, architecture: str = "llama") -> Path:
    """A GGUF file of a vocabulary, without tensors."""
    entries = {"general.architecture": architecture, **found.metadata()}
    path.write_bytes(Layout({key: typed(value) for key, value in entries.items()}, ()).head)
    return path


def train_sentencepiece(folder: Path, **options: Any) -> Path:
    """A folder with a `tokenizer.model` as Llama 2 has it, but for the options."""
    from sentencepiece import SentencePieceTrainer

    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.txt"
    lines = (text.replace("\n", " ") for text in PLAIN if text.strip() and len(text) < 200)
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "vocab_size": 800,
        "model_type": "bpe",
        "byte_fallback": True,
        "character_coverage": 0.99,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), **settings | options
    )
    return folder
