"""Fourier transforms, windows, mel filters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.slicing import along_axis
from convkit.converters.onnx_to_torch.operators.values import (
    Int,
    Number,
    as_int,
    as_number,
    positive_axis,
)


def complex_signal(x: torch.Tensor) -> torch.Tensor:
    """The last axis, of size 1 (real) or 2 (real, imaginary), folded into the element type."""
    wide = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    return wide[..., 0] if x.shape[-1] == 1 else torch.complex(wide[..., 0], wide[..., 1])


def dft(
    input: torch.Tensor,
    dft_length: Int | None = None,
    axis: Int | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> torch.Tensor:
    """ONNX DFT; the last axis holds real and imaginary parts."""
    along = -2 if axis is None else as_int(axis)
    along = positive_axis(along, input.dim())
    length = None if dft_length is None else as_int(dft_length)
    signal = complex_signal(input)
    if inverse and onesided:
        full = 2 * (signal.shape[along] - 1) if length is None else length
        y: torch.Tensor = torch.fft.irfft(signal, full, along)
        return y.unsqueeze(-1).to(input.dtype)
    if inverse:
        spectrum = torch.fft.ifft(signal, length, along)
    elif onesided:
        spectrum = torch.fft.rfft(signal, length, along)
    else:
        spectrum = torch.fft.fft(signal, length, along)
    return torch.view_as_real(spectrum).to(input.dtype)


def stft(
    signal: torch.Tensor,
    frame_step: Int,
    window: torch.Tensor | None = None,
    frame_length: Int | None = None,
    *,
    onesided: int = 1,
) -> torch.Tensor:
    """ONNX STFT of (batch, length, 1 or 2): (batch, frames, bins, 2)."""
    length = 0 if frame_length is None else as_int(frame_length)
    length = window.shape[0] if window is not None and frame_length is None else length
    frames = complex_signal(signal).unfold(1, length, as_int(frame_step))
    if window is not None:
        # A window shorter than the frame leaves the frame's end out.
        frames = frames * F.pad(window.to(frames.real.dtype), (0, length - window.shape[0]))
    spectrum = torch.fft.rfft(frames) if onesided else torch.fft.fft(frames)
    return torch.view_as_real(spectrum).to(signal.dtype)


def cosine_window(
    size: Int, periodic: int, dtype: torch.dtype | None, coefficients: tuple[float, ...]
) -> torch.Tensor:
    """The sum of `(-1)**k * c[k] * cos(2 pi k n / period)`."""
    count = as_int(size)
    position = torch.arange(count, dtype=torch.float64)
    period = count if periodic else count - 1
    angle = position * (2 * math.pi) / period
    terms = [(-1) ** k * c * torch.cos(k * angle) for k, c in enumerate(coefficients)]
    return torch.stack(terms).sum(0).to(dtype or torch.float32)


def blackman_window(
    size: Int, *, output_datatype: torch.dtype | None = None, periodic: int = 1
) -> torch.Tensor:
    """ONNX BlackmanWindow."""
    return cosine_window(size, periodic, output_datatype, (0.42, 0.5, 0.08))


def hann_window(
    size: Int, *, output_datatype: torch.dtype | None = None, periodic: int = 1
) -> torch.Tensor:
    """ONNX HannWindow."""
    return cosine_window(size, periodic, output_datatype, (0.5, 0.5))


def hamming_window(
    size: Int, *, output_datatype: torch.dtype | None = None, periodic: int = 1
) -> torch.Tensor:
    """ONNX HammingWindow, with the exact optimum 25/46 as its first coefficient."""
    return cosine_window(size, periodic, output_datatype, (25 / 46, 21 / 46))


def mel_weight_matrix(
    num_mel_bins: Int,
    dft_length: Int,
    sample_rate: Int,
    lower_edge_hertz: Number,
    upper_edge_hertz: Number,
    *,
    output_datatype: torch.dtype | None = None,
) -> torch.Tensor:
    """ONNX MelWeightMatrix: triangles over (spectrogram bins, mel bins).

    Source: the ONNX specification; the mel scale of O'Shaughnessy, 2595 log10(1 + f / 700).
    """
    bands, length = as_int(num_mel_bins), as_int(dft_length)
    low = torch.log1p(torch.as_tensor(as_number(lower_edge_hertz) / 700, dtype=torch.float64))
    high = torch.log1p(torch.as_tensor(as_number(upper_edge_hertz) / 700, dtype=torch.float64))
    mel = low + (high - low) / (bands + 2) * torch.arange(bands + 2)
    hertz = 700 * torch.expm1(mel)
    edge = torch.floor((length + 1) * hertz / as_int(sample_rate))
    left, center, right = edge[:-2], edge[1:-1], edge[2:]
    at = along_axis(torch.arange(length // 2 + 1, dtype=torch.float64), 0, edge.unsqueeze(0))
    rising = (at - left) / torch.where(center == left, 1, center - left)
    falling = (right - at) / torch.where(right == center, 1, right - center)
    weights = torch.where((at >= left) & (at <= center) & (center > left), rising, 0)
    weights = torch.where((at == center) & (center == left), 1.0, weights)
    weights = torch.where((at >= center) & (at < right), falling, weights)
    return weights.to(output_datatype or torch.float32)


OPERATORS = {
    "BlackmanWindow": blackman_window,
    "DFT": dft,
    "HammingWindow": hamming_window,
    "HannWindow": hann_window,
    "MelWeightMatrix": mel_weight_matrix,
    "STFT": stft,
}
