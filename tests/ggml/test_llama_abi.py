"""llama.cpp is called only as its own default values say that it can be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.errors import MissingRequirementError
from convkit.ggml import llama_abi
from convkit.ggml.llama_abi import ContextFields, Log, ModelFields, Parameters

needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp holds llama.cpp"
)

MINUS_ONE = int(np.float32(-1).view(np.int32))
GARBAGE = 0x7F8C
"""Padding and what lies behind a structure are left as they were."""

ENUMS, SCALES = [-1, -1, -1, -1], [0, 0, *[MINUS_ONE] * 4, 0, MINUS_ONE]
NULL = [0, 0]
CONTEXTS = {
    # release of xllamacpp: words, where the enums and the cache's types are
    "2026.4.8672": (
        [512, 2048, 512, 1, 4, 4, *ENUMS, *SCALES, *NULL * 2, 1, 1, *NULL * 2,
         0x01010100, 0x27200001, *NULL * 2, GARBAGE],
        (6, 22),
    ),
    "2026.7.10068": (
        [512, 2048, 512, 1, 0, 0, 4, 4, 0, *ENUMS, *SCALES, GARBAGE, *NULL * 2, 1, 1, *NULL * 2,
         0x01010100, 1, *NULL * 3, GARBAGE],
        (9, 26),
    ),
    "2026.10.11549": (
        [512, 2048, 512, 1, 0, 0, 1, 4, 4, 0, *ENUMS, *SCALES, *NULL * 2, 1, 1, *NULL * 2,
         0x01010100, 1, *NULL * 3, GARBAGE],
        (10, 26),
    ),
}  # fmt: skip
"""What `llama_context_default_params` returns in the wheels of these releases."""

MODELS = {
    # release of xllamacpp: words, the octet of vocab_only
    "2026.7.10068": ([*NULL * 2, -1, 1, 0, GARBAGE, *NULL * 4, 0x0100, 0x0100, GARBAGE], 64),
    "2026.10.11549": ([*NULL * 2, -1, 1, -1, 1, 0, GARBAGE, *NULL * 4, 0x010000, 0, GARBAGE], 72),
}


def parameters(words: list[int]) -> Parameters:
    made = Parameters()
    made.words()[:] = GARBAGE
    made.words()[: len(words)] = words
    return made


@pytest.mark.parametrize("release", CONTEXTS)
def test_the_parameters_of_contexts_are_recognised(release: str) -> None:
    words, (enums, types) = CONTEXTS[release]
    made = parameters(words)
    fields = ContextFields.found(made.words())
    assert fields == ContextFields(enums, types)
    fields.fill(made, capacity=1024, batch=256, pooling=2)
    changed = np.flatnonzero(made.words() != parameters(words).words())
    assert changed.tolist() == [0, 1, 2, enums + 1, enums + 3, types, types + 1]
    assert made.words()[:3].tolist() == [1024, 256, 256]
    assert made.words()[enums : enums + 4].tolist() == [-1, 2, -1, 0]
    assert made.words()[types : types + 2].tolist() == [0, 0]


@pytest.mark.parametrize("release", MODELS)
def test_the_parameters_of_models_are_recognised(release: str) -> None:
    words, octet = MODELS[release]
    made = parameters(words)
    fields = ModelFields.found(made.octets())
    assert fields == ModelFields(octet)
    fields.fill(made, vocabulary_only=True)
    assert made.octets()[octet] == 1
    assert made.words()[4] == 0  # no layer on a GPU
    assert made.words()[:2].any()  # and no device at all
    fields.fill(made, vocabulary_only=False)
    assert made.octets()[octet] == 0


def test_a_cache_whose_types_are_not_where_they_were_stays_as_it_is() -> None:
    words, (enums, types) = CONTEXTS["2026.10.11549"]
    made = parameters([*words[:types], 30, 30, *words[types + 2 :]])
    fields = ContextFields.found(made.words())
    assert fields == ContextFields(enums, None)
    fields.fill(made, capacity=256, batch=256, pooling=0)
    assert made.words()[types] == 30
    assert made.words()[enums + 3] == -1  # attention is fused where llama.cpp likes


@pytest.mark.parametrize(
    "words",
    [
        [1, 512, 2048, 512, *CONTEXTS["2026.10.11549"][0][3:]],
        [word if word != -1 else 0 for word in CONTEXTS["2026.10.11549"][0]],
        MODELS["2026.10.11549"][0],
    ],
)
def test_contexts_of_another_layout_are_not_recognised(words: list[int]) -> None:
    assert ContextFields.found(parameters(words).words()) is None


@pytest.mark.parametrize(
    "words",
    [
        [1, *MODELS["2026.10.11549"][0]],
        [*MODELS["2026.10.11549"][0][:18], 0x010001],  # `vocab_only` is never on by itself
        [*NULL * 2, -1, 1, *NULL * 20],
        CONTEXTS["2026.10.11549"][0],
    ],
)
def test_models_of_another_layout_are_not_recognised(words: list[int]) -> None:
    assert ModelFields.found(parameters(words).octets()) is None


@needs_llama
def test_the_wheel_that_is_installed_is_recognised_in_full() -> None:
    library = llama_abi.library()
    assert library.context_fields.cache_types is not None
    assert llama_abi.library() is library


@needs_llama
def test_a_wheel_of_another_layout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContextFields, "found", classmethod(lambda cls, words: None))
    with pytest.raises(MissingRequirementError, match="does not know how to call") as caught:
        llama_abi.library.__wrapped__()
    assert caught.value.why == ("The parameters of a context are laid out in another way.",)
    assert "pip install" in caught.value.hint
    assert caught.value.exit_code == 4


def installed(monkeypatch: pytest.MonkeyPatch, path: Any, version: str) -> None:
    monkeypatch.setattr(llama_abi, "_installed", lambda: (Path(path), version))


def test_a_wheel_without_llama_cpp_s_functions_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, np._core._multiarray_umath.__file__, "2026.10.1")
    with pytest.raises(MissingRequirementError, match=r"xllamacpp 2026\.10\.1 does not let"):
        llama_abi.library.__wrapped__()


def test_a_wheel_that_cannot_be_loaded_or_is_too_old_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "xllamacpp.abi3.so"
    path.write_bytes(b"no library")
    installed(monkeypatch, path, "2026.10.1")
    with pytest.raises(MissingRequirementError, match="cannot be loaded"):
        llama_abi.library.__wrapped__()
    installed(monkeypatch, path, "0.2.13")
    with pytest.raises(MissingRequirementError, match=r"0\.2\.13 is too old"):
        llama_abi.library.__wrapped__()


def test_a_missing_wheel_is_named_with_the_line_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRequirementError, match="needs xllamacpp") as caught:
        llama_abi.library.__wrapped__()
    assert caught.value.hint == 'pip install "convkit-ml[gguf]"'


def test_errors_are_kept_until_taken_and_all_else_is_dropped() -> None:
    log = Log()
    log.write(2, b"llama_model_loader: loaded meta data\n")
    log.write(5, b"....\n")
    log.write(4, b"llama_model_load: error loading model: tensor 'a' ")
    log.write(5, b"is odd: \xff\n")
    log.write(4, b"llama_model_load_from_file_impl: failed to load model\n")
    log.write(1, b"ggml: debugging\n")
    assert log.taken() == ("tensor 'a' is odd: \ufffd",)
    assert log.taken() == ()
    log.write(4, b"llama_model_load: failed to load model\n")
    assert log.taken() == ("failed to load model",)
