"""Finds llama.cpp's name for a pre-tokenizer of `tokenizer.json`, and writes one for a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convkit.errors import UnsupportedError
from convkit.vocabulary.pre_tokenizer_table import (
    CONTRACTION,
    DIGIT,
    DIGITS,
    PREFERRED,
    PUNCTUATION,
    TABLE,
    WORDS,
    WORDS_OF_BYTES,
    PreTokenizer,
)

_SPELLINGS = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("'(?i:[sdmt]|ll|ve|re)", CONTRACTION),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", CONTRACTION),
    # What follows is never what a possessive quantifier keeps, so a greedy one matches the same.
    ("?+", "?"),
    ("++", "+"),
    ("{1}|", "|"),
    (r"|\s*[\r\n]|", r"|\s*[\r\n]+|"),  # \s* already takes the line ends before the last
)
"""Spellings that match alike, and the one the table has."""

Json = Mapping[str, Any]


def named(name: str) -> PreTokenizer:
    """The pre-tokenizer llama.cpp means by a name.

    Raises:
        UnsupportedError: the name is in no row.
    """
    for row in TABLE:
        if name in row.names:
            return row
    known = [known for row in TABLE for known in row.names]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise UnsupportedError(
        f"The pre-tokenizer '{name}' (tokenizer.ggml.pre) is not known.",
        why=f"Nearest: {', '.join(near)}" if near else f"Known: {', '.join(known)}",
        hint="Take the tokenizer from the model's own Hugging Face folder.",
        known=known,
    )


def matched(tokenizer: Json) -> PreTokenizer:
    """The row that a byte-level `tokenizer.json` cuts by.

    Raises:
        UnsupportedError: none does; the nearest is named with what differs.
    """
    _check_normalizer(tokenizer.get("normalizer"))
    rows = cutting_alike(tokenizer)
    ignores_merges = bool(tokenizer["model"].get("ignore_merges"))
    for row in rows:
        if row.ignores_merges == ignores_merges:
            return row
    if rows and _merges_reach_every_token(tokenizer):
        return rows[0]  # taken whole or merged, the tokens are the same
    if rows:
        does = "takes" if rows[0].ignores_merges else "does not take"
        raise UnsupportedError(
            f"llama.cpp's pre-tokenizer '{rows[0].names[0]}' {does} words that are tokens whole; "
            "this tokenizer.json says the opposite (model.ignore_merges).",
            why="It matters here: there are tokens that their own merges do not lead to.",
        )
    raise _unmatched(_steps_of(tokenizer.get("pre_tokenizer")))


def cutting_alike(tokenizer: Json) -> list[PreTokenizer]:
    """The rows that cut as a `tokenizer.json` does, whatever they do to tokens."""
    steps = _steps_of(tokenizer.get("pre_tokenizer"))
    return [row for row in TABLE if row.steps == steps]


def preferred(row: PreTokenizer, model_type: str) -> str:
    """The name to write: the one that belongs to the model's type, else the most common."""
    name = PREFERRED.get(model_type, "")
    return name if name in row.names else row.names[0]


def written(row: PreTokenizer) -> dict[str, Any]:
    """The `pre_tokenizer` of a `tokenizer.json`."""
    steps = [_written_step(step) for step in row.steps]
    if row.steps[-1] == WORDS:
        steps[-1] = byte_level(use_regex=True)
    elif WORDS_OF_BYTES not in row.steps:
        steps.append(byte_level(use_regex=False))
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _written_step(step: str) -> dict[str, Any]:
    if step == PUNCTUATION:
        return {"type": "Punctuation", "behavior": "Contiguous"}
    if step == WORDS_OF_BYTES:
        return byte_level(use_regex=True)
    if step in (DIGIT, DIGITS):
        return {"type": "Digits", "individual_digits": step == DIGIT}
    pattern = {"Regex": step}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def byte_level(*, use_regex: bool) -> dict[str, Any]:
    """The step of a `tokenizer.json` that turns text into bytes, cut into GPT-2's words or not."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _check_normalizer(normalizer: Json | None) -> None:
    """Composing characters is all that may happen before the text is cut."""
    kinds = [step.get("type") for step in flattened(normalizer, "normalizers")]
    if any(kind != "NFC" for kind in kinds):
        raise UnsupportedError(
            f"The tokenizer normalizes text by {', '.join(map(str, kinds))}; "
            "llama.cpp cannot for this kind of vocabulary.",
            why="Byte-level vocabularies of llama.cpp take text as it is.",
        )


def flattened(step: Json | None, key: str) -> list[Json]:
    """The steps of a `Sequence` of `tokenizer.json`, or the one step, or none."""
    if not step:
        return []
    if step.get("type") != "Sequence":
        return [step]
    return [inner for outer in step.get(key, ()) for inner in flattened(outer, key)]


def _steps_of(pre_tokenizer: Json | None) -> tuple[str, ...]:
    parts = flattened(pre_tokenizer, "pretokenizers")
    steps = [_step_of(part) for part in parts]
    if steps and steps[-1] == WORDS_OF_BYTES:
        steps[-1] = WORDS  # the same, as nothing follows
    return tuple(step for step in steps if step)


def _step_of(part: Json) -> str:
    """A step as the table has it; empty where it only turns text into bytes."""
    kind = part.get("type")
    if kind == "ByteLevel" and not part.get("add_prefix_space", True):
        return WORDS_OF_BYTES if part.get("use_regex", True) else ""
    if kind == "Digits":
        return DIGIT if part.get("individual_digits") else DIGITS
    if kind == "Punctuation" and part.get("behavior") == "Contiguous":
        return PUNCTUATION
    if kind == "Split" and "Regex" in part.get("pattern", {}):
        regex = _plain(part["pattern"]["Regex"])
        behavior = part.get("behavior"), part.get("invert", False)
        # Where the expression matches everything, removing the rest removes nothing.
        covers = regex.endswith(r"|\s+") and behavior == ("Removed", True)
        if covers or behavior == ("Isolated", False):
            return regex
    return f"{kind} {dict(part)}"


def _plain(regex: str) -> str:
    for spelling, plain in _SPELLINGS:
        regex = regex.replace(spelling, plain)
    return regex


def _merges_reach_every_token(tokenizer: Json) -> bool:
    """Whether every token that bytes are merged to is what its own characters merge to."""
    from tokenizers import Tokenizer, models

    model = tokenizer["model"]
    merging = Tokenizer(models.BPE(vocab=model["vocab"], merges=list(merge_pairs(model["merges"]))))
    added = {entry["content"] for entry in tokenizer.get("added_tokens", ())}
    tokens = [text for text in model["vocab"] if text not in added]
    return all(len(encoded.ids) == 1 for encoded in merging.encode_batch(tokens))


def merge_pairs(merges: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """The pairs of a `tokenizer.json`, which writes them as lists or as text with a space."""
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right


def _unmatched(steps: Sequence[str]) -> UnsupportedError:
    text = "\n".join(steps)
    near = max(TABLE, key=lambda row: _likeness(text, "\n".join(row.steps)))
    missing = [f"only there: {step}" for step in near.steps if step not in steps]
    extra = [f"only here:  {step}" for step in steps if step not in near.steps]
    return UnsupportedError(
        "llama.cpp has no pre-tokenizer that cuts text as this tokenizer.json does.",
        why=[
            f"Nearest: {', '.join(near.names[:3])}",
            *(extra + missing or ["the same steps in another order"]),
        ],
        hint="Other tokens than the model was trained with would ruin it, so nothing is guessed.",
        steps=list(steps),
    )


def _likeness(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()
