from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is the reference")
pytest.importorskip("xllamacpp", reason="llama.cpp computes what was written")

from safetensors.torch import load_file

from tests.families import journey
from tests.families.journey import Journey, divergence
from tests.families.networks import FURTHER_NETWORKS, HALF_GELU, NETWORKS, ROUNDING


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(one, id=one.name) for one in NETWORKS),
        *(pytest.param(one, id=one.name, marks=pytest.mark.slow) for one in FURTHER_NETWORKS),
    ],
)
def travelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    return journey.travel(request.param, tmp_path_factory.mktemp("journey"))


def test_llama_cpp_computes_what_transformers_does(travelled: Journey) -> None:
    reference, there = travelled.reference, travelled.there
    assert divergence(reference, there) < travelled.network.limit
    assert (reference.argmax(-1) == there.argmax(-1)).all()


def test_what_is_left_of_the_difference_is_rounding(travelled: Journey) -> None:
    assert divergence(travelled.with_half_gelu, travelled.there) < ROUNDING


def test_every_tensor_comes_back_bit_for_bit(travelled: Journey) -> None:
    left = load_file(travelled.folder / "model.safetensors")
    returned = load_file(travelled.returned / "model.safetensors")
    expected = {n: t for n, t in left.items() if n not in travelled.made.mapped.dropped}
    if "lm_head.weight" in returned.keys() - expected.keys():  # llama.cpp wants it once more
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    assert returned.keys() == expected.keys()
    assert all(torch.equal(returned[name], tensor) for name, tensor in expected.items())


def test_what_comes_back_computes_the_same(travelled: Journey) -> None:
    assert (travelled.again == travelled.reference).all()


_BY_NAME = {one.name: one for one in (*NETWORKS, *FURTHER_NETWORKS)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "wrong"),
    [
        ("qwen3", "ARCH.rope.freq_base", 9000.0),
        ("qwen3", "ARCH.attention.layer_norm_rms_epsilon", 0.01),
        ("qwen2 tied, yarn", "ARCH.rope.scaling.factor", 3.0),
        ("qwen2 tied, yarn", "ARCH.rope.scaling.original_context_length", 16),
        ("llama yarn", "ARCH.rope.scaling.attn_factor", 1.0),
        ("llama longrope", "ARCH.rope.scaling.original_context_length", 400),
        ("phi3 longrope, scaled attention", "ARCH.rope.scaling.attn_factor", 1.2),
        ("gemma2", "ARCH.attention.sliding_window", 44),
        ("gemma2", "ARCH.attn_logit_softcapping", 10.0),
        ("gemma2, two of three slide", "ARCH.attention.sliding_window_pattern", 2),
        ("gemma3", "ARCH.attention.sliding_window", 44),
        ("gemma3, capped, bases", "ARCH.rope.freq_base_swa", 4000.0),
        ("gemma3, capped, bases", "ARCH.rope.scaling.factor", 7.0),
        ("gemma3, capped, bases", "ARCH.final_logit_softcapping", 10.0),
        ("stablelm", "ARCH.rope.dimension_count", 8),
        ("mixtral", "ARCH.expert_used_count", 3),
    ],
)
def test_a_number_told_wrong_is_seen(name: str, key: str, wrong: Any, tmp_path: Path) -> None:
    network = _BY_NAME[name]
    built, ids = network.build(), network.ids()
    built.save_pretrained(tmp_path / "hf")
    made = journey.to_gguf(tmp_path / "hf", tmp_path / "model.gguf", {key: wrong})
    assert divergence(journey.computed(built, ids), made.computed(ids)) > 10 * HALF_GELU
