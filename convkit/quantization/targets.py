"""What a quantized graph should look like for the hardware and the runtime it is meant for."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from convkit.errors import UnknownNameError


@dataclass(frozen=True)
class Target:
    """Hardware with its usual runtime, and what that runs well.

    Attributes:
        name: as `--for` takes it.
        activation: dtype of quantized activations, `uint8` or `int8`.
        weight: dtype of quantized weights.
        has_symmetric_activations: activations have zero point 0.
        is_per_channel: a scale for each output channel of a weight, where the operator has such.
        reduces_range: weights take 7 of their 8 bits, so that sums of two products of 8 bits
            stay within the 16 bits that the hardware adds them in.
        weights_as_float: weights stay float32 with a Q/DQ pair behind, as TensorRT reads them.
        accuracy_level: of MatMulNBits; 4 computes in int8, 0 leaves it to the runtime.
        has_block_kernels: whether its runtime has MatMulNBits; else blocks are DequantizeLinear.
        has_folding: whether arithmetic on constants is done once, when a model is opened, so that
            integers may become weights there.
        has_recurrent_kernels: whether its runtime has DynamicQuantizeLSTM, as ONNX Runtime's CPU
            provider does.
    """

    name: str
    activation: str = "uint8"
    weight: str = "int8"
    has_symmetric_activations: bool = False
    is_per_channel: bool = True
    reduces_range: bool = False
    weights_as_float: bool = False
    accuracy_level: int = 4
    has_block_kernels: bool = True
    has_recurrent_kernels: bool = True
    has_folding: bool = True


TARGETS = {
    target.name: target
    for target in (
        Target("cpu"),
        Target("cpu-avx2", reduces_range=True),
        Target("arm", activation="int8"),
        Target(
            "cuda",
            activation="int8",
            has_symmetric_activations=True,
            accuracy_level=0,
            has_recurrent_kernels=False,
        ),
        Target(
            "tensorrt",
            activation="int8",
            has_symmetric_activations=True,
            weights_as_float=True,
            accuracy_level=0,
            has_block_kernels=False,
            has_recurrent_kernels=False,
            has_folding=False,
        ),
    )
}
"""Source: onnxruntime, "Quantize ONNX Models": U8S8 with VNNI, `reduce_range` on AVX2 and AVX-512
without it, S8S8 on Arm; S8S8 symmetric on GPUs, and Q/DQ pairs on float weights for TensorRT."""

_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8")


def target_of(name: str | None) -> Target:
    """The target of that name; without a name that of this machine's processor.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name is None:
        return TARGETS[_own_name()]
    if name not in TARGETS:
        raise UnknownNameError("target", name, TARGETS)
    return TARGETS[name]


def _own_name() -> str:
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    from convkit.hardware import processor

    sets = processor().instruction_sets
    return "cpu" if any(name in sets for name in _DOT_PRODUCTS) else "cpu-avx2"
