"""Proves that llama.cpp splits text as a folder's tokenizer does: ids of a stress text compared."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from convkit.errors import VerificationError
from convkit.vocabulary.reference import Reference, reference_of
from convkit.vocabulary.stress_texts import PLAIN, with_tokens


def prove(path: Path, gguf: Path) -> tuple[str, ...]:
    """Compares the tokens of a Hugging Face folder's tokenizer with those of a GGUF file.

    Args:
        path: the folder.
        gguf: a file with the vocabulary; tensors are not looked at.

    Returns:
        Sentences for the report: how much was compared, and what llama.cpp does differently.

    Raises:
        VerificationError: a text is split differently.
        ModelError: there is no tokenizer, or llama.cpp cannot read the vocabulary.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        return ("The tokenizer was not proven: xllamacpp is not installed.",)
    reference = reference_of(path)
    if isinstance(reference, str):
        return (reference,)
    from convkit.ggml.llama import LlamaModel

    with LlamaModel(gguf, vocab_only=True) as model:
        texts, limits = _compared(reference, model.vocabulary_size)
        for text in texts:
            for is_enclosed, finds_control in reference.modes:
                ids = reference.encode(text, is_enclosed, finds_control)
                found = model.tokenize(text, add_special=is_enclosed, parse_special=finds_control)
                if found != ids:
                    raise _differing(path, text, ids, found)
    return (
        f"The tokenizer is proven: {reference.library} and llama.cpp split {len(texts)} texts "
        "alike.",
        *limits,
    )


def _compared(reference: Reference, size: int) -> tuple[list[str], list[str]]:
    """The texts to compare, and the reasons why others are not."""
    added = [text for number, text in reference.added.items() if number < size]
    texts = [*PLAIN, *with_tokens(added)]
    reasons = []
    for limit in reference.limits:
        left = [text for text in texts if not limit.concerns(text)]
        if len(left) < len(texts) and limit.reason:
            reasons.append(limit.reason)
        texts = left
    return texts, reasons


def _differing(path: Path, text: str, ids: list[int], found: list[int]) -> VerificationError:
    pairs = enumerate(zip(ids, found, strict=False))
    ends_together = min(len(ids), len(found))
    place = next((at for at, pair in pairs if pair[0] != pair[1]), ends_together)
    shown = slice(max(0, place - 5), place + 15)
    return VerificationError(
        f"llama.cpp splits {text[:80]!r} differently from the tokenizer in {path}.",
        why=[
            f"They part at token {place} of {len(ids)}:",
            f"the folder's {ids[shown]}",
            f"llama.cpp's  {found[shown]}",
        ],
        hint="The model would see other tokens than it was trained with: is the tokenizer in the "
        "folder the model's own?",
        text=text,
        reference=ids,
        candidate=found,
    )
