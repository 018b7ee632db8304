from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convkit import vocabulary
from convkit.errors import ModelError, UnsupportedError
from convkit.ggml.llama import LlamaModel
from convkit.vocabulary import TokenType
from convkit.vocabulary.assembly import added_entry, template
from convkit.vocabulary.pre_tokenizers import named, written
from convkit.vocabulary.stress_texts import PLAIN
from tests.material import minilm_folder
from tests.vocabulary.tiny_tokenizers import (
    ENDS,
    WORDS_OF_BYTES,
    Json,
    byte_level,
    restored,
    saved,
    vocabulary_file,
)

NUMBERS = {text: number for number, text in enumerate(ENDS)}
BOTH = template(*ENDS, NUMBERS, pairs_as_bert=False)
FRONT = template(ENDS[0], "", NUMBERS, pairs_as_bert=False)
ROLES = {"bos_token": ENDS[0], "eos_token": ENDS[1], "pad_token": {"content": ENDS[1]}}


def gguf_of(folder: Path, path: Path, config: Json) -> Path:
    return vocabulary_file(path, vocabulary.of_folder(folder, config))


SPECIAL: dict[str, tuple[Json | None, Json, Json]] = {
    "nothing": (None, {}, {}),
    "front": (FRONT, ROLES, {}),
    "front and end": (BOTH, ROLES, {}),
    "end that is not eos": (BOTH, {"bos_token": ENDS[0], "eos_token": "a"}, {}),
    "configuration": (None, {}, {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 1}),
    "overridden": (BOTH, ROLES | {"add_bos_token": False, "add_eos_token": True}, {}),
    "asked for": (None, ROLES | {"add_bos_token": True}, {}),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_special_tokens_are_those_llama_cpps_converter_finds(case: str, tmp_path: Path) -> None:
    import gguf

    post_processor, tokenizer_config, config = SPECIAL[case]
    tokenizer = byte_level(WORDS_OF_BYTES, post_processor=post_processor)
    if case == "end that is not eos":
        tokenizer["added_tokens"].append(added_entry(tokenizer["model"]["vocab"]["a"], "a",
                                                     is_special=True))  # fmt: skip
    folder = saved(tmp_path, tokenizer, tokenizer_config)
    (folder / "config.json").write_text(json.dumps(config))
    found = vocabulary.of_folder(folder, config)
    theirs = gguf.SpecialVocab(folder, load_merges=True)
    assert found.ids == theirs.special_token_ids
    flags = {role: found.flags.get(f"add_{role}_token", False) for role in ("bos", "eos", "sep")}
    assert flags == {"bos": False, "eos": False, "sep": False} | theirs.add_special_token
    assert list(found.merges) == theirs.merges
    assert vocabulary.prove(folder, vocabulary_file(tmp_path / "vocabulary.gguf", found))


def test_special_tokens_of_bert_are_those_llama_cpps_converter_finds() -> None:
    import gguf

    found = vocabulary.of_folder(minilm_folder(), {"vocab_size": 30522})
    theirs = gguf.SpecialVocab(minilm_folder(), n_vocab=30522)
    assert found.ids == theirs.special_token_ids
    assert found.flags == {f"add_{role}_token": on for role, on in theirs.add_special_token.items()}


def test_two_tokens_before_a_text_are_refused(tmp_path: Path) -> None:
    twice = FRONT | {"single": [FRONT["single"][0], *FRONT["single"]]}
    folder = saved(tmp_path, byte_level(WORDS_OF_BYTES, post_processor=twice), ROLES)
    with pytest.raises(UnsupportedError, match=r"puts <\|begin\|> <\|begin\|> around"):
        vocabulary.of_folder(folder, {})


def test_added_tokens_have_the_types_they_are_for(tmp_path: Path) -> None:
    tokenizer = byte_level(WORDS_OF_BYTES)
    count = len(tokenizer["model"]["vocab"])
    texts = ("<tool>", "<|looks special|>", "\u2581\u2581", "<s>")
    tokenizer["added_tokens"] += [
        added_entry(count + index, text, is_special=text == "<s>")
        for index, text in enumerate(texts)
    ]
    folder = saved(tmp_path / "folder", tokenizer)
    found = vocabulary.of_folder(folder, {"vocab_size": count + 6})
    user, control, unused = TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNUSED
    assert found.tokens[count:] == [
        "<tool>", "<|looks special|>", "  ", "<s>", f"[PAD{count + 4}]", f"[PAD{count + 5}]",
    ]  # fmt: skip
    assert found.types[count:] == [user, control, user, control, unused, unused]


def test_a_token_only_the_configuration_adds_is_there(tmp_path: Path) -> None:
    tokenizer = byte_level(WORDS_OF_BYTES)
    count = len(tokenizer["model"]["vocab"])
    config = {"added_tokens_decoder": {str(count): {"content": "<tool>", "special": True}}}
    folder = saved(tmp_path / "folder", tokenizer, config)
    found = vocabulary.of_folder(folder, {})
    assert (found.tokens[count], found.types[count]) == ("<tool>", TokenType.CONTROL)
    assert vocabulary.prove(folder, vocabulary_file(tmp_path / "vocabulary.gguf", found))


@pytest.mark.parametrize(
    ("model_type", "pre", "tokenizer_class"),
    [
        ("llama", "llama-bpe", "TokenizersBackend"),
        ("qwen2", "qwen2", "Qwen2Tokenizer"),
        ("gpt2", "gpt-2", "TokenizersBackend"),
        ("phi3", "gpt-4o", "TokenizersBackend"),
    ],
)
def test_transformers_loads_what_a_file_became(
    model_type: str, pre: str, tokenizer_class: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    row = named(pre)
    tokenizer = byte_level(
        written(row), ignore_merges=row.ignores_merges, is_trained_on_cut=row.cases_are_ascii,
        post_processor=FRONT,
    )  # fmt: skip
    found = vocabulary.of_folder(saved(tmp_path / "folder", tokenizer, ROLES), {})
    file = vocabulary_file(tmp_path / "vocabulary.gguf", found)
    back = restored(tmp_path / "back", found)
    (back / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(back)
    assert type(loaded).__name__ == tokenizer_class
    with LlamaModel(file, vocab_only=True) as model:
        for text in PLAIN:
            if text.isascii():
                ids = model.tokenize(text, add_special=True, parse_special=True)
                assert loaded(text).input_ids == ids, text


def test_a_vocabulary_and_merges_alone_are_read_by_their_class(tmp_path: Path) -> None:
    tokenizer = byte_level(WORDS_OF_BYTES)
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in tokenizer["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    saved(tmp_path, config={"tokenizer_class": "GPT2Tokenizer", "eos_token": ENDS[1]})
    found = vocabulary.of_folder(tmp_path, {})
    assert (found.pre, found.ids) == ("gpt-2", {"eos": 1})
    assert vocabulary.prove(tmp_path, vocabulary_file(tmp_path / "vocabulary.gguf", found))
    saved(tmp_path, config={"tokenizer_class": "Qwen2TokenizerFast"})
    assert vocabulary.of_folder(tmp_path, {}).pre == "qwen2"
    saved(tmp_path, config={"tokenizer_class": "OwnTokenizer"})
    with pytest.raises(UnsupportedError, match="How 'Own' cuts text"):
        vocabulary.of_folder(tmp_path, {})


def test_a_folder_without_a_tokenizer_is_told_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(ModelError, match="There is no tokenizer") as caught:
        vocabulary.of_folder(tmp_path, {})
    said = str(caught.value)
    assert "tokenizer.json, tokenizer.model, vocab.json and merges.txt, vocab.txt" in said
    assert "config.json, tekken.json" in said


def test_a_truncated_file_is_damaged(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level(WORDS_OF_BYTES))
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"tokenizer\.json is not valid JSON"):
        vocabulary.of_folder(folder, {})
    path.write_text('{"version": "1.0"}')
    with pytest.raises(ModelError, match="holds no tokenizer"):
        vocabulary.of_folder(folder, {})


def test_unigram_models_are_refused(tmp_path: Path) -> None:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    with pytest.raises(UnsupportedError, match="Unigram; BPE and WordPiece can be converted"):
        vocabulary.of_folder(saved(tmp_path, {"model": model}), {})


def test_more_tokens_than_rows_are_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level(WORDS_OF_BYTES))
    with pytest.raises(ModelError, match="has 300 rows") as caught:
        vocabulary.of_folder(folder, {"vocab_size": 300})
    assert "id 300" in str(caught.value)


def test_chat_templates_are_where_transformers_has_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    long = "{% for message in messages %}{{ message['content'] }}\r\n{% endfor %}" * 30
    cases: list[tuple[Any, dict[str, str]]] = [
        ("{{ bos_token }}", {"default": "{{ bos_token }}"}),
        (long, {"default": long}),
        (long.replace("\r", ""), {"default": long.replace("\r", "")}),
        ([{"name": "default", "template": "a"}, {"name": "tool use", "template": "b"}],
         {"default": "a", "tool_use": "b"}),
        ([{"name": "rag", "template": "c"}], {"rag": "c"}),
    ]  # fmt: skip
    for number, (stated, expected) in enumerate(cases):
        folder = saved(
            tmp_path / f"from-{number}", byte_level(WORDS_OF_BYTES), {"chat_template": stated}
        )
        found = vocabulary.of_folder(folder, {})
        back = restored(tmp_path / f"to-{number}", found)
        assert vocabulary.of_folder(back, {}).templates == expected
        (back / "config.json").write_text('{"model_type": "gpt2"}')
        theirs = AutoTokenizer.from_pretrained(back).chat_template
        assert theirs == (expected["default"] if set(expected) == {"default"} else expected)


def test_a_template_in_a_file_goes_before_the_configurations(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level(WORDS_OF_BYTES), {"chat_template": "old"})
    (folder / "chat_template.jinja").write_bytes(b"new\r\nlines\n")
    entries = vocabulary.of_folder(folder, {}).metadata()
    assert entries["tokenizer.chat_template"] == "new\nlines\n"


def test_named_templates_have_keys_of_their_own(tmp_path: Path) -> None:
    stated = [{"name": "default", "template": "a"}, {"name": "tool use", "template": "b"}]
    folder = saved(tmp_path, byte_level(WORDS_OF_BYTES), {"chat_template": stated})
    entries = vocabulary.of_folder(folder, {}).metadata()
    assert entries["tokenizer.chat_template"] == "a"
    assert entries["tokenizer.chat_template.tool_use"] == "b"
    assert entries["tokenizer.chat_templates"] == ["tool_use"]
