"""Chat templates: where folders keep them.

Source: transformers, `tokenization_utils_base.py` (`save_chat_templates`); `chat_template.json` is
what processors wrote before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from convkit.errors import ModelError
from convkit.vocabulary.folder import TokenizerFolder
from convkit.vocabulary.tokens import plain_name

FILE = "chat_template.jinja"
_MORE = "additional_chat_templates"
_LINE_END = re.compile(r"\r\n?")
_LONGEST_INLINE = 1000
"""Characters up to which a template stands in `tokenizer_config.json`; longer ones are read better
in a file of their own."""


def templates_of(folder: TokenizerFolder) -> dict[str, str]:
    """Name -> template; files of their own count more than the configuration, as in transformers.

    Raises:
        ModelError: a template is no text.
    """
    more = sorted((folder.path / _MORE).glob("*.jinja"))
    files = {path.stem: f"{_MORE}/{path.name}" for path in more}
    if folder.has(FILE):
        files["default"] = FILE
    if files:
        texts = {name: folder.text(file) for name, file in files.items()}
        return {name: "\n".join(_LINE_END.split(text)) for name, text in texts.items()}
    said = folder.config.get("chat_template")
    if said is None:
        said = folder.json("chat_template.json").get("chat_template")
    if said is None:
        return {}
    named = {"default": said} if isinstance(said, str) else said
    if isinstance(named, list):
        named = {entry.get("name"): entry.get("template") for entry in named}
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise ModelError(f"chat_template in {folder.path} is neither a text nor named texts.")
    return dict(named)


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
