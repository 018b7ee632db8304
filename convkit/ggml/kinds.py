"""GGUF files that hold no model: what they are, and what they are good for.

Source: llama.cpp, `gguf-py/gguf/constants.py` (`GGUFType`), `tools/imatrix/imatrix.cpp`.
"""

from __future__ import annotations

from convkit.errors import ModelError
from convkit.ggml.header import Header

_MODEL = "model"
_PICTURES = ("clip", "mmproj")


def kind_of(header: Header) -> str:
    """`model`, `imatrix`, `adapter`, `mmproj` or what else a file says it is."""
    kind = str(header.get("general.type", _MODEL))
    return "mmproj" if header.architecture in _PICTURES else kind


def require_tensors(header: Header) -> None:
    """Refuses a file without weights.

    Raises:
        ModelError: it holds importance data, or none but a vocabulary.
    """
    if kind_of(header) == "imatrix":
        raise ModelError(
            f"{header.path} holds importance data, not a model.",
            hint="Quantize a model with them:  convkit convert MODEL --to gguf --q4 "
            f"--calibration {header.path}",
        )
    if not header.tensors:
        has_vocabulary = "tokenizer.ggml.tokens" in header.metadata
        raise ModelError(
            f"{header.path} holds no tensors" + (", only a vocabulary." if has_vocabulary else "."),
            hint="Name a file with weights.",
        )


def require_model(header: Header) -> None:
    """Refuses a file that is no model by itself.

    Raises:
        ModelError: it is something else, or does not say what it computes.
    """
    require_tensors(header)
    kind = kind_of(header)
    if kind == "adapter":
        raise ModelError(
            f"{header.path} is an adapter, which is not run alone.",
            why="Adapters are merged as PEFT saves them, not from GGUF.",
            hint="convkit convert FOLDER --adapter PEFT_FOLDER --to gguf",
        )
    if kind == "mmproj":
        raise ModelError(
            f"{header.path} turns pictures or sounds into tokens for a language model; it is not "
            "run alone.",
            hint="Name the file with the language model beside it.",
        )
    if kind != _MODEL:
        raise ModelError(f"{header.path} is a GGUF file of type '{kind}', not a model.")
    if not header.architecture:
        raise ModelError(
            f"{header.path} does not say which network it is for: it has no general.architecture.",
            hint="Download or convert it again.",
        )
