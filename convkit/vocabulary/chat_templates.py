"""Chat templates: where folders keep them.

Source: transformers, `tokenization_utils_base.py` (`save_chat_templates`); `chat_template.json` is
what processors wrote before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convkit.errors import ModelError
from convkit.vocabulary.text_files import read_object, read_text
from convkit.vocabulary.tokens import plain_name

FILE = "chat_template.jinja"
_MORE = "additional_chat_templates"
_LINE_END = re.compile(r"\r\n?")
_LONGEST_INLINE = 1000
"""Characters up to which a template stands in `tokenizer_config.json`; longer ones are read better
in a file of their own."""


def templates_of(folder: Path, tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """Name -> template, `default` is the one that is meant where none is named.

    Args:
        folder: of the model.
        tokenizer: its `tokenizer_config.json`; files of their own count more, as in transformers.

    Raises:
        ModelError: a template is no text.
    """
    named = _stated(folder, tokenizer)
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise ModelError(f"chat_template in {folder} is neither a text nor named texts.")
    return named


def default_template(folder: Path, tokenizer: Mapping[str, Any]) -> str:
    """The template that is meant where none is named; "" where there is none."""
    text = _stated(folder, tokenizer).get("default")
    return text if isinstance(text, str) else ""


def _stated(folder: Path, tokenizer: Mapping[str, Any]) -> dict[Any, Any]:
    more = sorted((folder / _MORE).glob("*.jinja"))
    files = {path.stem: path for path in more}
    if (folder / FILE).is_file():
        files["default"] = folder / FILE
    if files:
        texts = {name: read_text(file) for name, file in files.items()}
        return {name: "\n".join(_LINE_END.split(text)) for name, text in texts.items()}
    said = tokenizer.get("chat_template")
    if said is None:
        said = read_object(folder / "chat_template.json").get("chat_template")
    if said is None:
        return {}
    if isinstance(said, list):
        named = (entry for entry in said if isinstance(entry, Mapping))
        return {entry.get("name"): entry.get("template") for entry in named}
    return dict(said) if isinstance(said, Mapping) else {"default": said}


def written(templates: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """What stands in `tokenizer_config.json`, and the files beside it: path -> text."""
    if set(templates) == {"default"}:
        text = templates["default"]
        if len(text) <= _LONGEST_INLINE or "\r" in text:  # which is lost when a file is read
            return text, {}
    files = {f"{_MORE}/{plain_name(name)}.jinja": text for name, text in templates.items()}
    if "default" in templates:
        files[FILE] = files.pop(f"{_MORE}/default.jinja")
    return None, files
