from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit import cli, generation, library
from convkit.errors import ModelError, UsageError
from convkit.generation import Piece, generate
from convkit.vocabulary.codec import Codec
from tests.language_models import (
    CHAT_TEMPLATE,
    SPECIAL,
    Scripted,
    greedy,
    language_folder,
    write_tokenizer,
)

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

TEXT = (
    "The caf\u00e9 costs \u20ac5 \u2013 \u65e5\u672c\u8a9e \U0001f642\U0001f468\u200d\U0001f680 ok."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def scripted(folder: Path, script: list[Any]) -> Scripted:
    return Scripted(folder, script)


def joined(pieces: Iterator[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_text_comes_in_whole_characters(folder: Path) -> None:
    script = Codec(folder).encode(TEXT)
    runner = scripted(folder, script)
    pieces = list(generate(runner, "Say:", max_tokens=len(script)))
    assert "".join(piece.text for piece in pieces) == TEXT
    assert [piece.token for piece in pieces] == script
    assert all("\ufffd" not in piece.text for piece in pieces)
    assert sum(not piece.text for piece in pieces) > 10  # bytes that wait for the rest
    assert runner.fed == [*runner.encode("Say:"), *script[:-1]]


def test_a_character_that_is_never_finished_comes_at_the_end(folder: Path) -> None:
    script = Codec(folder).encode("a\U0001f642")[:-1]
    assert joined(generate(scripted(folder, script), "x", max_tokens=len(script))) == "a\ufffd"


def test_bytes_that_are_no_character_do_not_hold_back_what_follows(folder: Path) -> None:
    codec = Codec(folder)
    script = [*codec.encode("\U0001f642")[:2], *codec.encode("abc")]
    pieces = list(generate(scripted(folder, script), "x", max_tokens=len(script)))
    assert "".join(piece.text for piece in pieces) == codec.decode(script)
    assert pieces[-1].text in ("c", "bc", "abc")


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>"])
def test_the_text_stops_at_a_token_that_ends_it(folder: Path, end: str) -> None:
    script = [*Codec(folder).encode("Done."), SPECIAL.index(end), 300]
    pieces = list(generate(scripted(folder, script), "x"))
    assert "".join(piece.text for piece in pieces) == "Done."
    assert (pieces[-1].end, pieces[-1].token) == ("end", SPECIAL.index(end))
    assert all(piece.end == "" for piece in pieces[:-1])


def test_the_text_stops_where_the_context_is_full(folder: Path) -> None:
    runner = scripted(folder, [300])
    runner.context_length = 10
    pieces = list(generate(runner, "The ferry", max_tokens=64))
    assert pieces[-1].end == "context"
    assert len(runner.encode("The ferry")) + len(pieces) == 10
    with pytest.raises(UsageError, match=r"has \d+ tokens; the model takes 10"):
        generate(runner, "a b c d e f g h i j k")


def test_a_long_prompt_is_fed_in_pieces(folder: Path) -> None:
    runner = scripted(folder, [300, 300, 5])
    prompt = "x " * 700
    (piece,) = generate(runner, prompt, max_tokens=1)
    tokens = runner.encode(prompt)
    assert len(tokens) > 1024
    assert runner.fed == tokens
    assert piece.token == 5  # of the third feed
    assert piece.speed.prompt_token_count == len(tokens)


def test_draws_follow_the_probabilities_of_the_temperature(folder: Path) -> None:
    chances = np.array([0.5, 0.3, 0.15, 0.05])
    first, count = 300, 4000
    runner = scripted(folder, [np.append(np.full(first, -np.inf), np.log(chances))])

    def shares(**options: Any) -> np.ndarray[Any, Any]:
        made = [p.token for p in generate(runner, "x", max_tokens=count, **options)]
        assert len(made) == count
        return np.bincount(np.array(made) - first, minlength=4) / count

    # Three standard deviations of a share among 4000 draws are at most 0.024.
    np.testing.assert_allclose(shares(temperature=1.0), chances, atol=0.025)
    colder = chances**2 / (chances**2).sum()
    np.testing.assert_allclose(shares(temperature=0.5), colder, atol=0.025)
    top = np.array([0.5, 0.3, 0, 0]) / 0.8
    np.testing.assert_allclose(shares(temperature=1.0, top_p=0.7), top, atol=0.025)
    np.testing.assert_array_equal(shares(temperature=1.0, top_p=0.4), [1, 0, 0, 0])
    np.testing.assert_array_equal(shares(), [1, 0, 0, 0])


def test_the_same_seed_gives_the_same_text(folder: Path) -> None:
    runner = scripted(folder, [np.zeros(400)])

    def tokens(seed: int) -> list[int]:
        drawn = generate(runner, "x", max_tokens=12, temperature=1.0, seed=seed)
        return [piece.token for piece in drawn]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_a_chat_is_put_into_the_models_template(folder: Path) -> None:
    runner = scripted(folder, [SPECIAL.index("<|im_end|>")])
    assert runner.chat_template == CHAT_TEMPLATE
    list(generate(runner, " Name three rivers. ", is_chat=True))
    wanted = "<s><|im_start|>user\nName three rivers.<|im_end|>\n<|im_start|>assistant\n"
    assert runner.fed == Codec(folder).encode(wanted)


def test_a_chat_needs_a_template(folder: Path) -> None:
    runner = scripted(folder, [300])
    runner.chat_template = ""
    with pytest.raises(ModelError, match="has no chat template"):
        generate(runner, "Hello", is_chat=True)
    runner.chat_template = "{{ raise_exception('System first.') }}"
    with pytest.raises(ModelError, match="refuses") as caught:
        generate(runner, "Hello", is_chat=True)
    assert caught.value.why == ("System first.",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 0}, "0 tokens"),
        ({"temperature": -1.0}, "temperature of -1"),
        ({"temperature": float("nan")}, "temperature of nan"),
        ({"top_p": 0.0}, "top-p of 0"),
        ({"top_p": 1.5}, "top-p of 1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(
    folder: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        generate(scripted(folder, [300]), "x", **options)


def test_an_empty_prompt_needs_a_token_that_begins_texts(folder: Path, tmp_path: Path) -> None:
    assert len(list(generate(scripted(folder, [300]), "", max_tokens=2))) == 2
    file = write_tokenizer(tmp_path) / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    with pytest.raises(UsageError, match="prompt is empty"):
        generate(scripted(tmp_path, [300]), "")


def test_scores_that_are_no_numbers_are_told(folder: Path) -> None:
    runner = scripted(folder, [np.full(400, np.nan)])
    with pytest.raises(ModelError, match="NaN"):
        next(generate(runner, "x"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    return language_folder("llama", tmp_path_factory.mktemp("llama") / "model")


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["convkit", "generate", *words])
    return cli.outcome(lambda: cli.cli.main(prog_name="convkit", standalone_mode=False))


def test_the_command_prints_the_text_that_transformers_generates(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(model)
    codec = Codec(model)
    wanted = greedy(network, [*codec.beginning, *codec.encode("The ferry")], 20)
    stop = next((i for i, token in enumerate(wanted) if token in codec.end_tokens), 20)
    assert stop > 5
    capfd.readouterr()
    assert run(monkeypatch, str(model), "The ferry", "-n", str(stop)) == 0
    said = capfd.readouterr()
    assert said.out == codec.decode(wanted[:stop]) + "\n"
    length = len(codec.beginning) + len(codec.encode("The ferry"))
    assert re.fullmatch(rf"pp{length} [\d.]+ t/s   tg{stop} [\d.]+ t/s\n", said.err)


def test_the_command_gives_one_document_and_reads_standard_input(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("The ferry"))
    words = ("-", "-n", "6", "--temperature", "1", "--seed", "3", "--json")
    assert run(monkeypatch, str(model), *words) == 0
    said = capfd.readouterr()
    found = json.loads(said.out)
    assert said.err == ""
    with library.load(model) as runner:
        language = generation.require_language(runner, "m")
        pieces = list(generate(language, "The ferry", max_tokens=6, temperature=1.0, seed=3))
    assert found["tokens"] == [piece.token for piece in pieces]
    assert found["text"] == "".join(piece.text for piece in pieces)
    assert (found["prompt"], found["end"]) == ("The ferry", pieces[-1].end)
    assert found["prompt_tokens_per_s"] > 0
    assert found["tokens_per_s"] > 0
