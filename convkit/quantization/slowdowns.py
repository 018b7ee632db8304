"""Schemes of quantization that are known to be slow on a target, and what is faster there.

Figures are of ONNX Runtime 1.31.1, one thread, a processor with AVX-512 VNNI; a product of 1024 x
1024, and a convolution of 3 x 3 on 28 x 28 with 64 channels. Source, to be run again anywhere:
`scripts/bench-quantized-operators`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from convkit.quantization.targets import Target, target_of

_PROCESSORS = ("cpu", "cpu-avx2", "arm")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_UNPACKED = ("GRU", "RNN")


@dataclass(frozen=True)
class Slowdown:
    """A scheme on a target that does not make a model faster.

    Attributes:
        targets: names of those that it is true of.
        schemes: the schemes.
        reason: a clause that ends the sentence "On cpu nf4 ...".
        operators: true only where the model has one of them; none: of all models.
        ratios: speed beside fp32 that was measured, of one row and of 64; none: nothing was.
        remedy: what to do instead.
        options: values of options of the pass that it takes.
    """

    targets: tuple[str, ...]
    schemes: tuple[str, ...]
    reason: str
    remedy: str
    operators: tuple[str, ...] = ()
    ratios: tuple[float, ...] = ()
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def applies(
        self, target: Target, scheme: str, operators: Collection[str], options: Mapping[str, Any]
    ) -> bool:
        """Whether it is true of a model with these operators, as far as they are known."""
        is_meant = target.name in self.targets and scheme in self.schemes
        is_there = not self.operators or any(name in operators for name in self.operators)
        is_said = all(options.get(name) in values for name, values in self.options.items())
        return is_meant and is_there and is_said

    def said_of(self, target: Target, scheme: str) -> str:
        """The sentence for a user."""
        measured = " and ".join(f"{ratio:.2f}x" for ratio in self.ratios)
        figures = f" (measured: {measured} the speed of fp32)" if measured else ""
        name = f"{scheme} int8" if scheme in ("static", "dynamic") else scheme
        return f"On {target.name} {name} {self.reason}{figures}. {self.remedy}"


SLOWDOWNS = (
    Slowdown(
        _PROCESSORS,
        ("nf4",),
        "is slower than fp32, at 1 row and at 64: MatMulBnb4 unpacks its weights in each call",
        "Of 4 bits rtn, hqq and gptq are faster than fp32 there (4.7x and 1.6x).",
        ratios=(0.09, 0.53),
    ),
    Slowdown(
        _PROCESSORS,
        ("fp4",),
        "is slower than fp32, at 1 row and at 64: MatMulBnb4 unpacks its weights in each call",
        "Of 4 bits rtn, hqq and gptq are faster than fp32 there (4.7x and 1.6x).",
        ratios=(0.13, 0.75),
    ),
    Slowdown(
        _PROCESSORS,
        ("rtn", "hqq", "gptq"),
        "at accuracy level 0 is no faster than fp32, at 1 row and at 64: it computes in float",
        "Level 4 computes in int8 (4.7x and 1.6x):  --set onnx-q4.accuracy_level=4",
        ratios=(1.31, 0.85),
        options={"accuracy_level": (0, 1, 2, 3, "0", "1", "2", "3")},
    ),
    Slowdown(
        _PROCESSORS,
        ("dynamic",),
        "makes convolutions smaller and not faster: they keep weights in int8 and compute in fp32, "
        "for ConvInteger is slower than that, dense and depthwise",
        "With calibration data they compute in int8 (3.0x where they are dense):  "
        "--calibration inputs.npz",
        operators=_CONVOLUTIONS,
        ratios=(0.16, 0.04),
    ),
    Slowdown(
        _PROCESSORS,
        ("static", "dynamic"),
        "makes GRU and RNN smaller and not faster: ONNX Runtime has no int8 kernel for them, so "
        "they keep weights in int8 and compute in fp32",
        "LSTM has one (1.3x to 3.4x).",
        operators=_UNPACKED,
    ),
    Slowdown(
        ("cuda",),
        ("static", "dynamic"),
        "is slower than fp32 in ONNX Runtime: its CUDA provider has no int8 kernels for products "
        "and convolutions, and Q/DQ pairs stay in the graph (microsoft/onnxruntime #12229, #24807)",
        "Use fp16, 4 bits, or TensorRT:  --fp16,  --q4 --for cuda,  --for tensorrt",
    ),
    Slowdown(
        ("tensorrt",),
        ("dynamic",),
        "does not run: its parser has neither DynamicQuantizeLinear nor MatMulInteger",
        "Use static int8:  --scheme static --calibration inputs.npz",
    ),
    Slowdown(
        ("tensorrt",),
        ("nf4", "fp4"),
        "does not run: its parser has no MatMulBnb4",
        "Use 4 bits in blocks:  --scheme rtn",
    ),
)


def warnings_for(
    target: Target,
    scheme: str,
    operators: Collection[str],
    options: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Sentences on what a scheme will not do for a model on a target.

    Args:
        target: what the result is for.
        scheme: of onnx-int8 or onnx-q4.
        operators: of the model; those that are not known are left out.
        options: of the pass, as far as said.
    """
    said = options or {}
    return tuple(
        each.said_of(target, scheme)
        for each in SLOWDOWNS
        if each.applies(target, scheme, operators, said)
    )


def foreseen(
    operators: Mapping[str, int], options: Mapping[str, Any], *, default: str, with_data: str = ""
) -> tuple[str, ...]:
    """What a pass warns of: see `warnings_for` and `Pass.warns`.

    Args:
        operators: of the model, with their counts.
        options: of the pass, `calibration` among them.
        default: the scheme where the user names none.
        with_data: the same, where there are calibration data.

    Raises:
        UnknownNameError: there is no such target.
    """
    usual = with_data if with_data and options.get("calibration") else default
    scheme = options.get("scheme") or usual
    return warnings_for(target_of(options.get("target")), scheme, operators, options)
