"""Which tokens are special, and which of them are put before and after a text.

Files name them by text, in four places; llama.cpp wants ids and switches, and knows one token at
each end.

Source: llama.cpp, `gguf-py/gguf/vocab.py` (`SpecialVocab`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convkit.errors import UnsupportedError
from convkit.vocabulary.folder import TokenizerFolder
from convkit.vocabulary.pre_tokenizers import flattened

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "eot", "eom")
_CODE_LLAMA = {"fim_pre": "\u2581<PRE>", "fim_suf": "\u2581<SUF>", "fim_mid": "\u2581<MID>",
               "eot": "\u2581<EOT>"}  # fmt: skip
"""Source: llama.cpp, `conversion/llama.py`, which has them by number."""


@dataclass
class SpecialTokens:
    """Special tokens.

    Attributes:
        ids: role -> id.
        flags: `add_bos_token` ... -> whether it is done.
    """

    ids: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)


def special_tokens(
    folder: TokenizerFolder,
    config: Mapping[str, Any],
    numbers: Mapping[str, int],
    *,
    adds_bos: bool = False,
    implied: Mapping[str, int] | None = None,
) -> SpecialTokens:
    """The special tokens of a folder.

    Args:
        folder: the tokenizer's files.
        config: the model's configuration.
        numbers: text -> id of all tokens there are.
        adds_bos: whether a token is put in front where no file says so.
        implied: role -> id where no file says more.

    Raises:
        UnsupportedError: the tokenizer puts more than one token at an end.
    """
    texts = {role: text for role in _ROLES if (text := folder.special_text(role))}
    texts.setdefault("bos", texts.get("cls", ""))
    texts.setdefault("eos", texts.get("sep", ""))
    flags = {"bos": adds_bos, "eos": False}
    for step in flattened(folder.tokenizer.get("post_processor"), "processors"):
        if step.get("type") in ("RobertaProcessing", "BertProcessing"):
            flags.update(bos=True, eos=True, sep=True)
            texts.setdefault("cls", step["cls"][0])
            texts.setdefault("sep", step["sep"][0])
            texts["bos"] = texts["bos"] or texts["cls"]
            texts["eos"] = texts["eos"] or texts["sep"]
        elif step.get("type") == "TemplateProcessing":
            _follow_template(step, texts, flags)
    for role in ("bos", "eos", "sep"):
        said = folder.config.get(f"add_{role}_token")
        if isinstance(said, bool):
            flags[role] = said
    ids = {**(implied or {}), **_ids(folder, config, texts, numbers)}
    switches = {
        f"add_{role}_token": on and role in ids
        for role, on in flags.items()
        if role in ids or role != "sep"
    }
    return SpecialTokens(ids, switches)


def _follow_template(
    step: Mapping[str, Any], texts: dict[str, str], flags: dict[str, bool]
) -> None:
    """What stands around one text; the token behind it becomes the one that ends texts."""
    before, after = _around(step.get("single", ()))
    if len(before) > 1 or len(after) > 1:
        raise UnsupportedError(
            f"The tokenizer puts {' '.join(before + after)} around every text.",
            why="llama.cpp puts one token before and one after it, no more.",
        )
    flags.update(bos=bool(before), eos=bool(after))
    if before and before[0] not in (texts["bos"], texts.get("cls")):
        texts["bos"] = before[0]
    if after and after[0] != texts["eos"]:
        if texts["eos"]:
            texts.setdefault("eot", texts["eos"])
        texts["eos"] = after[0]
    between = _between(step.get("pair", ()), len(before), len(after))
    if between:
        separators = (texts.get("sep"), texts["eos"])
        flags["sep"] = (between[0] in separators and not after) or (
            len(between) == 2 and between[1] in separators
        )


def _around(template: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The special tokens before and after the text of a template."""
    names = [part.get("SpecialToken", {}).get("id") for part in template]
    place = names.index(None) if None in names else len(names)
    return names[:place], [name for name in names[place + 1 :] if name]


def _between(template: Sequence[Mapping[str, Any]], before: int, after: int) -> list[str]:
    inner = template[before : len(template) - after]
    names = [part.get("SpecialToken", {}).get("id") for part in inner]
    return [name for name in names[1:-1] if name]


def _ids(
    folder: TokenizerFolder,
    config: Mapping[str, Any],
    texts: Mapping[str, str],
    numbers: Mapping[str, int],
) -> dict[str, int]:
    """Ids by role: of the texts, else as the configurations say."""
    sources = (config, config.get("text_config") or {}, folder.json("generation_config.json"))
    ids = {role: numbers[text] for role, text in texts.items() if text in numbers}
    for role in _ROLES:
        for source in sources:
            number = source.get(f"{role}_token_id")
            if isinstance(number, list) and number:
                number = number[0]
            if isinstance(number, int):
                ids.setdefault(role, number)
    if all(text in numbers for text in _CODE_LLAMA.values()):
        ids.update({role: numbers[text] for role, text in _CODE_LLAMA.items()})
    return {role: number for role, number in ids.items() if 0 <= number < len(numbers)}
