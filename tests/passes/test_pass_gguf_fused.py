"""From a Hugging Face folder to a quantized file in one step, with importance data of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convkit
from convkit import pipeline, recipe
from convkit.converters import gguf_writing
from convkit.errors import MissingRequirementError, SamplesError, UsageError
from convkit.ggml.header import read_header
from convkit.ggml.importance_file import read_importance
from convkit.step import Package
from convkit.vocabulary.sample_text import SAMPLE_TEXT
from tests.language_models import VOCABULARY_SIZE, write_tokenizer
from tests.passes.gguf_passes import content, requantize

torch = pytest.importorskip("torch", reason="PyTorch measures importance")
tiny = pytest.importorskip(
    "tests.checkpoint.tiny_language_models", reason="transformers makes the models"
)

PIECE = 64
"""Tokens that the model takes at most."""


def _network() -> Any:
    return tiny.llama(
        hidden_size=256, intermediate_size=512, vocab_size=VOCABULARY_SIZE,
        max_position_embeddings=PIECE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / "tiny"
    dtype = getattr(torch, getattr(request, "param", "bfloat16"))
    _network().to(dtype).save_pretrained(folder)
    return write_tokenizer(folder)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SAMPLE_TEXT, encoding="utf-8")
    return path


def _quantized(folder: Path, out: Path, scheme: str = "q4_k_m", **options: Any) -> list[str]:
    """Converts in one step; gives what is noted."""
    report = convkit.convert(folder, to="gguf", scheme=scheme, out=out, verify=False, **options)
    (step,) = report.steps
    assert step.name == f"torch-to-gguf + gguf-{'int8' if scheme == 'q8_0' else 'q4'}"
    return list(step.notes)


@pytest.mark.parametrize(
    ("folder", "scheme"), [("float32", "q8_0"), ("bfloat16", "q4_k_m")], indirect=["folder"]
)
def test_one_step_writes_what_two_steps_write(scheme: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "result" / "out.gguf"
    out.parent.mkdir()
    _quantized(folder, out, scheme)
    left = sorted(path.name for path in out.parent.iterdir())
    convkit.convert(folder, to="gguf", out=tmp_path / "between.gguf", verify=False)
    requantize(tmp_path / "between.gguf", tmp_path / "two.gguf", scheme)
    assert out.read_bytes() == (tmp_path / "two.gguf").read_bytes()
    assert left == ["out.gguf", "out.gguf.Modelfile", "out.gguf.convkit.json"]


def test_a_measured_matrix_is_kept_and_does_the_same_again(
    folder: Path, text: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "imatrix.gguf"
    out = tmp_path / "out.gguf"
    notes = _quantized(folder, out, calibration=text, settings={"gguf-q4.imatrix_out": str(kept)})
    assert any(note.startswith("importance of 14 tensors measured on text.txt") for note in notes)
    convkit.convert(folder, to="gguf", out=tmp_path / "between.gguf", verify=False)
    requantize(tmp_path / "between.gguf", tmp_path / "two.gguf", "q4_k_m", calibration=kept)
    assert out.read_bytes() == (tmp_path / "two.gguf").read_bytes()
    requantize(tmp_path / "between.gguf", tmp_path / "plain.gguf", "q4_k_m")
    assert content(out)["tensors"] != content(tmp_path / "plain.gguf")["tensors"]
    said = {
        key.removeprefix("quantize.imatrix."): value.plain()
        for key, value in read_header(out).metadata.items()
        if key.startswith("quantize.imatrix.")
    }
    importance = read_importance(kept)
    assert said == {
        "file": "imatrix.gguf",
        "dataset": "text.txt",
        "entries_count": 14,
        "chunks_count": importance.chunk_count,
    }
    assert importance.chunk_size == PIECE
    counts = {float(inputs.counts[0]) for inputs in importance.entries.values()}
    assert counts == {float(importance.chunk_count * PIECE)}


@pytest.mark.parametrize("scheme", ["q4_k_m", "q4_0"])  # of the latter, types depend on it
def test_the_size_is_known_without_measuring(
    scheme: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    out, kept = tmp_path / "out.gguf", tmp_path / "imatrix.dat"
    settings = {"gguf-q4.imatrix_out": str(kept), "gguf-q4.imatrix_chunks": 3}
    asked = recipe.make(
        model=str(folder), to="gguf", scheme=scheme, out=out, calibration=text, settings=settings
    )
    expected = pipeline.predicted_bytes(pipeline.plan(asked))
    assert not kept.exists()
    _quantized(folder, out, scheme, calibration=text, settings=settings)
    assert out.stat().st_size == expected
    assert read_importance(kept).chunk_count == 3


def test_a_matrix_that_exists_is_not_replaced_unasked(
    folder: Path, text: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "imatrix.gguf"
    kept.write_text("hours of work")
    settings = {"gguf-q4.imatrix_out": str(kept)}
    out = tmp_path / "out.gguf"
    with pytest.raises(UsageError, match=r"imatrix\.gguf exists"):
        _quantized(folder, out, calibration=text, settings=settings)
    assert kept.read_text() == "hours of work"
    _quantized(folder, out, calibration=text, settings=settings, force=True)
    assert len(read_importance(kept).entries) == 14


def test_a_matrix_never_takes_the_place_of_its_text(
    folder: Path, text: Path, tmp_path: Path
) -> None:
    settings = {"gguf-q4.imatrix_out": str(text)}
    with pytest.raises(UsageError, match="cannot take the place of"):
        _quantized(folder, tmp_path / "o.gguf", calibration=text, settings=settings, force=True)
    assert text.read_text(encoding="utf-8") == SAMPLE_TEXT


def test_what_runs_the_model_is_asked_for_before_the_work(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = (Package("torch", "torch"), Package("no_such_package", "torch"))
    monkeypatch.setattr(gguf_writing, "_RUNS_FOLDERS", needs)
    asked = recipe.make(model=str(folder), to="gguf", precision="q4", calibration=text)
    with pytest.raises(MissingRequirementError, match="no_such_package") as told:
        pipeline.predicted_bytes(pipeline.plan(asked))
    assert "pip install" in told.value.hint


def test_flags_for_types_reach_the_pass(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    _quantized(folder, out, pure=True, tensor_types=("attn_v=q8_0",))
    kinds = {one.name: one.kind.name for one in read_header(out).tensors if len(one.shape) > 1}
    assert {kind for name, kind in kinds.items() if "attn_v" in name} == {"Q8_0"}
    assert {kind for name, kind in kinds.items() if "attn_v" not in name} == {"Q4_K"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"gguf-q4.imatrix_out": "no/such/folder/imatrix.gguf"}, "There is no folder"),
        ({"gguf-q4.imatrix_chunks": 0}, "0 pieces"),
    ],
)
def test_what_measuring_cannot_do_is_told_before_it_begins(
    settings: dict[str, Any], reason: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    asked = recipe.make(
        model=str(folder), to="gguf", precision="q4", calibration=text, settings=settings
    )
    with pytest.raises(UsageError, match=reason):
        pipeline.predicted_bytes(pipeline.plan(asked))


@pytest.mark.parametrize(
    ("content", "reason"), [("Short.", "too short"), (None, "There is no file")]
)
def test_a_text_that_tells_nothing_leaves_nothing_behind(
    content: str | None, reason: str, folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_text(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SamplesError, match=reason) as failure:
        _quantized(folder, tmp_path / "out.gguf", calibration=text)
    assert failure.value.exit_code == 2
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_importance_is_that_of_the_model_with_its_adapter(text: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft makes the adapter")
    _network().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["v_proj", "up_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(_network(), config)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    found = []
    for name, adapter in (("base", tmp_path / "adapter"), ("merged", None), ("base", None)):
        kept = tmp_path / f"{len(found)}.gguf"
        _quantized(
            write_tokenizer(tmp_path / name), tmp_path / f"out-{len(found)}.gguf",
            adapter=adapter, calibration=text, settings={"gguf-q4.imatrix_out": str(kept)},
        )  # fmt: skip
        found.append(read_importance(kept).entries["blk.1.ffn_down.weight"].means)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    assert not np.allclose(found[0], found[2], rtol=0.1)
