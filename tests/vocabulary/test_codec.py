from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from convkit.errors import MissingRequirementError, ModelError
from convkit.vocabulary.codec import Codec, has_tokenizer
from convkit.vocabulary.folder_settings import read_settings
from convkit.vocabulary.sample_text import SAMPLE_TEXT
from tests.language_models import SPECIAL, write_tokenizer

TEXTS = (
    "The ferry to the outer island",
    "  two spaces\n\nand lines",
    "h\u00e9llo \u20ac5 \u65e5\u672c \U0001f642",
    "<|im_start|>user\nhi<|im_end|>there",
    "x",
)
END = {"special": True, "lstrip": False, "rstrip": False, "normalized": False}


def auto_tokenizer(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a SentencePiece model alone, as Llama 2's, and a token that was added to it."""
    spm = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    folder = tmp_path_factory.mktemp("sentences")
    (folder / "corpus.txt").write_text(SAMPLE_TEXT)
    spm.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "legacy": True,
        "added_tokens_decoder": {"400": {"content": "<|im_end|>", **END}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_ids_and_texts_are_those_of_transformers(folder: Path) -> None:
    codec, reference = Codec(folder), auto_tokenizer(folder)
    assert (codec.beginning, codec.ending) == ((SPECIAL.index("<s>"),), ())
    for text in (SAMPLE_TEXT, *TEXTS):
        ids = [*codec.beginning, *codec.encode(text), *codec.ending]
        assert ids == reference(text)["input_ids"]
        assert codec.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_tokens_that_only_the_configuration_knows_are_found_in_texts(tmp_path: Path) -> None:
    added = {"400": {"content": "<|more|>", **END}}
    folder = write_tokenizer(tmp_path, added_tokens_decoder=added, pad_token="<pad>")
    codec, reference = Codec(folder), auto_tokenizer(folder)
    text = "a<|more|>b<pad>"
    ids = codec.encode(text)
    assert ids == reference(text, add_special_tokens=False)["input_ids"]
    assert {400, 401} <= set(ids)
    assert codec.decode(ids) == "ab"


def test_a_text_may_have_tokens_behind_it(tmp_path: Path) -> None:
    file = write_tokenizer(tmp_path) / "tokenizer.json"
    content = json.loads(file.read_text())
    processor = content["post_processor"]
    processor["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    processor["special_tokens"]["</s>"] = {"id": "</s>", "ids": [1], "tokens": ["</s>"]}
    file.write_text(json.dumps(content))
    codec = Codec(tmp_path)
    assert (codec.beginning, codec.ending) == ((0,), (1,))
    assert auto_tokenizer(tmp_path)("x")["input_ids"] == [0, *codec.encode("x"), 1]


def test_a_vocabulary_with_merges_is_read_as_the_newer_file(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    lines = [" ".join(merge) for merge in content["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert has_tokenizer(tmp_path)
    codec, reference = Codec(tmp_path), auto_tokenizer(tmp_path)
    ids = codec.encode(SAMPLE_TEXT)
    assert [*codec.beginning, *ids] == reference(SAMPLE_TEXT)["input_ids"]
    assert codec.decode([*ids, 1]) == SAMPLE_TEXT


def test_sentencepiece_alone_gives_its_own_ids_between_special_tokens(sentences: Path) -> None:
    spm = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    codec = Codec(sentences)
    reference = spm.SentencePieceProcessor(model_file=str(sentences / "tokenizer.model"))
    assert (codec.beginning, codec.ending, codec.end_tokens) == ((1,), (), {2})
    for text in (SAMPLE_TEXT, *TEXTS):
        parts = text.split("<|im_end|>")
        ids = [i for part in parts for i in (*reference.encode(part), 400)][:-1]
        assert codec.encode(text) == ids
        assert codec.decode([1, *ids, 2]) == "".join(
            map(reference.decode, map(reference.encode, parts))
        )
    assert codec.encode("a<s>b")[1:2] == [1]


def test_sentencepiece_alone_gives_the_ids_of_transformers(sentences: Path) -> None:
    codec, reference = Codec(sentences), auto_tokenizer(sentences)
    for text in (
        "The ferry to the outer island",
        "h\u00e9llo \u20ac5 \U0001f642",
        "hi<|im_end|>there",
    ):
        assert [*codec.beginning, *codec.encode(text)] == reference(text)["input_ids"]


def test_sentencepiece_with_ids_of_another_kind_is_refused(sentences: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((sentences / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XGLMTokenizer"}')
    with pytest.raises(ModelError, match="XGLMTokenizer"):
        Codec(tmp_path)


def test_sentencepiece_that_is_missing_is_named(
    sentences: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingRequirementError, match="needs sentencepiece") as caught:
        Codec(sentences)
    assert caught.value.hint == "pip install sentencepiece"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", "{", "is no tokenizer"),
        ("tokenizer.json", '{"version": "1.0"}', "is no tokenizer"),
        ("tokenizer.model", "tiktoken 1", "is no tokenizer"),
        ("notes.txt", "", "There is no tokenizer in"),
    ],
)
def test_a_folder_without_a_usable_tokenizer_says_so(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=words):
        Codec(tmp_path)


def test_texts_end_where_configuration_generation_and_template_say(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    assert Codec(folder).end_tokens == {SPECIAL.index("</s>"), SPECIAL.index("<|im_end|>")}
    (folder / "config.json").write_text('{"text_config": {"eos_token_id": 7}}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert Codec(folder).end_tokens == {1, 7, 8, 9}


def test_a_message_that_is_part_of_a_turn_does_not_end_it(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("<|end|> <|return|>")
    assert read_settings(tmp_path).end_texts == ("<|return|>",)
    (tmp_path / "chat_template.jinja").write_text("<|end|>")
    assert read_settings(tmp_path).end_texts == ("<|end|>",)


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write_tokenizer(tmp_path, chat_template=templates)
    assert read_settings(tmp_path).chat_template == "D"


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"hidden_size": 3}, None),
    ],
)
def test_the_context_length_is_found_under_its_names(
    tmp_path: Path, config: dict[str, Any], length: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_settings(tmp_path).context_length == length
