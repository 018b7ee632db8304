from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from convkit.errors import MissingRequirementError, ModelError
from convkit.vocabulary.chat_prompt import render
from tests.language_models import CHAT_TEMPLATE, write_tokenizer

pytest.importorskip("jinja2", reason="jinja2 is not installed")

LLAMA = (
    "{%- if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif -%}\n"
    "{% for message in rest %}\n"
    "    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
    "        {{ raise_exception('Roles must alternate.') }}\n"
    "    {% endif %}\n"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}\n"
    "{% endfor %}\n"
)
FEATURES = (
    "{{ strftime_now('%d')|length }} {{ messages|tojson(indent=1) }}\n"
    "{% for message in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}"
    "{% set ns = namespace(count=0) %}{% set ns.count = ns.count + 1 %}{{ ns.count }}"
    "{{ eos_token }}{% if tools %}tools{% endif %}{{ missing }}"
)
MESSAGES = [{"role": "user", "content": " Name three rivers <b>&\u00e9. "}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA, FEATURES])
def test_templates_render_as_in_transformers(tmp_path: Path, template: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_tokenizer(tmp_path))
    wanted = tokenizer.apply_chat_template(
        MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert render(template, MESSAGES, SPECIAL) == wanted


def test_a_conversation_that_the_template_refuses_is_told_in_its_words() -> None:
    wrong = [{"role": "assistant", "content": "hi"}]
    with pytest.raises(ModelError, match="refuses this conversation") as caught:
        render(LLAMA, wrong, SPECIAL)
    assert caught.value.why == ("Roles must alternate.",)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for x in %}", "is not valid"),
        ("{{ messages[0].content.nothing.more }}", "refuses"),
        ("{{ 1 / 0 }}", "fails"),
    ],
)
def test_a_broken_template_is_a_model_error(template: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        render(template, MESSAGES, SPECIAL)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ (''|attr('__class__')).mro() }}",
    ],
)
def test_a_template_stays_in_its_sandbox(template: str) -> None:
    said = json.loads(json.dumps(MESSAGES))
    with pytest.raises(ModelError):
        render(template, said, SPECIAL)
    assert said == MESSAGES


def test_jinja_that_is_missing_or_unsafe_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import jinja2

    monkeypatch.setattr(jinja2, "__version__", "3.1.2")
    with pytest.raises(MissingRequirementError, match=r"3\.1\.6 or newer, not 3\.1\.2"):
        render(CHAT_TEMPLATE, MESSAGES, SPECIAL)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingRequirementError, match="need jinja2"):
        render(CHAT_TEMPLATE, MESSAGES, SPECIAL)
