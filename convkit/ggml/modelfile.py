"""A Modelfile beside a GGUF file, so that Ollama runs it: `ollama create NAME -f FILE.Modelfile`.

Ollama's templates are Go templates. Its own is derived from the model's chat template by rendering
conversations and looking what stands around the messages; it is written only if it then gives
the same prompts.

Source: Ollama, `docs/modelfile.md` (FROM, TEMPLATE, SYSTEM, PARAMETER stop).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convkit.errors import ConvkitError
from convkit.ggml.values import Value

SUFFIX = ".Modelfile"

_S, _U, _A, _V = "@system@", "@question@", "@answer@", "@second question@"
_SPECIAL = re.compile(r"<[^<>\s]+>|\[/?[A-Z]+\]")

Message = Mapping[str, str]


@dataclass(frozen=True)
class Template:
    """What stands around the messages of a conversation.

    Attributes:
        before_system, after_system: around a system message.
        before_user: between what came before and a question.
        before_answer: between a question and its answer.
        after_answer: behind an answer.
        system: the system message that the model's own template puts where there is none.
    """

    before_system: str
    after_system: str
    before_user: str
    before_answer: str
    after_answer: str
    system: str

    def rendered(self, messages: Sequence[Message]) -> str:
        """A conversation as Ollama would render it; the answer to the last question is due."""
        text = ""
        if messages[0]["role"] != "system" and self.system:
            messages = [{"role": "system", "content": self.system}, *messages]
        for message in messages:
            content = message["content"]
            if message["role"] == "system":
                text += self.before_system + content + self.after_system
            elif message["role"] == "user":
                text += self.before_user + content + self.before_answer
            else:
                text += content + self.after_answer
        return text

    def __str__(self) -> str:
        """As a Go template."""
        system = f"{self.before_system}{{{{ .System }}}}{self.after_system}"
        knows_system = bool(self.before_system or self.after_system)
        system = f"{{{{ if .System }}}}{system}{{{{ end }}}}" if knows_system else ""
        prompt = f"{self.before_user}{{{{ .Prompt }}}}{self.before_answer}"
        return (
            f"{system}{{{{ if .Prompt }}}}{prompt}{{{{ end }}}}{{{{ .Response }}}}"
            f"{self.after_answer}"
        )


def derived(render: Callable[[Sequence[Message]], str]) -> Template | None:
    """The template behind a function that renders conversations; None where it has another form.

    Args:
        render: gives the prompt for the next answer, without what begins every text.
    """
    system, first, answer, second = (
        {"role": role, "content": content}
        for role, content in (("system", _S), ("user", _U), ("assistant", _A), ("user", _V))
    )
    talks = [[first], [first, answer, second]]
    try:
        plain, longer = map(render, talks)
        start, before_answer = plain.split(_U)
        between = longer.split(_A)[1].split(_V)[0]
    except (ValueError, IndexError, ConvkitError):
        return None
    with_system = _rendered_with_system(render, [system, first])
    if with_system:
        talks += [[system, *talk] for talk in talks]
    for before_user in (start, *_ends_at_special_tokens(between)):
        after_answer = between.removesuffix(before_user)
        template = Template("", "", before_user, before_answer, after_answer, "")
        if with_system:
            template = _with_system(template, start, with_system)
        if all(template.rendered(talk) == render(talk) for talk in talks):
            return template
    return None


def _rendered_with_system(
    render: Callable[[Sequence[Message]], str], talk: Sequence[Message]
) -> str:
    """Empty where the model's template knows no system message."""
    try:
        text = render(talk)
    except ConvkitError:
        return ""
    return text if _S in text and _U in text.partition(_S)[2] else ""


def _with_system(template: Template, start: str, with_system: str) -> Template:
    """The template with what stands around a system message, and the one that is there anyway."""
    before, _, rest = with_system.partition(_S)
    until_user = rest.partition(_U)[0]
    default = ""
    if start != template.before_user and start.startswith(before) and start.endswith(until_user):
        default = start[len(before) : len(start) - len(until_user)]
    after = until_user.removesuffix(template.before_user)
    return replace(template, before_system=before, after_system=after, system=default)


def _ends_at_special_tokens(text: str) -> list[str]:
    """What a question may begin with, behind an answer's end: most likely first.

    The first special token ends the answer, if there is another.
    """
    ends = [text[match.start() :] for match in _SPECIAL.finditer(text)]
    return [*ends[1:], *ends[:1]]


def modelfile(name: str, metadata: Mapping[str, Value]) -> str:
    """The text of a Modelfile.

    Args:
        name: of the GGUF file beside it.
        metadata: of the model.
    """
    lines = [f"FROM ./{name}"]
    template = _template_of(metadata)
    stops = _stops(metadata, template)
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
        if template.system:
            lines.append(f'SYSTEM """{template.system}"""')
    elif "tokenizer.chat_template" in metadata:
        lines.append("# Ollama reads the chat template from the file.")
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"


def _template_of(metadata: Mapping[str, Value]) -> Template | None:
    from convkit.vocabulary import chat_prompt

    value = metadata.get("tokenizer.chat_template")
    if value is None:
        return None
    source = str(value.content)
    tokens = special_tokens(metadata)
    bos = tokens.get("bos_token", "") if _begins_with_bos(metadata) else ""

    def render(talk: Sequence[Message]) -> str:
        text = chat_prompt.render(source, talk, tokens)
        return text.removeprefix(bos) if bos else text  # Ollama begins every text itself

    try:
        return derived(render)
    except ConvkitError:  # without jinja2, Ollama's own way is left
        return None


def _begins_with_bos(metadata: Mapping[str, Value]) -> bool:
    """Whether a runtime puts the first token there by itself."""
    from convkit.vocabulary.pre_tokenizers import named

    said = metadata.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said.content)
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model is None or model.content != "gpt2":
        return True
    return pre is not None and named(str(pre.content)).adds_bos


def special_tokens(metadata: Mapping[str, Value]) -> dict[str, str]:
    """Role -> text of the tokens that chat templates name (`bos_token`)."""
    found = {f"{role}_token": _token(metadata, role) for role in ("bos", "eos")}
    return {role: text for role, text in found.items() if text is not None}


def _token(metadata: Mapping[str, Value], role: str) -> str | None:
    """The text of the token with a role; None where none has it."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    number = metadata.get(f"tokenizer.ggml.{role}_token_id")
    if tokens is None or number is None or number.content >= len(tokens.content):
        return None
    return str(tokens.content[int(number.content)])


def _stops(metadata: Mapping[str, Value], template: Template | None) -> list[str]:
    """Texts at which an answer ends."""
    found = [_token(metadata, role) for role in ("eos", "eot")]
    ends = _SPECIAL.findall(template.after_answer)[:1] if template else []
    return list(dict.fromkeys(text for text in [*found, *ends] if text is not None))


def write_modelfile(path: Path, metadata: Mapping[str, Value]) -> None:
    """Writes the Modelfile of a GGUF file beside it."""
    target = path.with_name(path.name + SUFFIX)
    target.write_text(modelfile(path.name, metadata), encoding="utf-8")
