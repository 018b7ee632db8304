"""Products with weights packed to a few bits (com.microsoft MatMulNBits and its like)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.gather import nonnegative_index
from convkit.converters.onnx_to_torch.operators.recurrent import lstm

# Source: bitsandbytes, Dettmers et al. 2023 (QLoRA), appendix E; FP4 from the same library.
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
FP4_MAGNITUDES = (0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)


def unpacked(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes of the last axis as integers of `bits` bits, low-order bits first."""
    if bits == 8:
        return x
    shifts = torch.arange(0, 8, bits, device=x.device, dtype=torch.uint8)
    codes: torch.Tensor = (x.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.flatten(-2)


def zero_points_of(
    zero_points: torch.Tensor | None, rows: int, blocks: int, bits: int, like: torch.Tensor
) -> torch.Tensor:
    """Zero points, (rows, blocks, 1): packed, as floats, or the middle of the range."""
    if zero_points is None:
        return torch.full((1, 1, 1), 2 ** (bits - 1), dtype=like.dtype, device=like.device)
    if zero_points.dtype == torch.uint8:
        zero_points = unpacked(zero_points.reshape(rows, -1), bits)[:, :blocks]
    return zero_points.reshape(rows, blocks, 1).to(like.dtype)


def unpacked_weight(
    b: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    g_idx: torch.Tensor | None,
    rows: int,
    columns: int,
    bits: int,
) -> torch.Tensor:
    """The weight, (rows, columns), of blocks of packed integers (rows, blocks, bytes)."""
    blocks = b.shape[1]
    scale = scales.reshape(rows, blocks, 1)
    codes = unpacked(b.reshape(rows, blocks, -1), bits).to(scale.dtype)
    zero = zero_points_of(zero_points, rows, blocks, bits, scale)
    if g_idx is None:
        return ((codes - zero) * scale).flatten(1)[:, :columns]
    # Columns belong to the blocks that `g_idx` names, wherever they stand.
    group = g_idx[:columns].to(torch.int64)
    zero = zero.expand(rows, blocks, 1)[:, group, 0]
    return (codes.flatten(1)[:, :columns] - zero) * scale[:, group, 0]


def mat_mul_n_bits(
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None = None,
    g_idx: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    K: int,
    N: int,
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> torch.Tensor:
    """com.microsoft MatMulNBits: `a` times a transposed weight in blocks of 2, 4 or 8 bits."""
    weight = unpacked_weight(b, scales, zero_points, g_idx, N, K, bits)
    return F.linear(a, weight.to(a.dtype), bias)


def mat_mul_bnb4(
    a: torch.Tensor,
    b: torch.Tensor,
    absmax: torch.Tensor,
    *,
    K: int,
    N: int,
    block_size: int,
    quant_type: int,
    training_mode: int = 0,
    transB: int = 1,
) -> torch.Tensor:
    """com.microsoft MatMulBnb4: `a` times a weight of bitsandbytes' NF4 (1) or FP4 (0) codes."""
    values = NF4_VALUES if quant_type else (*FP4_MAGNITUDES, *(-m for m in FP4_MAGNITUDES))
    table = torch.tensor(values, dtype=absmax.dtype, device=a.device)
    codes = torch.stack([b.reshape(-1) >> 4, b.reshape(-1) & 15], 1).flatten()[: N * K]
    spread = absmax.repeat_interleave(block_size)[: N * K]
    weight = (table[codes.to(torch.int64)] * spread).reshape(N, K).to(a.dtype)
    return F.linear(a, weight if transB else weight.t())


def gather_block_quantized(
    data: torch.Tensor,
    indices: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> torch.Tensor:
    """com.microsoft GatherBlockQuantized: slices of a block-quantized tensor, dequantized.

    Bytes hold `bits` bits per element, packed along the last axis; other types one element each.
    """
    packed = data.dtype == torch.uint8
    codes = unpacked(data, bits) if packed else data
    along = quantize_axis % data.dim()
    spread = block_size or codes.shape[along]
    y = codes.to(scales.dtype)
    if zero_points is not None:
        zero = unpacked(zero_points, bits) if packed else zero_points
        zero = zero.narrow(-1, 0, scales.shape[-1]).to(scales.dtype)
        y = y - zero.repeat_interleave(spread, along).narrow(along, 0, codes.shape[along])
    elif packed:
        y = y - 2 ** (bits - 1)
    y = y * scales.repeat_interleave(spread, along).narrow(along, 0, codes.shape[along])
    at = gather_axis % data.dim()
    index = nonnegative_index(indices, y.shape[at]).reshape(-1)
    taken = y.index_select(at, index)
    return taken.reshape([*y.shape[:at], *indices.shape, *y.shape[at + 1 :]])


def dequantized_gates(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None
) -> torch.Tensor:
    """(directions, inputs, gates) integers as float weights (directions, gates, inputs)."""
    zero = 0.0 if zero_point is None else per_gate(zero_point.to(torch.float32))
    return ((x.to(torch.float32) - zero) * per_gate(scale)).mT


def per_gate(values: torch.Tensor) -> torch.Tensor:
    """A value per direction, or per direction and gate, along (directions, 1, gates)."""
    return values.reshape(values.shape[0], 1, -1)


def dynamic_quantize_lstm(
    x: torch.Tensor,
    w: torch.Tensor,
    r: torch.Tensor,
    b: torch.Tensor | None,
    sequence_lens: torch.Tensor | None,
    initial_h: torch.Tensor | None,
    initial_c: torch.Tensor | None,
    p: torch.Tensor | None,
    w_scale: torch.Tensor,
    w_zero_point: torch.Tensor,
    r_scale: torch.Tensor,
    r_zero_point: torch.Tensor,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    output_count: int = 3,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """com.microsoft DynamicQuantizeLSTM: LSTM with integer weights.

    ONNX Runtime also rounds the activations to 8 bits; here they keep their precision.
    """
    return lstm(
        x,
        dequantized_gates(w, w_scale, w_zero_point),
        dequantized_gates(r, r_scale, r_zero_point),
        b,
        sequence_lens,
        initial_h,
        initial_c,
        p,
        activation_alpha=activation_alpha,
        activation_beta=activation_beta,
        activations=activations,
        clip=clip,
        direction=direction,
        hidden_size=hidden_size,
        input_forget=input_forget,
        output_count=output_count,
    )


OPERATORS = {
    ("com.microsoft", "DynamicQuantizeLSTM"): dynamic_quantize_lstm,
    ("com.microsoft", "GatherBlockQuantized"): gather_block_quantized,
    ("com.microsoft", "MatMulBnb4"): mat_mul_bnb4,
    ("com.microsoft", "MatMulNBits"): mat_mul_n_bits,
}
