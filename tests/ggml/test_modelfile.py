"""Modelfiles for Ollama: their templates give the prompts that the model's own template gives."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from convkit.ggml.modelfile import Message, derived, modelfile
from convkit.ggml.values import typed
from convkit.vocabulary import chat_prompt

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot|>' }}{% endfor %}{{ '<|start|>assistant<|end|>\n\n' }}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('no system messages') }}{% endif %}{% set who = 'model' if "
    "m['role'] == 'assistant' else 'user' %}{{ '<turn>' + who + '\n' + m['content'] }}"
    "{{ '</turn>\n' }}"
    "{% endfor %}{{ '<turn>model\n' }}"
)
SYSTEM_IN_QUESTION = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] + '\n\n' }}{% endif %}{{ m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def talk(*texts: str, system: str = "") -> list[Message]:
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *said] if system else said


def as_ollama(template: str, system: str, messages: Sequence[Message]) -> str:
    """What Ollama makes of a Go template of this form: once for each question and its answer."""
    first = messages[0]["content"] if messages[0]["role"] == "system" else system
    rest = [m["content"] for m in messages if m["role"] != "system"]
    text = ""
    for number in range(0, len(rest), 2):
        said = {
            ".System": first if number == 0 else "",
            ".Prompt": rest[number],
            ".Response": rest[number + 1] if number + 1 < len(rest) else "",
        }
        source = template
        if not said[".Response"]:
            source = source.partition("{{ .Response }}")[0]
        source = re.sub(
            r"\{\{ if (\.\w+) \}\}(.*?)\{\{ end \}\}",
            lambda match, said=said: match[2] if said[match[1]] else "",  # type: ignore[misc]
            source,
            flags=re.DOTALL,
        )
        for name, value in said.items():
            source = source.replace(f"{{{{ {name} }}}}", value)
        text += source
    return text


@pytest.mark.parametrize(
    ("source", "knows_system"),
    [(CHATML, True), (HEADERS, True), (DEFAULT_SYSTEM, True), (NO_SYSTEM, False)],
    ids=["chatml", "headers", "default-system", "no-system"],
)
def test_the_derived_template_gives_the_prompts_of_the_models_own(
    source: str, knows_system: bool
) -> None:
    def render(messages: Sequence[Message]) -> str:
        return chat_prompt.render(source, messages, TOKENS).removeprefix("<s>")

    template = derived(render)
    assert template is not None
    talks = [talk("Why?"), talk("Why?", "Because.", "Really?", "Yes.", "Well then.")]
    if knows_system:
        talks += [[*talk("", system="Be brief.")[:1], *each] for each in talks]
    for each in talks:
        assert as_ollama(str(template), template.system, each) == render(each)


@pytest.mark.parametrize("source", ["{{ messages | length }}", SYSTEM_IN_QUESTION])
def test_a_template_of_another_form_is_left_to_ollama(source: str) -> None:
    assert derived(lambda m: chat_prompt.render(source, m, TOKENS)) is None


def test_a_modelfile_names_the_file_the_system_message_and_the_stops() -> None:
    metadata = {
        "tokenizer.chat_template": typed(DEFAULT_SYSTEM),
        "tokenizer.ggml.model": typed("gpt2"),
        "tokenizer.ggml.add_bos_token": typed(False),
        "tokenizer.ggml.tokens": typed(["a", "<|endoftext|>"]),
        "tokenizer.ggml.eos_token_id": typed(1),
    }
    lines = modelfile("m.gguf", metadata).splitlines()
    assert lines[0] == "FROM ./m.gguf"
    assert 'SYSTEM """Be kind."""' in lines
    assert lines[-2:] == ['PARAMETER stop "<|endoftext|>"', 'PARAMETER stop "<|im_end|>"']
