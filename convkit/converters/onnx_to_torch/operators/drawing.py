"""Random numbers. A seed makes a node repeatable; the numbers are PyTorch's own."""

from __future__ import annotations

import torch


def seeded_generator(seed: float | None) -> torch.Generator | None:
    """A generator for ONNX's float seed, None without one."""
    if seed is None:
        return None
    return torch.Generator().manual_seed(int(seed))


def random_normal(
    *,
    dtype: torch.dtype | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    shape: list[int],
) -> torch.Tensor:
    """ONNX RandomNormal."""
    noise = torch.randn(shape, generator=seeded_generator(seed))
    return (noise * scale + mean).to(dtype or torch.float32)


def random_normal_like(
    input: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> torch.Tensor:
    """ONNX RandomNormalLike."""
    noise = torch.randn(input.shape, generator=seeded_generator(seed))
    return (noise * scale + mean).to(input.device, dtype or input.dtype)


def random_uniform(
    *,
    dtype: torch.dtype | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
    shape: list[int],
) -> torch.Tensor:
    """ONNX RandomUniform in [low, high)."""
    noise = torch.rand(shape, generator=seeded_generator(seed))
    return (noise * (high - low) + low).to(dtype or torch.float32)


def random_uniform_like(
    input: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> torch.Tensor:
    """ONNX RandomUniformLike in [low, high)."""
    noise = torch.rand(input.shape, generator=seeded_generator(seed))
    return (noise * (high - low) + low).to(input.device, dtype or input.dtype)


def bernoulli(
    input: torch.Tensor, *, dtype: torch.dtype | None = None, seed: float | None = None
) -> torch.Tensor:
    """ONNX Bernoulli: 1 with the probability that the element holds."""
    noise = torch.rand(input.shape, generator=seeded_generator(seed)).to(input.device)
    return (noise < input).to(dtype or input.dtype)


def multinomial(
    input: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    sample_size: int = 1,
    seed: float | None = None,
) -> torch.Tensor:
    """ONNX Multinomial: class numbers drawn from rows of unnormalized log-probabilities."""
    chances = torch.softmax(input.to(torch.float32), -1)
    drawn = torch.multinomial(chances, sample_size, True, generator=seeded_generator(seed))
    return drawn.to(dtype or torch.int32)


OPERATORS = {
    "Bernoulli": bernoulli,
    "Multinomial": multinomial,
    "RandomNormal": random_normal,
    "RandomNormalLike": random_normal_like,
    "RandomUniform": random_uniform,
    "RandomUniformLike": random_uniform_like,
}
