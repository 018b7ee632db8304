from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convkit import vocabulary
from convkit.errors import ModelError, UnsupportedError
from convkit.ggml.llama import LlamaModel
from convkit.vocabulary import TokenType
from convkit.vocabulary.assembly import added_entry
from convkit.vocabulary.reference import Reference, reference_of
from convkit.vocabulary.sentencepiece_model import read
from convkit.vocabulary.stress_texts import PLAIN
from tests.vocabulary.tiny_tokenizers import (
    restored,
    saved,
    train_sentencepiece,
    vocabulary_file,
)

SPACE = "\u2581"
LLAMA_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ],
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma's settings: no space before a text, runs of spaces and lines found beforehand."""
    return train_sentencepiece(
        tmp_path_factory.mktemp("gemma"),
        add_dummy_prefix=False,
        user_defined_symbols=[SPACE * 2, SPACE * 3, "\n", "\n\n", "<start_of_turn>"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
    )


@pytest.fixture(scope="module")
def llama_json(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `tokenizer.json` that transformers makes of the Llama model."""
    from transformers import LlamaTokenizer

    folder = tmp_path_factory.mktemp("llama-json")
    LlamaTokenizer.from_pretrained(llama).save_pretrained(folder)
    tokenizer: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    return tokenizer


def proven(folder: Path, file: Path) -> tuple[str, ...]:
    said = vocabulary.prove(folder, file)
    assert said[0].startswith("The tokenizer is proven")
    return said


@pytest.mark.parametrize(("style", "is_prefixed"), [("llama", True), ("gemma", False)])
def test_a_model_of_sentencepiece_is_split_alike_and_comes_back(
    style: str, is_prefixed: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(style)
    found = vocabulary.of_folder(folder, {"vocab_size": 832})
    file = vocabulary_file(tmp_path / "vocabulary.gguf", found)
    assert found.flags["add_space_prefix"] is is_prefixed
    assert "sentencepiece" in proven(folder, file)[0]
    back = restored(tmp_path / "back", found)
    assert "tokenizers" in proven(back, file)[0]
    again = vocabulary.of_folder(back, {"vocab_size": 832})
    assert (again.tokens, again.types) == (found.tokens, found.types)
    assert (again.ids, again.flags) == (found.ids, found.flags)
    proven(back, vocabulary_file(tmp_path / "again.gguf", again))


@pytest.mark.parametrize("style", ["llama", "gemma"])
def test_transformers_splits_the_folder_as_llama_cpp_splits_the_file(
    style: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoTokenizer

    found = vocabulary.of_folder(request.getfixturevalue(style), {})
    file = vocabulary_file(tmp_path / "vocabulary.gguf", found)
    back = restored(tmp_path / "back", found)
    (back / "config.json").write_text(json.dumps({"model_type": style}))
    tokenizer = AutoTokenizer.from_pretrained(back)
    with LlamaModel(file, vocab_only=True) as model:
        for text in (*PLAIN, "a<s>b", "a<start_of_turn>b"):
            ids = model.tokenize(text, add_special=True, parse_special=True)
            assert tokenizer(text).input_ids == ids, text
            if "<s>" not in text:  # behind which there is one more space
                assert tokenizer.decode(ids[1:]) == text


def test_pieces_are_read_as_sentencepiece_reads_them(gemma: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    model = read(gemma / "tokenizer.model")
    original = SentencePieceProcessor(model_file=str(gemma / "tokenizer.model"))
    assert len(model.pieces) == original.get_piece_size()
    for number, piece in enumerate(model.pieces):
        assert (piece.text, piece.score) == (
            original.id_to_piece(number),
            original.get_score(number),
        )
        assert (piece.type == TokenType.CONTROL) == original.is_control(number)
        assert (piece.type == TokenType.BYTE) == original.is_byte(number)
    assert model.ids == {"pad": 0, "eos": 1, "bos": 2, "unk": 3}
    assert not model.adds_space_prefix
    assert model.has_byte_fallback


def test_user_defined_pieces_hold_spaces_and_unused_rows_are_filled(gemma: Path) -> None:
    found = vocabulary.of_folder(gemma, {"vocab_size": 1000})
    assert found.types[found.tokens.index("   ")] == TokenType.USER_DEFINED
    assert found.tokens[999] == "[PAD999]"
    assert found.types[999] == TokenType.UNUSED
    assert len(found.scores) == 1000
    assert found.ids == {"pad": 0, "eos": 1, "bos": 2, "unk": 3}
    assert found.flags["add_bos_token"] is True


def test_merges_give_scores_that_merge_alike(llama_json: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(tmp_path / "folder", llama_json | {"normalizer": LLAMA_NORMALIZER,
                                                     "pre_tokenizer": None})  # fmt: skip
    found = vocabulary.of_folder(folder, {})
    assert len(proven(folder, vocabulary_file(tmp_path / "vocabulary.gguf", found))) == 1


def test_merges_of_added_tokens_do_not_count(llama_json: dict[str, Any], tmp_path: Path) -> None:
    merges = llama_json["model"]["merges"]
    text = "".join(merges[0])
    entry = added_entry(llama_json["model"]["vocab"][text], text, is_special=False)
    tokenizer = llama_json | {
        "model": llama_json["model"] | {"merges": [*merges, merges[0]]},
        "added_tokens": [*llama_json["added_tokens"], entry],
    }
    found = vocabulary.of_folder(saved(tmp_path, tokenizer), {})
    assert found.types[entry["id"]] == TokenType.USER_DEFINED


def test_the_models_own_scores_are_taken_where_they_are_there(
    llama: Path, llama_json: dict[str, Any], tmp_path: Path
) -> None:
    folder = saved(tmp_path / "folder", llama_json)
    (folder / "tokenizer.model").write_bytes((llama / "tokenizer.model").read_bytes())
    found = vocabulary.of_folder(folder, {})
    pieces = read(folder / "tokenizer.model").pieces
    assert found.scores[3:] == [piece.score for piece in pieces[3:]]
    proven(folder, vocabulary_file(tmp_path / "vocabulary.gguf", found))


@pytest.mark.parametrize(("scheme", "limit_count"), [("first", 2), ("always", 1), ("never", 0)])
def test_spaces_before_a_text_that_llama_cpp_adds_are_said(
    scheme: str, limit_count: int, llama_json: dict[str, Any], tmp_path: Path
) -> None:
    cut = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    tokenizer = llama_json | {"normalizer": None, "pre_tokenizer": cut}
    folder = saved(tmp_path / "folder", tokenizer)
    found = vocabulary.of_folder(folder, {})
    said = proven(folder, vocabulary_file(tmp_path / "vocabulary.gguf", found))
    assert len(said) == 1 + limit_count
    assert all("puts a space before" in limit for limit in said[1:])


def test_tokens_that_are_found_behind_a_space_only_are_said(
    llama_json: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = llama_json | {"normalizer": LLAMA_NORMALIZER, "pre_tokenizer": None}
    entry = added_entry(len(llama_json["model"]["vocab"]), "<tool>", is_special=True)
    tokenizer["added_tokens"] = [*llama_json["added_tokens"], entry | {"normalized": True}]
    folder = saved(tmp_path / "folder", tokenizer)
    found = vocabulary.of_folder(folder, {})
    file = vocabulary_file(tmp_path / "vocabulary.gguf", found)
    (limit,) = proven(folder, file)[1:]
    assert "llama.cpp finds <tool> anywhere" in limit
    reference = reference_of(folder)
    assert isinstance(reference, Reference)
    with LlamaModel(file, vocab_only=True) as model:
        ids = model.tokenize("x<tool>y", add_special=False, parse_special=True)
    assert entry["id"] in ids
    assert entry["id"] not in reference.encode("x<tool>y", False, True)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "split": True}},
            "Metaspace",
        ),
        ({"normalizer": {"type": "NFKC"}, "pre_tokenizer": None}, "NFKC"),
        ({"normalizer": None, "pre_tokenizer": None}, "none"),
    ],
)
def test_other_ways_with_spaces_are_refused(
    parts: dict[str, Any], said: str, llama_json: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match="replaces spaces") as caught:
        vocabulary.of_folder(saved(tmp_path, llama_json | parts), {})
    assert said in str(caught.value)


def test_merges_that_scores_cannot_express_are_refused(
    llama_json: dict[str, Any], tmp_path: Path
) -> None:
    merges = llama_json["model"]["merges"]
    lacking = llama_json | {"model": llama_json["model"] | {"merges": merges[1:]}}
    with pytest.raises(UnsupportedError, match="in a way of its own") as caught:
        vocabulary.of_folder(saved(tmp_path / "lacking", lacking), {})
    assert "There is no merge of" in str(caught.value)
    by_text: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(merges):
        by_text.setdefault(left + right, []).append(rank)
    rank = next(ranks[0] for ranks in by_text.values() if len(ranks) > 1)
    moved = [*merges[:rank], *merges[rank + 1 :], merges[rank]]
    apart = llama_json | {"model": llama_json["model"] | {"merges": moved}}
    with pytest.raises(UnsupportedError, match="in a way of its own") as caught:
        vocabulary.of_folder(saved(tmp_path / "apart", apart), {})
    assert "stand apart" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_type": "unigram"}, "unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "replaces characters"),
        ({"remove_extra_whitespaces": True}, "removes spaces"),
        ({"byte_fallback": False, "character_coverage": 1.0}, "0 tokens for bytes"),
    ],
)
def test_models_that_llama_cpp_would_split_by_differently_are_refused(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = train_sentencepiece(tmp_path, **options)
    with pytest.raises(UnsupportedError) as caught:
        vocabulary.of_folder(folder, {})
    assert said in str(caught.value)


def test_a_list_of_tiktoken_is_no_model_of_sentencepiece(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(ModelError, match="is no SentencePiece model"):
        vocabulary.of_folder(tmp_path, {})


def test_added_tokens_without_a_row_are_left_out_and_said(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((llama / "tokenizer.model").read_bytes())
    size = len(read(llama / "tokenizer.model").pieces)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": size, "<tool>": size + 1}))
    found = vocabulary.of_folder(tmp_path, {"vocab_size": size})
    assert len(found.tokens) == size
    assert f"resize_token_embeddings({size + 2})" in found.notes[0]
    with pytest.raises(ModelError, match=f"has {size} rows|has {size - 1} rows") as caught:
        vocabulary.of_folder(llama, {"vocab_size": size - 1})
    assert "no added token" in str(caught.value)
    kept = vocabulary.of_folder(tmp_path, {"vocab_size": size + 2})
    assert kept.tokens[size:] == ["<pad>", "<tool>"]
    assert kept.types[size:] == [TokenType.CONTROL, TokenType.USER_DEFINED]
