"""Which weights of a Hugging Face folder are quantized, how, and in which tensors they lie.

Names only: nothing here reads a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from convkit.artifact import Precision
from convkit.errors import ModelError, UnsupportedError

_OTHER_METHODS = {
    "aqlm": "sums of entries of learned codebooks",
    "auto-round": "integers in one of several packings",
    "bitnet": "weights of -1, 0 and 1",
    "compressed-tensors": "llm-compressor's packings, one per group of layers",
    "eetq": "8-bit integers, interleaved for one kernel",
    "fbgemm_fp8": "8-bit floats with a scale per row",
    "higgs": "entries of grids behind Hadamard transforms",
    "hqq": "integers with zero points in floating point",
    "mxfp4": "4-bit floats in blocks of 32 with a power of two each",
    "nvfp4": "4-bit floats in blocks of 16 with an 8-bit float each",
    "quanto": "integers or 8-bit floats in optimum-quanto's packing",
    "quark": "AMD's packings, one per group of layers",
    "spqr": "3-bit integers with sparse outliers",
    "torchao": "tensor classes of torchao",
    "vptq": "vectors out of learned codebooks",
}
"""What is known of methods that are not read here. Source: transformers, `quantizers`."""


@dataclass(frozen=True)
class Layout:
    """How the name of a quantized tensor and the names of its parts belong together.

    In the templates `{}` stands for what comes before `mark` in the name of the marking part.

    Attributes:
        mark: how the name of one part ends, that unquantized tensors do not have.
        original: template of the tensor's own name.
        parts: role -> template.
        optional: role -> template of parts that may be absent.
        bits: of a weight; None where each tensor may have its own.
    """

    mark: str
    original: str
    parts: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    bits: int | None = None

    def names_of(self, original: str) -> dict[str, str]:
        """Role -> name of each part that a tensor of this name is kept in, optional ones too."""
        stem = original.removesuffix(self.original.removeprefix("{}"))
        return {r: each.format(stem) for r, each in {**self.parts, **self.optional}.items()}


_PACKED = {"qweight": "{}.qweight", "qzeros": "{}.qzeros", "scales": "{}.scales"}
_NESTED = {"nested_absmax": "{}.nested_absmax", "nested_quant_map": "{}.nested_quant_map"}
_LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "bitsandbytes": (
        *(
            Layout(
                mark=f".quant_state.bitsandbytes__{kind}",
                original="{}",
                parts={
                    "weight": "{}",
                    "absmax": "{}.absmax",
                    "quant_map": "{}.quant_map",
                    "quant_state": f"{{}}.quant_state.bitsandbytes__{kind}",
                },
                optional=_NESTED,
                bits=4,
            )
            for kind in ("nf4", "fp4")
        ),
        Layout(
            ".SCB",
            "{}.weight",
            {"weight": "{}.weight", "SCB": "{}.SCB"},
            {"format": "{}.weight_format"},
            8,
        ),
    ),
    "gptq": (Layout(".qweight", "{}.weight", _PACKED, {"g_idx": "{}.g_idx"}),),
    "awq": (Layout(".qweight", "{}.weight", _PACKED, bits=4),),
    "fp8": (Layout("_scale_inv", "{}", {"weight": "{}", "scale_inv": "{}_scale_inv"}, bits=8),),
}
BITSANDBYTES: Mapping[str, Layout] = dict(
    zip(("nf4", "fp4", "llm_int8"), _LAYOUTS["bitsandbytes"], strict=True)
)
"""Scheme -> in which tensors bitsandbytes keeps a weight."""

_UNUSED = {"fp8": (".activation_scale", ".input_scale", "_activation_scale")}
"""Endings of tensors that only a kernel for quantized activations needs."""


@dataclass(frozen=True)
class Quantized:
    """A quantized tensor.

    Attributes:
        name: the name it would have unquantized.
        parts: role -> name of the tensor that holds it.
        layout: where these come from.
    """

    name: str
    parts: Mapping[str, str]
    layout: Layout


@dataclass(frozen=True)
class Quantization:
    """How a folder's weights are quantized.

    Attributes:
        method: `bitsandbytes`, `gptq`, `awq` or `fp8`.
        bits: of most weights.
        settings: `quantization_config` of the configuration.
        words: the same for a report.
        scheme: as `--scheme` calls it, where there is such.
    """

    method: str
    bits: int
    settings: Mapping[str, Any]
    words: str
    scheme: str = ""

    @property
    def precision(self) -> Precision:
        """The class of precision it belongs to."""
        return Precision.INT8 if self.bits == 8 else Precision.Q4

    def tensors(self, names: Collection[str]) -> dict[str, Quantized]:
        """The quantized tensors among those of a checkpoint, by their marking parts' order.

        Raises:
            ModelError: a part is missing.
        """
        found = {}
        for name in names:
            layout = next(
                (each for each in _LAYOUTS[self.method] if name.endswith(each.mark)), None
            )
            if layout is not None:
                tensor = _quantized(layout, name, names)
                found[tensor.name] = tensor
        return found

    def is_unused(self, name: str) -> bool:
        """Whether a tensor is only for kernels that quantize activations too."""
        return name.endswith(_UNUSED.get(self.method, ()))


def _quantized(layout: Layout, mark: str, names: Collection[str]) -> Quantized:
    stem = mark.removesuffix(layout.mark)
    parts = {role: template.format(stem) for role, template in layout.parts.items()}
    missing = [part for part in parts.values() if part not in names]
    name = layout.original.format(stem)
    if missing:
        raise ModelError(
            f"The quantized tensor '{name}' is incomplete: '{missing[0]}' is missing.",
            hint="Download the folder again.",
            missing=missing,
        )
    optional = {role: template.format(stem) for role, template in layout.optional.items()}
    present = {role: part for role, part in optional.items() if part in names}
    return Quantized(name, {**parts, **present}, layout)


def looks_quantized(names: Iterable[str]) -> str | None:
    """The first name that only a quantized checkpoint has."""
    marks = tuple(layout.mark for layouts in _LAYOUTS.values() for layout in layouts)
    return next((name for name in names if name.endswith(marks)), None)


def quantization_of(config: Mapping[str, Any], folder: Path | None = None) -> Quantization | None:
    """How a model is quantized; None where it is not.

    Args:
        config: its configuration.
        folder: where the files lie that AutoGPTQ and AutoAWQ wrote instead of a word in it.

    Raises:
        UnsupportedError: in a way that is not read here; says what is known of it.
    """
    settings = config.get("quantization_config") or (_beside(folder) if folder else None)
    if not settings:
        return None
    if not isinstance(settings, Mapping):
        raise ModelError(f"quantization_config is a {type(settings).__name__}, not an object.")
    method = _method(settings)
    read = {"bitsandbytes": _bitsandbytes, "gptq": _gptq, "awq": _awq, "fp8": _fp8}.get(method)
    if read is None:
        known = _OTHER_METHODS.get(method)
        raise UnsupportedError(
            f"The weights are quantized with {method or 'an unnamed method'}, which is not read.",
            why=[*([f"It holds {known}."] if known else []), f"Read are {', '.join(_LAYOUTS)}."],
            hint="Convert the model that it was made from.",
            method=method,
        )
    return read(settings)


def _beside(folder: Path) -> Mapping[str, Any] | None:
    """Settings in a file of their own, in the spelling of `quantization_config`."""
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return MappingProxyType({"quant_method": method, **found})
    return None


def _method(settings: Mapping[str, Any]) -> str:
    stated = str(settings.get("quant_method") or "").lower()
    if not stated and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"  # older folders do not name it
    return stated


def _bitsandbytes(settings: Mapping[str, Any]) -> Quantization:
    if settings.get("load_in_8bit") and not settings.get("load_in_4bit"):
        return Quantization("bitsandbytes", 8, settings, "LLM.int8 by bitsandbytes", "llm_int8")
    kind = settings.get("bnb_4bit_quant_type", "fp4")
    twice = ", scales quantized too" if settings.get("bnb_4bit_use_double_quant") else ""
    return Quantization("bitsandbytes", 4, settings, f"{kind} by bitsandbytes{twice}", kind)


def _gptq(settings: Mapping[str, Any]) -> Quantization:
    bits = _whole(settings, "bits")
    layout = gptq_format(settings)
    if settings.get("is_marlin_format"):
        layout = "marlin"
    _require("GPTQ", "bits", bits, (2, 3, 4, 8))
    _require("GPTQ", "checkpoint_format", layout, ("gptq", "gptq_v2"))
    _require("GPTQ", "pack_dtype", settings.get("pack_dtype") or "int32", ("int32",))
    order = ", in order of activations" if settings.get("desc_act") else ""
    words = f"GPTQ, {bits} bits{_groups(settings.get('group_size'))}{order}"
    return Quantization("gptq", bits, settings, words)


def gptq_format(settings: Mapping[str, Any]) -> str:
    """How zero points are stored: `gptq` less one, `gptq_v2` as they are."""
    return str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower()


def _awq(settings: Mapping[str, Any]) -> Quantization:
    bits = _whole(settings, "bits", "w_bit")
    layout = settings.get("version") or settings.get("format") or settings.get("checkpoint_format")
    _require("AWQ", "bits", bits, (4,))
    _require("AWQ", "version", str(layout or "gemm").lower(), ("gemm",))
    groups = _groups(settings.get("group_size", settings.get("q_group_size")))
    return Quantization("awq", bits, settings, f"AWQ, {bits} bits{groups}")


def _fp8(settings: Mapping[str, Any]) -> Quantization:
    _require("fp8", "fmt", str(settings.get("fmt") or "e4m3").lower(), ("e4m3",))
    _require("fp8", "expert_dtype", str(settings.get("expert_dtype") or "fp8"), ("fp8",))
    block = settings.get("weight_block_size")
    blocks = f" in blocks of {block[0]} x {block[1]}" if block else ""
    return Quantization("fp8", 8, settings, f"8-bit floats (e4m3){blocks}")


def _groups(size: Any) -> str:
    return f" in groups of {size}" if isinstance(size, int) and size > 0 else ""


def _whole(settings: Mapping[str, Any], *keys: str) -> int:
    found = next((settings[key] for key in keys if key in settings), None)
    if type(found) is not int:
        raise ModelError(f"quantization_config does not say how many bits: {keys[0]} is {found!r}.")
    return found


def _require(method: str, key: str, found: Any, known: tuple[Any, ...]) -> None:
    if found not in known:
        raise UnsupportedError(
            f"The weights are quantized with {method}, {key} {found}, which is not read.",
            why=f"Read is {key} {', '.join(map(str, known))}.",
            hint="Convert the model that it was made from.",
            method=method.lower(),
        )
