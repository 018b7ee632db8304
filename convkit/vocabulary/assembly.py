"""Puts a `tokenizer.json` together for folders that have a vocabulary and merges only.

Such folders leave normalizing and cutting to the tokenizer's class, so only classes whose doing is
known are taken.

Source: transformers, `models/{gpt2,qwen2,roberta,bert}/tokenization_*.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convkit.errors import ModelError, UnsupportedError
from convkit.vocabulary.pre_tokenizers import byte_level, named, written

if TYPE_CHECKING:
    from convkit.vocabulary.folder import TokenizerFolder

Json = dict[str, Any]

_CLASS_OF_MODEL = {"gpt2": "GPT2", "phi": "CodeGen", "qwen2": "Qwen2", "qwen3": "Qwen2",
                   "roberta": "Roberta"}  # fmt: skip
_CUTS = {"GPT2": "gpt-2", "CodeGen": "gpt-2", "Roberta": "gpt-2", "Qwen2": "qwen2"}
_COMPOSES = frozenset(("Qwen2",))
CONTINUES = "##"
"""Stands before what continues a word."""

LONGEST_WORD = 100
"""BERT's, in characters; llama.cpp knows no limit."""

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
BERT_TOKENS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
"""Role -> text where no file says otherwise."""


def assembled(folder: TokenizerFolder, model_type: str) -> Json:
    """A `tokenizer.json` from `vocab.json` and `merges.txt`, or from `vocab.txt`; else empty.

    Raises:
        UnsupportedError: the tokenizer's class is not known.
        ModelError: a file is damaged.
    """
    if folder.has("vocab.json", "merges.txt"):
        return _byte_level(folder, model_type)
    return _word_piece(folder) if folder.has("vocab.txt") else {}


def _byte_level(folder: TokenizerFolder, model_type: str) -> Json:
    name = _class_of(folder) or _CLASS_OF_MODEL.get(model_type, "")
    if name not in _CUTS:
        raise UnsupportedError(
            f"How '{name or 'unknown'}' cuts text is in no file of {folder.path}.",
            why="vocab.json and merges.txt say what is merged, not where text is cut before.",
            hint='Write tokenizer.json:  python -c "import transformers; transformers.'
            f"AutoTokenizer.from_pretrained('{folder.path}').save_pretrained('{folder.path}')\"",
        )
    vocabulary = folder.json("vocab.json")
    lines = folder.text("merges.txt").replace("\r", "").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(merge) != 2 for merge in merges):
        raise ModelError(f"{folder.path / 'merges.txt'} is damaged: a line is no pair.")
    special = {text for role in _ROLES if (text := folder.special_text(role))}
    special = special or {"<|endoftext|>"}
    return {
        "added_tokens": _special(vocabulary, special),
        "normalizer": {"type": "NFC"} if name in _COMPOSES else None,
        "pre_tokenizer": written(named(_CUTS[name])),
        "post_processor": _enclosed_by(vocabulary, "<s>", "</s>") if name == "Roberta" else None,
        "decoder": byte_level(use_regex=True),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def _word_piece(folder: TokenizerFolder) -> Json:
    name = _class_of(folder) or "Bert"
    if not name.endswith("Bert"):
        raise UnsupportedError(
            f"How '{name}Tokenizer' normalizes text is in no file of {folder.path}.",
            why="vocab.txt says which words there are, no more.",
        )
    lines = folder.text("vocab.txt").removesuffix("\n").split("\n")
    vocabulary = {line.removesuffix("\r"): index for index, line in enumerate(lines)}
    texts = {role: folder.special_text(role) or text for role, text in BERT_TOKENS.items()}
    config = folder.config
    return {
        "added_tokens": _special(vocabulary, set(texts.values())),
        "post_processor": _enclosed_by(vocabulary, texts["cls"], texts["sep"]),
        **word_piece(
            vocabulary,
            texts["unk"],
            lowercase=config.get("do_lower_case", True),
            strip_accents=config.get("strip_accents"),
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        ),
    }


def word_piece(
    vocabulary: Mapping[str, int],
    unknown: str,
    *,
    lowercase: bool,
    strip_accents: bool | None,
    handle_chinese_chars: bool = True,
) -> Json:
    """What a `tokenizer.json` of BERT's kind has between its added tokens and its ends."""
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": handle_chinese_chars,
            "strip_accents": strip_accents,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": CONTINUES,
            "max_input_chars_per_word": LONGEST_WORD,
            "vocab": vocabulary,
        },
    }


def _class_of(folder: TokenizerFolder) -> str:
    name = folder.config.get("tokenizer_class") or ""
    return str(name).removesuffix("Fast").removesuffix("Tokenizer")


def _special(vocabulary: Mapping[str, int], texts: set[str]) -> list[Json]:
    numbers = sorted((vocabulary[text], text) for text in texts if text in vocabulary)
    return [added_entry(number, text, is_special=True) for number, text in numbers]


def added_entry(number: int, text: str, *, is_special: bool) -> Json:
    """An entry of `added_tokens`; the text is matched as it stands."""
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": is_special,
    }


def template(first: str, last: str, numbers: Mapping[str, int], *, pairs_as_bert: bool) -> Json:
    """A post-processor that puts one token before and one after; empty texts put none.

    A second text follows enclosed alike, in BERT without a token before it.
    """

    def token(text: str, segment: int) -> list[Json]:
        return [{"SpecialToken": {"id": text, "type_id": segment}}] if text else []

    def sequence(name: str, segment: int) -> Json:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [*token(first, 0), sequence("A", 0), *token(last, 0)]
    again = [] if pairs_as_bert else token(first, 1)
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *again, sequence("B", 1), *token(last, 1)],
        "special_tokens": {
            text: {"id": text, "ids": [numbers[text]], "tokens": [text]}
            for text in (first, last)
            if text
        },
    }


def _enclosed_by(vocabulary: Mapping[str, int], first: str, last: str) -> Json | None:
    if first not in vocabulary or last not in vocabulary:
        return None
    return template(first, last, vocabulary, pairs_as_bert=True)


def dumped(content: Mapping[str, Any]) -> str:
    """JSON text as tokenizers reads it, without spaces between items: vocabularies are long."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
