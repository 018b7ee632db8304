from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from convkit.errors import ModelError, UnsupportedError
from convkit.families.config import Config, Rope
from convkit.families.family import Stored
from convkit.families.known.llama import FAMILY
from convkit.families.rotary import FREQUENCIES, LONG, SHORT, llama3_factors, metadata_of
from convkit.families.rotary_recovery import rope_of

_LLAMA_31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192}  # fmt: skip
_LLAMA_32 = {**_LLAMA_31, "factor": 32.0}


def stored(head: int, tensors: Mapping[str, Any], **metadata: Any) -> Stored:
    """A file of a model with two heads."""
    keys = {"ARCH.attention.head_count": 2, "ARCH.context_length": 1 << 17, **metadata}
    small = {name: np.asarray(values, np.float32) for name, values in tensors.items()}
    return Stored(keys.get, {"token_embd.weight": (100, 2 * head)}, small)


def frequencies(head: int, rope: Mapping[str, Any]) -> Any:
    """What transformers turns pairs of numbers by, per token."""
    rotary = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=2 * head, num_attention_heads=2, rope_parameters=dict(rope)
    )
    return rotary.ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)[0].numpy()


@pytest.mark.parametrize(
    ("head", "theta", "settings"),
    [
        pytest.param(128, 5e5, _LLAMA_31, id="Llama 3.1"),
        pytest.param(64, 5e5, _LLAMA_32, id="Llama 3.2 1B"),
        pytest.param(128, 5e5, _LLAMA_32, id="Llama 3.2 3B"),
        pytest.param(128, 1e4, {**_LLAMA_31, "high_freq_factor": 8.0}, id="another blend"),
    ],
)
def test_numbers_behind_llama3_factors_are_found_again(
    head: int, theta: float, settings: Mapping[str, Any]
) -> None:
    rope = {"rope_type": "llama3", "rope_theta": theta, **settings}
    factors = llama3_factors(Rope(theta, "llama3", settings=settings), head)
    found = rope_of(stored(head, {FREQUENCIES: factors}, **{"ARCH.rope.freq_base": theta}))
    assert found == rope
    plain = 1 / theta ** (np.arange(0, head, 2) / head)
    assert np.allclose(plain / factors, frequencies(head, rope), rtol=1e-6)


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        pytest.param(8, {**_LLAMA_31, "original_max_position_embeddings": 700}, id="one blended"),
        pytest.param(8, {**_LLAMA_31, "original_max_position_embeddings": 2000,
                         "high_freq_factor": 1.1}, id="none blended"),
        pytest.param(32, {**_LLAMA_31, "low_freq_factor": 2.0, "high_freq_factor": 6.0},
                     id="another measure"),
        pytest.param(16, {**_LLAMA_31, "original_max_position_embeddings": 1 << 17,
                          "high_freq_factor": 999.0}, id="all blended"),
    ],
)  # fmt: skip
def test_other_numbers_that_give_the_same_factors_serve_as_well(
    head: int, settings: Mapping[str, Any]
) -> None:
    theta = 10_000.0
    factors = llama3_factors(Rope(theta, "llama3", settings=settings), head)
    assert len(set(factors.tolist())) > 1
    found = rope_of(stored(head, {FREQUENCIES: factors}))
    expected = frequencies(head, {"rope_type": "llama3", "rope_theta": theta, **settings})
    assert np.allclose(frequencies(head, found), expected, rtol=2e-5)


def test_factors_of_one_are_no_scaling() -> None:
    found = rope_of(stored(16, {FREQUENCIES: np.ones(8)}))
    assert found == {"rope_type": "default", "rope_theta": 10_000.0}


def test_factors_of_another_formula_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="follow no formula"):
        rope_of(stored(16, {FREQUENCIES: [1, 3, 2, 5, 4, 7, 6, 8]}))


def test_longrope_comes_back_number_by_number() -> None:
    long, short = [1.05, 1.1, 2.2, 30.7], [1.0, 1.02, 1.3, 2.45]
    keys = {"ARCH.rope.scaling.original_context_length": 4096,
            "ARCH.rope.scaling.attn_factor": 1.1902381}  # fmt: skip
    found = rope_of(stored(8, {LONG: long, SHORT: short}, **keys))
    assert found == {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": 4096,
    }


def test_the_old_key_of_linear_scaling_is_read() -> None:
    found = rope_of(stored(8, {}, **{"ARCH.rope.scale_linear": 4.0}))
    assert found == {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "llama3", **_LLAMA_31},
    ],
)
def test_transformers_4_and_5_say_the_same(scaling: Mapping[str, Any]) -> None:
    sizes = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2}
    old = Config({**sizes, "rope_theta": 5e5, "rope_scaling": scaling})
    kind = scaling.get("rope_type", scaling.get("type"))
    new = Config({**sizes, "rope_parameters": {**scaling, "rope_type": kind, "rope_theta": 5e5}})
    assert metadata_of(old) == metadata_of(new)
    for name, values in FAMILY.derived(old).items():
        assert (values == FAMILY.derived(new)[name]).all()


def test_longrope_with_factors_for_other_heads_is_refused() -> None:
    config = Config({"model_type": "phi3", "hidden_size": 64, "num_attention_heads": 2,
                     "rope_scaling": {"type": "su", "long_factor": [1.0], "short_factor": [1.0]},
                     })  # fmt: skip
    with pytest.raises(ModelError, match="its factors do not fit"):
        FAMILY.derived(config)
