"""What a GGUF file's header says of its model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convkit.artifact import Description, Precision, TensorSpec
from convkit.ggml.header import Header, TensorHeader, read_header
from convkit.ggml.types import SCHEMES, GgmlType

_MODEL = "model"
_ROPE_KEYS = ("rope.freq_base", "rope.scaling.type", "rope.scaling.factor")


def describe(path: Path) -> Description:
    """Precision, inputs and outputs, and what `inspect` shows beside them.

    Raises:
        ModelError, UnsupportedError: see `read_header`.
    """
    header = read_header(path)
    inputs, outputs = signature_of(header)
    return Description(
        precision=precision_of(header.tensors),
        inputs=inputs,
        outputs=outputs,
        parameter_count=sum(tensor.element_count for tensor in header.tensors),
        details=_details(header),
        data_files=header.parts[1:],
    )


def precision_of(tensors: tuple[TensorHeader, ...]) -> Precision:
    """The precision that most elements have; every type below 8 bits counts as q4."""
    votes: Counter[Precision] = Counter()
    for tensor in tensors:
        votes[_precision(tensor.kind)] += tensor.element_count
    return votes.most_common(1)[0][0] if votes else Precision.FP32


def _precision(kind: GgmlType) -> Precision:
    plain = {"F32": Precision.FP32, "F64": Precision.FP32, "F16": Precision.FP16}
    if kind.name in plain:
        return plain[kind.name]
    if kind.name == "BF16":
        return Precision.BF16
    return Precision.INT8 if kind.bits >= 8 else Precision.Q4


def scheme_of(header: Header) -> str:
    """The scheme a file was made by, as far as it says; "" where it does not."""
    number = header.get("general.file_type")
    return next((s.name for s in SCHEMES.values() if s.file_type == number), "")


def gives_embeddings(header: Header) -> bool:
    """Whether the model gives a vector per token instead of the next token."""
    return header.get("ARCH.attention.causal", True) is False


def signature_of(header: Header) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as the runner has them; none for what is no model by itself."""
    if header.get("general.type", _MODEL) != _MODEL or not header.tensors:
        return (), ()
    text = ("batch", "sequence")
    inputs = tuple(TensorSpec(name, "int64", text) for name in ("input_ids", "attention_mask"))
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    vocabulary, width = shapes.get("token_embd.weight", (0, 0))[:2]
    if gives_embeddings(header):
        return inputs, (TensorSpec("last_hidden_state", "float32", (*text, width)),)
    return inputs, (TensorSpec("logits", "float32", (*text, vocabulary)),)


def _details(header: Header) -> dict[str, Any]:
    get = header.get
    found = {
        "architecture": header.architecture,
        "name": get("general.name"),
        "type": None if get("general.type", _MODEL) == _MODEL else get("general.type"),
        "scheme": scheme_of(header),
        "types": _types(header.tensors),
        "bits_per_weight": _bits_per_weight(header.tensors),
        "context_length": get("ARCH.context_length"),
        "layers": get("ARCH.block_count"),
        "width": get("ARCH.embedding_length"),
        "heads": get("ARCH.attention.head_count"),
        "kv_heads": get("ARCH.attention.head_count_kv"),
        "experts": get("ARCH.expert_count"),
        "rope": {key: get(f"ARCH.{key}") for key in _ROPE_KEYS if get(f"ARCH.{key}") is not None},
        "tokenizer": _tokenizer(header),
        "chat_template": get("tokenizer.chat_template"),
        "license": get("general.license"),
        "gguf_version": header.version,
        "parts": [part.name for part in header.parts] if len(header.parts) > 1 else None,
    }
    return {name: value for name, value in found.items() if value not in (None, "", {})}


def _types(tensors: tuple[TensorHeader, ...]) -> dict[str, Any]:
    """Type -> tensors, elements and bytes of it, largest first."""
    found: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        row = found.setdefault(tensor.kind.name, {"tensors": 0, "elements": 0, "bytes": 0})
        row["tensors"] += 1
        row["elements"] += tensor.element_count
        row["bytes"] += tensor.byte_count
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _bits_per_weight(tensors: tuple[TensorHeader, ...]) -> float:
    elements = sum(tensor.element_count for tensor in tensors)
    return round(8 * sum(tensor.byte_count for tensor in tensors) / max(elements, 1), 3)


def _tokenizer(header: Header) -> Mapping[str, Any]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    found = {
        "model": header.get("tokenizer.ggml.model"),
        "pre": header.get("tokenizer.ggml.pre"),
        "tokens": len(tokens.content) if tokens else None,
        "bos": header.get("tokenizer.ggml.bos_token_id"),
        "eos": header.get("tokenizer.ggml.eos_token_id"),
    }
    return {name: value for name, value in found.items() if value is not None}
