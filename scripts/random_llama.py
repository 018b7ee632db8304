"""Writes a Llama of random bfloat16 weights, tensor by tensor, with the tokenizer of another model.

python scripts/random_llama.py OUT TOKENIZER_FOLDER [--layers 22]

22 layers make 1.07 billion weights. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

HIDDEN, FEED_FORWARD, HEADS, KEY_VALUE_HEADS, HEAD, VOCABULARY = 2048, 5632, 32, 4, 64, 49152
_PIECE = 1 << 22
_DEVIATION = 0.02
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("tokenizer", type=Path, help="a Hugging Face folder of 49,152 tokens")
    parser.add_argument("--layers", type=int, default=22)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER:
        shutil.copy(arguments.tokenizer / name, arguments.out / name)
    config = json.dumps(_config(arguments.layers), indent=1)
    (arguments.out / "config.json").write_text(config + "\n")
    _write(arguments.out / "model.safetensors", _shapes(arguments.layers))


def _config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KEY_VALUE_HEADS, "head_dim": HEAD,
        "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "hidden_act": "silu",
        "max_position_embeddings": 8192, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def _shapes(layers: int) -> dict[str, tuple[int, ...]]:
    key_value = (KEY_VALUE_HEADS * HEAD, HIDDEN)
    of_layer = {
        "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HEADS * HEAD, HIDDEN), "self_attn.k_proj": key_value,
        "self_attn.v_proj": key_value, "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
        "mlp.gate_proj": (FEED_FORWARD, HIDDEN), "mlp.up_proj": (FEED_FORWARD, HIDDEN),
        "mlp.down_proj": (HIDDEN, FEED_FORWARD),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": s for name, s in of_layer.items()}
    return shapes | {"model.norm.weight": (HIDDEN,)}


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file. Source: safetensors' README, "Format"."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps({**entries, "__metadata__": {"format": "pt"}}).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        left = end // 2
        while left:
            count = min(left, _PIECE)
            values = random.standard_normal(count, np.float32) * np.float32(_DEVIATION)
            # The upper half of a float32 is a bfloat16, rounded towards zero.
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
            left -= count


if __name__ == "__main__":
    main()
