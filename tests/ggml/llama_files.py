"""Small random networks of transformers, and GGUF files of their weights, written with `gguf`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]

CONTEXT = 640
"""Tokens that the networks were made for."""

_LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_BERT_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}

LLAMA_VOCABULARY = 520
"""Three control tokens, 256 bytes, 256 pairs of letters, and some that are unused."""

BERT_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "house", "is", "red", "##s")
MEAN, CLS = 1, 2
"""`LLAMA_POOLING_TYPE_MEAN` and `_CLS`."""


def llama_network() -> Any:
    """A Llama with grouped attention, its weights large enough for logits that differ."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=LLAMA_VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5, initializer_range=0.2, tie_word_embeddings=False,
        attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write_llama(network: Any, path: Path, *, tokenizer: str = "gpt2", leave_out: str = "") -> Path:
    """Writes a Llama in F32.

    Args:
        network: the weights.
        path: the file.
        tokenizer: `gpt2`, of bytes; `llama`, of some characters and no bytes; `no_vocab`.
        leave_out: a tensor that will be missing.

    Source: llama.cpp, `conversion/llama.py`, of the order of rows in q and k: it rotates pairs of
    neighbours, transformers the halves of a head.
    """
    import gguf

    config = network.config
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, config)
    head_length = config.hidden_size // config.num_attention_heads
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_length)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model(tokenizer)
    if tokenizer == "gpt2":
        _add_byte_tokens(writer)
    elif tokenizer == "llama":
        _add_characters(writer)
    tensors = {}
    for name, weight in _weights(network).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.split(".")[-2] in ("q_proj", "k_proj"):
            halves = weight.reshape(-1, 2, head_length // 2, weight.shape[-1])
            weight = halves.swapaxes(1, 2).reshape(weight.shape)  # (rows, columns)
        tensors[_renamed(name, "model.layers.", _LLAMA_NAMES)] = weight
    tensors.pop(leave_out, None)
    return _written(writer, tensors, path)


def bert_network() -> Any:
    """A BERT encoder whose GELU is as coarse as ggml's.

    Source: ggml, `src/ggml-cpu/vec.h`, `ggml_vec_gelu_f32`: the approximation by tanh, looked up in
    a table of F16.
    """
    from transformers import BertConfig, BertModel

    class Gelu(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(BERT_WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=CONTEXT, initializer_range=0.2,
        attn_implementation="eager",
    )  # fmt: skip
    network = BertModel(config, add_pooling_layer=False).eval()
    for layer in network.encoder.layer:
        layer.intermediate.intermediate_act_fn = Gelu()
    return network


def write_bert(network: Any, path: Path, *, pooling: int) -> Path:
    """Writes a BERT in F32, with a tokenizer of `BERT_WORDS`."""
    import gguf

    writer = gguf.GGUFWriter(path, "bert")
    _add_sizes(writer, network.config)
    writer.add_layer_norm_eps(network.config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_phantom_space(word) for word in BERT_WORDS])
    writer.add_token_types([3 if word.startswith("[") else 1 for word in BERT_WORDS])
    writer.add_pad_token_id(BERT_WORDS.index("[PAD]"))
    writer.add_mask_token_id(BERT_WORDS.index("[MASK]"))
    writer.add_unk_token_id(BERT_WORDS.index("[UNK]"))
    writer.add_bos_token_id(BERT_WORDS.index("[CLS]"))
    writer.add_sep_token_id(BERT_WORDS.index("[SEP]"))
    names = {name: _renamed(name, "encoder.layer.", _BERT_NAMES) for name in _weights(network)}
    return _written(writer, {names[k]: w for k, w in _weights(network).items()}, path)


def _phantom_space(word: str) -> str:
    """WordPiece as llama.cpp has it: pieces that begin a word are marked, not those within it."""
    if word.startswith("["):
        return word
    return word[2:] if word.startswith("##") else "\u2581" + word


def _add_sizes(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)


def _add_byte_tokens(writer: Any) -> None:
    """Control tokens, GPT-2's letters for bytes, pairs of letters with their merges."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte if byte in plain else next(others)) for byte in range(256)]
    pairs = [(one, other) for one in "abcdefghijklmnop" for other in "abcdefghijklmnop"]
    tokens = ["<|turn|>", "<|begin|>", "<|end|>", *letters, *(one + other for one, other in pairs)]
    tokens += [f"<unused{number}>" for number in range(LLAMA_VOCABULARY - len(tokens))]
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (LLAMA_VOCABULARY - 3))
    writer.add_token_merges([f"{one} {other}" for one, other in pairs])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)


def _add_characters(writer: Any) -> None:
    """Control tokens, then the alphabet as SentencePiece has it, a space and a pair."""
    tokens = ["<unk>", "<s>", "</s>", *"abcdefgh", "\u2581", "ab"]
    tokens += [f"<unused{number}>" for number in range(LLAMA_VOCABULARY - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * LLAMA_VOCABULARY)
    writer.add_token_types([2, 3, 3] + [1] * (LLAMA_VOCABULARY - 3))
    writer.add_add_space_prefix(False)


def _renamed(name: str, blocks: str, inside: Mapping[str, str]) -> str:
    if name in _ENDS:
        return _ENDS[name]
    number, rest = name.removeprefix(blocks).split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{number}.{inside[part]}.{kind}"


def _weights(network: Any) -> dict[str, Array]:
    state = network.state_dict()
    return {name: tensor.numpy() for name, tensor in state.items() if tensor.is_floating_point()}


def _written(writer: Any, tensors: Mapping[str, Array], path: Path) -> Path:
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def log_probabilities(logits: Array) -> Array:
    """Of logits (tokens, vocabulary) float32: theirs, in float64."""
    return torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
