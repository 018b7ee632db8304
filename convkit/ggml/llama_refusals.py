"""Files and texts over which llama.cpp ends the process, refused before it sees them.

Whatever else is wrong with a file, llama.cpp says itself.

Source: llama.cpp, `src/llama-vocab.cpp` (`load`, `byte_to_token`), `src/llama-hparams.h`
(`LLAMA_MAX_LAYERS`); ggml, `src/ggml-cpu/ops.cpp` (the norms).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from convkit.errors import ConvkitError, ModelError, SamplesError
from convkit.ggml.header import Header, read_header
from convkit.ggml.values import Strings

_GREATEST_DEPTH = 512
_SPACE = "\u2581"
"""How SentencePiece spells a space."""


def readable_header(path: Path) -> Header | None:
    """A file's header; None where llama.cpp has to say why it cannot be read."""
    try:
        return read_header(path)
    except ConvkitError:
        return None


def refuse_file(header: Header) -> None:
    """Refuses a file that ends the process while it is loaded or computed.

    Raises:
        ModelError: it is one.
    """
    why = _repetition(_tokens(header)) or _depth(header) or _epsilon(header)
    if why:
        raise ModelError(f"{header.path} cannot be run by llama.cpp.", why=why)


def alphabet(header: Header) -> frozenset[str] | None:
    """The characters that its vocabulary spells; None where it spells all, be it by their bytes."""
    if header.get("tokenizer.ggml.model") != "llama":
        return None
    tokens = set(_tokens(header))
    if all(f"<0x{byte:02X}>" in tokens for byte in range(256)):
        return None
    return frozenset(token for token in tokens if len(token) == 1)


def refuse_text(text: str, characters: frozenset[str], path: Path) -> None:
    """Refuses a text with characters that are not in an alphabet.

    Raises:
        SamplesError: it has one.
    """
    unknown = sorted({*text.replace(" ", _SPACE)} - characters)
    if unknown:
        raise SamplesError(
            f"{path} has no token for {unknown[0]!r}.",
            why="Nor for the bytes of what it does not know, as llama.cpp expects of it.",
        )


def _tokens(header: Header) -> Iterable[str]:
    value = header.metadata.get("tokenizer.ggml.tokens")
    return value.content if value is not None and isinstance(value.content, Strings) else ()


def _repetition(tokens: Iterable[str]) -> str:
    seen: set[str] = set()
    for number, token in enumerate(tokens):
        if token in seen:
            return f"Token {number} of its vocabulary, {token!r}, was there before."
        if token:  # llama.cpp numbers the empty ones
            seen.add(token)
    return ""


def _depth(header: Header) -> str:
    depth = header.get("ARCH.block_count", 1)
    if isinstance(depth, int) and not 0 < depth <= _GREATEST_DEPTH:
        return f"It has {depth} blocks; there may be 1 to {_GREATEST_DEPTH}."
    return ""


def _epsilon(header: Header) -> str:
    for kind in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        epsilon = header.get(f"ARCH.attention.{kind}", 0.0)
        if isinstance(epsilon, float) and not epsilon >= 0:
            return f"Its {kind} is {epsilon}."
    return ""
