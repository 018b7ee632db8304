"""A real language model on all its ways: GGUF, Hugging Face, ONNX, and back.

SmolLM2-135M-Instruct lies in a package as a Q4_1 file. Its perplexity on the first 2,044 tokens of
Python's own documentation, in windows of 511 tokens behind the token that begins a text, was
measured with transformers on the unpacked weights: 15.57.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

import convkit
from convkit.generation import generate
from convkit.step import LanguageRunner
from tests.material import smollm2_file

pytestmark = pytest.mark.slow

REFERENCE_PERPLEXITY = 15.57
LOSSLESS = 0.005
WINDOW, TOKENS, SOME_WINDOWS, FIRST = 511, 2044, 1, 1
PROMPT = "The three most important things about the sea are"

LOSSLESS_ROUTES = ("f32.gguf", "f16.gguf", "float-onnx", "exact-onnx")
LOSSY_ROUTES = {"q8_0.gguf": 0.02, "q6_k.gguf": 0.05, "q4_k_m.gguf": 0.15, "fast-onnx": 0.02}
"""Route -> how much the perplexity may rise; what runtimes round is in it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model in every form."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    folder = tmp_path_factory.mktemp("smollm2")
    hf = folder / "hf"
    convert = {"verify": False}
    convkit.convert(smollm2_file(), to="torch", out=hf, **convert)
    for scheme in ("f32", "f16", "q8_0", "q6_k", "q4_k_m"):
        convkit.convert(hf, to="gguf", scheme=scheme, out=folder / f"{scheme}.gguf", **convert)
    convkit.convert(hf, to="onnx", out=folder / "float-onnx", **convert)
    convkit.convert(smollm2_file(), to="onnx", out=folder / "fast-onnx", **convert)
    settings = {"gguf-to-onnx.accuracy_level": 1}
    exact = folder / "exact-onnx"
    convkit.convert(smollm2_file(), to="onnx", out=exact, settings=settings, **convert)
    return folder


def opened(path: Path) -> LanguageRunner:
    runner = convkit.load(path)
    assert isinstance(runner, LanguageRunner)
    return runner


def losses(runner: LanguageRunner, ids: Sequence[int]) -> np.ndarray[Any, Any]:
    """Negative log likelihood of every token, each in its window."""
    found = []
    for begin in range(0, len(ids), WINDOW):
        row = np.array([[FIRST, *ids[begin : begin + WINDOW]]])
        feeds = {"input_ids": row, "attention_mask": np.ones_like(row)}
        logits: np.ndarray[Any, Any] = runner(feeds)["logits"][0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found.append(-likely[np.arange(row.size - 1), row[0, 1:]])
    return np.concatenate(found)


@pytest.fixture(scope="module")
def text(made: Path) -> list[int]:
    with opened(made / "hf") as runner:
        return runner.encode("\n\n".join(topics.values())[:20000], is_prompt=False)[:TOKENS]


@pytest.fixture(scope="module")
def unpacked(made: Path, text: list[int]) -> np.ndarray[Any, Any]:
    """What the unpacked folder makes of the text, in PyTorch."""
    with opened(made / "hf") as runner:
        return losses(runner, text)


def test_the_unpacked_folder_reads_documentation_as_the_reference(
    unpacked: np.ndarray[Any, Any],
) -> None:
    assert np.exp(unpacked.mean()) == pytest.approx(REFERENCE_PERPLEXITY, rel=LOSSLESS)


def risen(made: Path, text: list[int], unpacked: np.ndarray[Any, Any], route: str) -> float:
    """The perplexity of the first windows over that of the unpacked folder."""
    some = SOME_WINDOWS * WINDOW
    with opened(made / route) as runner:
        return float(np.exp(losses(runner, text[:some]).mean() - unpacked[:some].mean()))


@pytest.mark.parametrize("route", LOSSLESS_ROUTES)
def test_what_loses_nothing_reads_it_alike(
    made: Path, text: list[int], unpacked: np.ndarray[Any, Any], route: str
) -> None:
    assert risen(made, text, unpacked, route) == pytest.approx(1, abs=LOSSLESS)


@pytest.mark.parametrize("route", LOSSY_ROUTES)
def test_what_is_quantized_reads_it_hardly_worse(
    made: Path, text: list[int], unpacked: np.ndarray[Any, Any], route: str
) -> None:
    assert risen(made, text, unpacked, route) < 1 + LOSSY_ROUTES[route]


@pytest.fixture(scope="module")
def continued(made: Path) -> list[int]:
    return continued_by(made / "hf")


def continued_by(path: Path) -> list[int]:
    with opened(path) as runner:
        return [piece.token for piece in generate(runner, PROMPT, max_tokens=32)]


@pytest.mark.parametrize("route", LOSSLESS_ROUTES)
def test_what_loses_nothing_continues_a_text_alike(
    made: Path, continued: list[int], route: str
) -> None:
    assert continued_by(made / route) == continued
