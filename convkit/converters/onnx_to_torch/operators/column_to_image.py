"""Col2Im: overlapping blocks summed back into an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from convkit.converters.onnx_to_torch.operators.convolution import (
    TRANSPOSED_CONVOLUTIONS,
    interleaved,
)
from convkit.converters.onnx_to_torch.operators.values import Ints, as_ints


def col2im(
    input: torch.Tensor,
    image_shape: Ints,
    block_shape: Ints,
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> torch.Tensor:
    """ONNX Col2Im of (batch, channels * block size, block count); blocks that overlap add up."""
    image, block = as_ints(image_shape), as_ints(block_shape)
    rank = len(image)
    dilations, strides = dilations or [1] * rank, strides or [1] * rank
    pads = pads or [0] * (2 * rank)
    if rank == 2 and pads[:2] == pads[2:]:
        window = [tuple(sizes) for sizes in (image, block, dilations, pads[:2], strides)]
        return F.fold(input, *window)
    padded = [image[i] + pads[i] + pads[rank + i] for i in range(rank)]
    counts = [
        (padded[i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(rank)
    ]
    size = math.prod(block)
    channels = input.shape[1] // size
    # A transposed convolution whose kernel k is 1 at the k-th place of the block and 0 elsewhere.
    kernel = torch.eye(size, dtype=input.dtype, device=input.device).reshape(size, 1, *block)
    y = TRANSPOSED_CONVOLUTIONS[rank - 1](
        input.reshape(input.shape[0] * channels, size, *counts),
        kernel,
        stride=strides,
        dilation=dilations,
    )
    reached = list(y.shape[2:])
    back = [image[i] + pads[i] - reached[i] for i in range(rank)]
    y = F.pad(y, interleaved([-amount for amount in pads[:rank]], back))
    return y.reshape(input.shape[0], channels, *image)


OPERATORS = {"Col2Im": col2im}
