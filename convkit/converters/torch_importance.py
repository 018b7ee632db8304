"""Importance data out of PyTorch: mean squares of what enters each weight while a text is read.

GGUF has rows of weights in another order than a checkpoint, but never columns, so that what enters
a column here enters the same one there.

Source: llama.cpp, `tools/imatrix/imatrix.cpp` (`compute_imatrix`, `collect_imatrix`): pieces of 512
tokens, each of which begins as a text does, in place of its own first tokens; at least two pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.converters.torch_inputs_of_weights import Inputs, watch
from convkit.errors import ModelError, SamplesError, UnsupportedError
from convkit.families.mapping import source_of
from convkit.ggml.importance import Importance, SquaredInputs
from convkit.step import Progress

if TYPE_CHECKING:
    from convkit.families.config import Config
    from convkit.families.family import Family
    from convkit.vocabulary.codec import Codec

PIECE_TOKENS = 512
_LEAST_PIECES = 2
_WORDS = "measuring importance, pieces of text"


def measured(
    network: Any,
    pieces: Sequence[Sequence[int]],
    family: Family,
    config: Config,
    shapes: Mapping[str, tuple[int, ...]],
    progress: Progress,
) -> Importance:
    """Runs a network over pieces of text and sums up what enters its weights.

    Args:
        network: of transformers, in evaluation mode.
        pieces: token ids, each read for itself.
        family: of the model.
        config: of the model.
        shapes: of the tensors in GGUF that are asked for, by name: matrices of the layers.
        progress: hears how far it is.

    Raises:
        UnsupportedError: the network does not hold a weight as transformers' own does.
        ModelError: numbers overflow in the network.
    """
    import torch

    entering = {name: Inputs(shape) for name, shape in shapes.items()}
    layers = network.base_model  # without scores for tokens, which no layer depends on
    with ExitStack() as watched, torch.inference_mode():
        for name, modules in _modules(network, family, config, entering).items():
            for number, (module, weight) in enumerate(modules):
                handle = watch(module, weight, entering[name], number)
                watched.callback(handle.remove)
        for done, piece in enumerate(pieces):
            progress(_WORDS, done, len(pieces))
            layers(input_ids=torch.tensor([piece]))
    progress(_WORDS, len(pieces), len(pieces))
    entries = {name: _summed(name, inputs) for name, inputs in entering.items()}
    return Importance(entries, chunk_count=len(pieces), chunk_size=len(pieces[0]))


def pieces_of(codec: Codec, text: Path, context: int) -> list[list[int]]:
    """The tokens of a text in pieces of one length, each of which begins and ends as a text does.

    Args:
        codec: of the model.
        text: in UTF-8.
        context: tokens that the model takes at most.

    Raises:
        SamplesError: the text cannot be read, or is too short.
    """
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise SamplesError(f"{text} cannot be read as a text.", why=str(cause)) from cause
    length = min(PIECE_TOKENS, context)
    tokens = [*codec.beginning, *codec.encode(content)]
    begins = range(0, len(tokens) - length + 1, length)
    if len(begins) < _LEAST_PIECES:
        raise SamplesError(
            f"{text} is too short to measure importance on: it has {len(tokens)} tokens.",
            why=f"It takes at least {_LEAST_PIECES} pieces of {length} tokens; 100 are usual.",
            hint="Give a longer text, of the kind that the model will be used on.",
        )
    return [_piece(codec, tokens[begin : begin + length]) for begin in begins]


def _piece(codec: Codec, tokens: Sequence[int]) -> list[int]:
    inner = tokens[len(codec.beginning) : len(tokens) - len(codec.ending)]
    return [*codec.beginning, *inner, *codec.ending]


def _modules(
    network: Any, family: Family, config: Config, names: Mapping[str, Any]
) -> dict[str, list[tuple[Any, str]]]:
    """Name in GGUF -> the modules that compute with it, and what the weight is called in each."""
    weights = dict(network.named_parameters(remove_duplicate=False))
    found: dict[str, list[tuple[Any, str]]] = {}
    for entry in family.entries(config):
        if entry.gguf not in names:
            continue
        source = source_of(entry, family, weights)
        if source is None:
            raise UnsupportedError(
                f"{type(network).__name__} has no '{entry.sources[0].names[0]}', so the importance "
                f"of '{entry.gguf}' cannot be measured.",
                hint="Give an importance matrix of llama.cpp:  --calibration imatrix.gguf",
            )
        places = (name.rpartition(".") for name in source.names)
        found[entry.gguf] = [(network.get_submodule(path), weight) for path, _, weight in places]
    return found


def _summed(name: str, inputs: Inputs) -> SquaredInputs:
    sums = inputs.sums.numpy()
    if not inputs.sums.isfinite().all():
        raise ModelError(
            f"What enters '{name}' is not finite, so its importance cannot be measured.",
            why="Numbers overflow while the network computes; fp16 ends at 65504.",
            hint="Start from the model in bf16 or fp32.",
        )
    return SquaredInputs(sums, inputs.counts.numpy())
