"""Small causal language models with a tokenizer, for tests of everything that makes text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convkit.formats.folder_language import FolderLanguage
from convkit.step import Feeds, Outputs, Session, Sizes
from convkit.vocabulary.sample_text import SAMPLE_TEXT

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
VOCABULARY_SIZE = 400


def write_tokenizer(folder: Path, **settings: Any) -> Path:
    """A byte-level tokenizer trained on the sample text, whose texts begin with `<s>`."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([SAMPLE_TEXT], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    stated = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": CHAT_TEMPLATE,
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    return folder


_ENDS = {
    "vocab_size": VOCABULARY_SIZE,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,  # or small networks repeat what they read
}
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    **_ENDS,
}
_FEW_KEYS = {**_SIZES, "num_key_value_heads": 2}
_OLD_SIZES = {"n_layer": 2, "n_head": 4, **_ENDS}

NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _FEW_KEYS),
    "mistral": ("MistralForCausalLM", {**_FEW_KEYS, "sliding_window": 8}),
    "gemma3": ("Gemma3ForCausalLM", {**_FEW_KEYS, "sliding_window": 8, "head_dim": 8}),
    "gpt2": ("GPT2LMHeadModel", {**_OLD_SIZES, "n_embd": 32, "n_positions": 64}),
    "gpt_neox": ("GPTNeoXForCausalLM", _SIZES),
    "opt": ("OPTForCausalLM", {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("BloomForCausalLM", {**_OLD_SIZES, "hidden_size": 32}),
    "olmo": ("OlmoForCausalLM", _SIZES),
    "olmoe": ("OlmoeForCausalLM", {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2}),
    "mamba": ("MambaForCausalLM", {**_ENDS, "hidden_size": 32, "num_hidden_layers": 2}),
    "bert": ("BertLMHeadModel", {**_SIZES, "type_vocab_size": 1}),
}
"""Name -> class of transformers, and its configuration."""


def network_of(name: str) -> Any:
    """A seeded network of two layers; weights large enough that tokens differ in their scores."""
    import torch
    import transformers

    kind = getattr(transformers, NETWORKS[name][0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind(kind.config_class(**NETWORKS[name][1])).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(2 if parameter.ndim > 1 else 1)
    return network


def language_folder(name: str, folder: Path, *, has_tokenizer: bool = True) -> Path:
    """A Hugging Face folder with a network of `NETWORKS`, and a tokenizer."""
    network_of(name).save_pretrained(folder)
    return write_tokenizer(folder) if has_tokenizer else folder


def greedy(network: Any, tokens: Sequence[int], count: int) -> list[int]:
    """What transformers itself generates: `count` tokens after `tokens`, ends of texts or not."""
    import torch

    made = network.generate(
        torch.tensor([list(tokens)]),
        attention_mask=torch.ones((1, len(tokens)), dtype=torch.int64),
        max_new_tokens=count,
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=1,
    )
    return [int(token) for token in made[0, len(tokens) :]]


def continued(session: Session, tokens: Sequence[int], count: int) -> list[int]:
    """The same through a session: the likeliest token is fed back each time."""
    made: list[int] = []
    logits = session.feed(tokens)
    assert logits.dtype == np.float32
    assert len(logits) == len(tokens)
    while len(made) < count:
        made.append(int(logits[-1].argmax()))
        logits = session.feed(made[-1:])
    return made


class Scripted(FolderLanguage):
    """A language model that says what it was told to; its tokenizer is real.

    Args:
        folder: of the tokenizer.
        script: logits for each token to come: a token id stands for certainty.
    """

    inputs = ()
    outputs = ()

    def __init__(self, folder: Path, script: Sequence[int | np.ndarray[Any, Any]]) -> None:
        super().__init__(folder)
        self.script = script
        self.fed: list[int] = []

    def session(self) -> Session:
        """Begins the script anew."""
        self.fed = []
        return _ScriptedSession(self)

    def __call__(self, feeds: Feeds) -> Outputs:
        """Not used."""
        raise NotImplementedError

    def example(self, sizes: Sizes, seed: int) -> Feeds:
        """Not used."""
        raise NotImplementedError


class _ScriptedSession(Session):
    def __init__(self, runner: Scripted) -> None:
        self._runner = runner
        self._place = -1

    def feed(self, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
        self._runner.fed += tokens
        self._place += 1
        logits = np.zeros((len(tokens), VOCABULARY_SIZE), np.float32)
        scene = self._runner.script[min(self._place, len(self._runner.script) - 1)]
        if isinstance(scene, int):
            logits[-1, scene] = 50
        else:
            logits[-1, : len(scene)] = scene
            logits[-1, len(scene) :] = -np.inf
        return logits
