"""The type of each tensor under a scheme, as llama.cpp's llama-quantize chooses it.

Source: llama.cpp, `src/llama-quant.cpp` (`tensor_allows_quantization`, `llama_tensor_get_type`,
`tensor_type_fallback`) and `conversion/base.py` (`prepare_tensors`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Protocol

from convkit.errors import UsageError
from convkit.ggml.mixture_overrides import Override, check_overrides
from convkit.ggml.mixture_rules import (
    ModelFacts,
    Position,
    Role,
    layer_of,
    role_of,
    type_in_mixture,
    type_of_output,
)
from convkit.ggml.types import TYPES, GgmlType, Scheme


class Candidate(Protocol):
    """A tensor of a GGUF model, there or to be written."""

    @property
    def name(self) -> str:
        """In llama.cpp's spelling."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major, as in PyTorch."""

    @property
    def kind(self) -> GgmlType:
        """Its type as it stands."""


_NEVER_QUANTIZED = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
"""Parts of the names of tensors that are small and matter much."""

_TABLES = ("position_embd.weight", "token_types.weight")
_CONVERTED_TO_F32 = (
    "ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd", "token_types", "ssm_conv1d",
    "shortconv.conv", "time_mix_first", "time_mix_w1", "time_mix_w2", "time_mix_decay_w1",
    "time_mix_decay_w2", "time_mix_lerp_fused",
)  # fmt: skip

_FALLBACKS: Mapping[str, str] = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
}  # fmt: skip
"""Type of 256 elements a block -> what takes its place where rows are no multiple of 256."""

_NEED_IMPORTANCE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")


def plain_type(name: str, shape: Sequence[int], kind: GgmlType) -> GgmlType:
    """The type that conversion writes when asked for F32, F16 or BF16.

    Args:
        name: in llama.cpp's spelling.
        shape: row-major.
        kind: the type asked for.
    """
    stem = name.removesuffix(".weight")
    if layer_of(name) >= 0:
        stem = stem.split(".", 2)[-1]
    is_kept = (
        len(shape) < 2
        or name.endswith("_norm.weight")
        or not name.endswith(".weight")
        or stem in _CONVERTED_TO_F32
    )
    return TYPES["F32"] if is_kept else kind


def is_quantizable(tensor: Candidate) -> bool:
    """Whether quantization changes a tensor: a matrix of weights, large enough to matter."""
    name = tensor.name
    return (
        _rank(tensor.shape) > 1
        and name.endswith("weight")
        and name not in _TABLES
        and not any(part in name for part in _NEVER_QUANTIZED)
    )


def quantizer_order(name: str) -> tuple[int, str]:
    """Sorts tensors as llama-quantize visits and writes them: outside the blocks, then by block.

    Source: llama.cpp, `src/llama-model-loader.h` (`weight_name_comparer`).
    """
    return layer_of(name), name


def choose_types(
    tensors: Iterable[Candidate],
    scheme: Scheme,
    facts: ModelFacts,
    *,
    is_pure: bool = False,
    overrides: Sequence[Override] = (),
    importance: Container[str] | None = None,
) -> dict[str, GgmlType]:
    """Tensor name -> type, in the order given.

    A conversion that goes on to a scheme gives its tensors the types of `plain_type` first.
    Where rows fit no block of the type that follows, the tensor becomes F16; llama-quantize refuses
    such a model under a scheme of 32-element blocks.

    Args:
        tensors: all tensors of the model.
        scheme: the mixture.
        facts: about the model.
        is_pure: the scheme's default for every tensor.
        overrides: the first that is found in a name decides; the scheme decides for the others.
        importance: names of the tensors with importance data; None without an importance matrix.

    Raises:
        UsageError: an override that fits nothing, or asks for a type that needs importance data.
    """
    tensors = list(tensors)
    quantized = {one.name: one for one in tensors if is_quantizable(one)}
    chosen = {one.name: one.kind for one in tensors}
    if not scheme.default.is_quantized:
        _refuse_overrides(overrides, scheme)
        return {name: scheme.default if name in quantized else chosen[name] for name in chosen}
    check_overrides(overrides, quantized)
    mixture = _Mixture(scheme, facts, chosen, has_importance=importance is not None)
    for name in sorted(quantized, key=quantizer_order):
        row_length = quantized[name].shape[-1]
        wanted = next((one.kind for one in overrides if one.pattern.search(name)), None)
        if wanted is None:
            wanted = scheme.default if is_pure else mixture.type_of(name)
        chosen[name] = _fitting(wanted, row_length)
        _check_importance(name, chosen[name], importance)
    return chosen


class _Mixture:
    """A scheme's rules, asked for one tensor after the other in the quantizer's order."""

    def __init__(
        self, scheme: Scheme, facts: ModelFacts, names: Iterable[str], *, has_importance: bool
    ) -> None:
        self._scheme = scheme
        self._facts = facts
        self._has_importance = has_importance
        roles = Counter(role_of(name) for name in names)
        self._is_tied = not roles[Role.OUTPUT]
        self._value_count = roles[Role.VALUE]
        self._seen: Counter[Role] = Counter()

    def type_of(self, name: str) -> GgmlType:
        """The type of the next tensor."""
        role = role_of(name)
        if role is Role.OUTPUT or (self._is_tied and role is Role.EMBEDDING):
            return type_of_output(self._scheme, self._facts)
        index, count = self._seen[role], self._value_count
        if role is Role.DOWN:
            count = self._facts.layer_count
            # Layers of experts may lie between dense ones, so there the name counts.
            if self._facts.expert_count > 1 and layer_of(name) >= 0:
                index = layer_of(name)
        self._seen[role] += 1
        position = Position(index, count, self._facts, self._has_importance)
        return type_in_mixture(role, self._scheme, position)


def _rank(shape: Sequence[int]) -> int:
    """Dimensions as ggml counts them: without the outer ones of size 1."""
    return max((len(shape) - axis for axis, size in enumerate(shape) if size != 1), default=1)


def _fitting(kind: GgmlType, row_length: int) -> GgmlType:
    """The type, or the one that takes its place where rows are no multiple of its block."""
    for name in (kind.name, _FALLBACKS.get(kind.name, "F16")):
        if row_length % TYPES[name].block_length == 0:
            return TYPES[name]
    return TYPES["F16"]


def _check_importance(name: str, kind: GgmlType, importance: Container[str] | None) -> None:
    if kind.name not in _NEED_IMPORTANCE or role_of(name) in (Role.EMBEDDING, Role.OUTPUT):
        return
    if importance is None or name not in importance:
        raise UsageError(
            f"{kind} needs importance data, and there are none for '{name}'.",
            hint="Collect them with  --calibration TEXT  or choose a type of 4 bits or more:  "
            f"--tensor-type '{name}=iq4_xs'",
        )


def _refuse_overrides(overrides: Sequence[Override], scheme: Scheme) -> None:
    if overrides:
        raise UsageError(
            f"--tensor-type '{overrides[0].text}=...' has no effect under {scheme.name}, "
            "which does not quantize.",
            hint="Choose a scheme that does, for example  q8_0 .",
        )
