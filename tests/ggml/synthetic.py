"""GGUF models of many architectures, small and seeded, for llama.cpp's quantizer.

Each has the tensor names, row lengths and metadata that the quantizer reads; their rows are few, so
they compute nothing sensible. Layer counts differ so that every fraction of the depth in the rules
falls somewhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_LLAMA = (
    "attn_norm:1 attn_q:e attn_k:e attn_v:e attn_output:a ffn_norm:1 ffn_gate:e ffn_up:e ffn_down:f"
)
_MIXTRAL = (
    "attn_norm:1 attn_q:e attn_k:e attn_v:e attn_output:a "
    "ffn_norm:1 ffn_gate_inp:r ffn_gate_exps:xe ffn_up_exps:xe ffn_down_exps:xf"
)
_BLOCKS = {
    "phi3": "attn_norm:1 attn_qkv:e attn_output:a ffn_norm:1 ffn_up:e ffn_down:f",
    "gpt2": (
        "attn_norm:1 attn_norm.bias:1 attn_qkv:e attn_qkv.bias:b attn_output:a attn_output.bias:b "
        "ffn_norm:1 ffn_norm.bias:1 ffn_up:e ffn_up.bias:b ffn_down:f ffn_down.bias:b"
    ),
    "falcon": "attn_norm:1 attn_norm.bias:1 attn_qkv:e attn_output:a ffn_up:e ffn_down:f",
    "qwen2": _LLAMA + " attn_q.bias:b attn_k.bias:b attn_v.bias:b",
    "gemma2": _LLAMA + " post_attention_norm:1 post_ffw_norm:1",
    "qwen2moe": _MIXTRAL
    + " attn_q.bias:b attn_k.bias:b attn_v.bias:b"
    + " ffn_gate_inp_shexp:g ffn_gate_shexp:e ffn_up_shexp:e ffn_down_shexp:f",
    "stablelm": _LLAMA + " attn_norm.bias:1 ffn_norm.bias:1 attn_q_norm:h attn_k_norm:h",
}
"""Architecture -> the tensors of a block, each with the letter of its shape (see `_shape`)."""


@dataclass(frozen=True)
class Model:
    """An architecture and its sizes.

    Attributes:
        architecture: in llama.cpp's spelling.
        layers: blocks.
        heads: of queries; each has embedding / heads elements.
        kv_heads: of keys and values.
        experts: 0 for a dense model.
        embedding: length of most rows.
        feed_forward: length of the rows of ffn_down.
        is_tied: there is no output.weight.
        also: tensors outside the blocks, as in `_BLOCKS`.
        metadata: what this architecture asks for, without its prefix.
    """

    architecture: str
    layers: int
    heads: int = 8
    kv_heads: int = 8
    experts: int = 0
    embedding: int = 256
    feed_forward: int = 512
    is_tied: bool = False
    also: str = ""
    metadata: tuple[tuple[str, Any], ...] = ()


MODELS = {
    "llama-gqa1": Model("llama", 12, also="rope_freqs:1"),
    "llama-gqa2": Model("llama", 9, kv_heads=4, is_tied=True),
    "llama-gqa4": Model("llama", 17, kv_heads=2),
    "llama-gqa8": Model("llama", 16, kv_heads=1),
    "llama-80-layers": Model("llama", 80, kv_heads=1),
    "llama-8-experts": Model("llama", 11, kv_heads=2, experts=8),
    "llama-4-experts": Model("llama", 10, kv_heads=2, experts=4),
    "llama-320-wide": Model("llama", 13, embedding=320, feed_forward=864),
    "phi3": Model("phi3", 12, also="rope_factors_long:1 rope_factors_short:1"),
    "gpt2": Model("gpt2", 14, is_tied=True, also="position_embd:e output_norm.bias:1"),
    "falcon": Model("falcon", 19, kv_heads=1, also="output_norm.bias:1"),
    "qwen2": Model("qwen2", 8, kv_heads=2, is_tied=True),
    "gemma2": Model(
        "gemma2",
        15,
        heads=12,
        kv_heads=4,
        embedding=768,
        is_tied=True,
        metadata=(
            ("attn_logit_softcapping", 50.0),
            ("final_logit_softcapping", 30.0),
            ("attention.sliding_window", 4096),
        ),
    ),
    "qwen2moe": Model(
        "qwen2moe",
        9,
        experts=6,
        metadata=(
            ("expert_feed_forward_length", 512),
            ("expert_shared_feed_forward_length", 512),
        ),
    ),
    "stablelm": Model(
        "stablelm",
        12,
        also="output_norm.bias:1",
        metadata=(("use_parallel_residual", True),),
    ),
}
"""The models whose every scheme llama.cpp's quantizer writes."""

NARROW = "llama-narrow"
"""ffn_down has rows of 432 elements, no multiple of 32: llama.cpp refuses schemes of 32-blocks."""

_NARROW = Model("llama", 4, kv_heads=2, embedding=320, feed_forward=432)
NAMES = tuple(MODELS)


def write(
    named: str | Model, path: Path, *, rows: int = 4, kind: str = "F32", seed: int = 0
) -> Path:
    """Writes a model; returns `path`.

    Args:
        named: of `NAMES`, `NARROW`, or a model of other sizes.
        path: the file.
        rows: of each matrix. More give a longer test of the arithmetic.
        kind: `F32`, `F16` or `BF16`, of the tensors that conversion does not keep in F32.
        seed: of the weights.
    """
    import gguf

    model = named if isinstance(named, Model) else {**MODELS, NARROW: _NARROW}[named]
    writer = gguf.GGUFWriter(path, model.architecture)
    for key, value in _metadata(model).items():
        writer.add_key_value(f"{model.architecture}.{key}", value, _value_type(value))
    writer.add_name(path.stem)
    writer.add_file_type({"F32": 0, "F16": 1, "BF16": 32}[kind])
    _add_vocabulary(writer)
    generator = np.random.default_rng(seed)
    for tensor, shape in tensors(model, rows).items():
        array = _weights(generator, shape)
        wanted = gguf.GGMLQuantizationType[kind if _is_lowered(tensor, shape) else "F32"]
        writer.add_tensor(tensor, gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(model: Model, rows: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, rows first, in the order of the file."""
    ends = ["token_embd:e", "output_norm:1", *([] if model.is_tied else ["output:e"])]
    block = _BLOCKS.get(model.architecture, _MIXTRAL if model.experts else _LLAMA).split()
    named = [*ends, *model.also.split()]
    named += [f"blk.{layer}.{tensor}" for layer in range(model.layers) for tensor in block]
    return {_full(entry): _shape(entry.split(":")[1], model, rows) for entry in named}


def _full(entry: str) -> str:
    name = entry.split(":")[0]
    return name if name.endswith(".bias") else f"{name}.weight"


def _shape(letter: str, model: Model, rows: int) -> tuple[int, ...]:
    """1 norm, b bias, e embeddings, a heads, f hidden units, r router, g gate, h norms of heads."""
    head = model.embedding // model.heads
    shapes = {
        "1": (model.embedding,),
        "b": (rows,),
        "e": (rows, model.embedding),
        "a": (rows, model.heads * head),
        "f": (rows, model.feed_forward),
        "r": (model.experts, model.embedding),
        "g": (1, model.embedding),
        "h": (model.heads, head),
        "xe": (model.experts, rows, model.embedding),
        "xf": (model.experts, rows, model.feed_forward),
    }
    return shapes[letter]


def _weights(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal weights; among the first rows one of zeros, one constant, one with an outlier."""
    array = generator.normal(0, 0.05, shape).astype(np.float32)
    if len(shape) > 1 and shape[-2] >= 4:
        array[..., 1, :64] = 0
        array[..., 2, 32:96] = 0.125
        array[..., 3, 5] = -4
    return array


def _is_lowered(name: str, shape: tuple[int, ...]) -> bool:
    kept = ("_norm.weight", "gate_inp.weight", "gate_inp_shexp.weight", "position_embd.weight")
    return len(shape) > 1 and not name.endswith(kept)


def _metadata(model: Model) -> dict[str, Any]:
    experts = {"expert_count": model.experts, "expert_used_count": 2} if model.experts else {}
    return {
        "context_length": 128,
        "embedding_length": model.embedding,
        "block_count": model.layers,
        "feed_forward_length": model.feed_forward,
        "attention.head_count": model.heads,
        "attention.head_count_kv": model.kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": model.embedding // model.heads,
        **experts,
        **dict(model.metadata),
    }


def _value_type(value: Any) -> Any:
    from gguf import GGUFValueType

    by_class = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
    return by_class[type(value)]


def _add_vocabulary(writer: Any) -> None:
    """Sixteen pieces; the quantizer copies them."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"▁{letter}" for letter in "abcdefghijklm")])
    writer.add_token_scores([0.0] * 16)
    writer.add_token_types([2, 3, 3, *[1] * 13])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
