"""Messages as the prompt that a model was trained on: its chat template, rendered.

Templates come with models, so they are code from elsewhere: they run in a sandbox.

Source: transformers, `utils/chat_template_utils.py`: what templates may count on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from convkit.errors import MissingRequirementError, ModelError

_SAFE_JINJA = (3, 1, 6)
"""Older ones let templates out of the sandbox. Source: CVE-2025-27516."""


def render(
    template: str, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str]
) -> str:
    """The prompt that asks for an answer to `messages`.

    Args:
        template: Jinja source.
        messages: `role` and `content` each.
        special_tokens: role -> text (`bos_token` -> `<s>`).

    Raises:
        MissingRequirementError: Jinja is missing, or too old to be safe.
        ModelError: the template is wrong, or refuses these messages.
    """
    _require_jinja()
    import jinja2

    try:
        prompt: str = (
            _environment()
            .from_string(template)
            .render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **special_tokens,
            )
        )
        return prompt
    except jinja2.TemplateSyntaxError as cause:
        raise _error("is not valid", f"Line {cause.lineno}: {cause.message}") from cause
    except jinja2.TemplateError as cause:
        raise _error("refuses this conversation", str(cause)) from cause
    except Exception as cause:  # a template may fail as any program does
        raise _error("fails", f"{type(cause).__name__}: {cause}") from cause


def _error(what: str, why: str) -> ModelError:
    return ModelError(
        f"The chat template of the model {what}.",
        why=why[:400],
        hint="Complete the text as it is instead:  --raw",
    )


def _require_jinja() -> None:
    try:
        import jinja2
    except ImportError as cause:
        raise MissingRequirementError(
            "Chat templates need jinja2, which is not installed.", hint="pip install jinja2"
        ) from cause
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < _SAFE_JINJA:
        wanted = ".".join(map(str, _SAFE_JINJA))
        raise MissingRequirementError(
            f"Chat templates need jinja2 {wanted} or newer, not {jinja2.__version__}.",
            why="Older versions let a template run code.",
            hint=f'pip install "jinja2>={wanted}"',
        )


def _environment() -> Any:
    """A sandbox with what transformers offers to templates."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks an answer for training; here its content is all."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> Any:
            """The statements inside."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes for HTML that Jinja's own filter makes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
