"""Twenty-one small networks, one per family of operators, for tests of every format and converter.

Weights are random but seeded, and batch-norm statistics are filled in, so that an operator that is
dropped or mistranslated shows. Integer inputs lie in 0..100, what `samples.draw` gives by default.
Shapes have a dynamic `batch`, and `sequence` (or `height`, `width`) where the network allows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convkit.artifact import Opening, TensorSpec

_VOCABULARY_SIZE = 101


TINY_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 120,
    "max_position_embeddings": 64,
}
"""Sizes of transformers networks that build in milliseconds, as their configs take them."""


@dataclass(frozen=True)
class TinyModel:
    """A small network and what it takes.

    Attributes:
        name: snake_case, unique; good as a test id.
        module: the class; its constructor takes nothing.
        inputs: specs in the order of `forward`'s parameters, with the same names.
    """

    name: str
    module: type[nn.Module]
    inputs: tuple[TensorSpec, ...]

    def factory(self) -> nn.Module:
        """The network with seeded weights, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            network = self.module().eval()
            for part in network.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
                    part.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
        return network

    @property
    def opening(self) -> Opening:
        """How convkit opens it by name."""
        return Opening(factory=f"{__name__}:{self.module.__name__}", inputs=self.inputs)


class ConvBnRelu(nn.Module):
    """Convolution, batch norm, ReLU: (batch, 3, height, width) -> (batch, 8, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        return torch.relu(self.norm(self.conv(x)))


class DepthwisePool(nn.Module):
    """Depthwise and pointwise convolution, three kinds of pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
        self.pointwise = nn.Conv2d(4, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        x = nn.functional.hardswish(self.pointwise(self.depthwise(x)))
        x = nn.functional.max_pool2d(x, 2) + nn.functional.avg_pool2d(x, 2)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class TransposedConv(nn.Module):
    """Transposed convolution with output padding and dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1)
        self.mix = nn.Conv2d(6, 2, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        return torch.sigmoid(self.mix(nn.functional.leaky_relu(self.up(x), 0.1)))


class Lstm(nn.Module):
    """A two-layer LSTM that gives its sequence and its final states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the network."""
        sequence, (hidden, cell) = self.lstm(x)
        return sequence, hidden, cell


class Gru(nn.Module):
    """A GRU whose last step is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 9, batch_first=True)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        sequence, _ = self.gru(x)
        return self.head(sequence[:, -1])


class BidirectionalRnn(nn.Module):
    """A bidirectional Elman network, sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 7, bidirectional=True, nonlinearity="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        return self.rnn(x)[0]


class SelfAttention(nn.Module):
    """Multi-head attention that also gives its averaged weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network."""
        mixed, weights = self.attention(x, x, x, need_weights=True)
        assert weights is not None
        return mixed, weights


class Encoder(nn.Module):
    """A Transformer encoder layer; PyTorch runs a fused kernel for it that has no ONNX operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            16, 2, dim_feedforward=32, dropout=0.0, activation="gelu", batch_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        return self.layer(x)


class Norms(nn.Module):
    """Group, instance and layer norm, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.group = nn.GroupNorm(2, 4)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.layer = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        x = self.instance(torch.tanh(self.group(x)) + x)
        return self.layer(x.permute(0, 2, 3, 1))


class Upsample(nn.Module):
    """Nearest and bilinear upsampling, aligned and not."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the network."""
        nearest = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        smooth = nn.functional.interpolate(x, size=[13, 9], mode="bilinear", align_corners=False)
        aligned = nn.functional.interpolate(x, size=[13, 9], mode="bilinear", align_corners=True)
        return nearest, smooth, aligned


class ScatterGather(nn.Module):
    """Gathers features by index and scatter-adds them into bins."""

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network."""
        index = index % 8
        gathered = torch.gather(x, 1, index)
        bins = torch.zeros_like(x).scatter_add(1, index, gathered)
        return gathered, bins


class EmbeddingMean(nn.Module):
    """Embeds token ids, averages over those that are not padding, and classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY_SIZE, 12, padding_idx=0)
        self.head = nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """Runs the network."""
        mask = (ids != 0).unsqueeze(-1).to(torch.float32)
        total = (self.embedding(ids) * mask).sum(1)
        return self.head(total / mask.sum(1).clamp(min=1.0))


class Einsum(nn.Module):
    """Bilinear attention scores written with einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        scores = torch.einsum("bic,hcd,bjd->bhij", x, self.weight, x)
        return torch.einsum("bhij,bjc->bihc", scores.softmax(-1), x)


class Spectrum(nn.Module):
    """Magnitude of a real Fourier transform over frames of fixed length, in decibels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(32))

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        spectrum = torch.view_as_real(torch.fft.rfft(x * self.window, dim=-1))
        return torch.log10(spectrum.square().sum(-1) + 1e-3)


class GridSample(nn.Module):
    """Warps an image by an affine grid that the image itself decides."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        theta = torch.tanh(self.locate(x.mean((2, 3)))).view(-1, 2, 3)
        grid = nn.functional.affine_grid(theta, [x.shape[0], 2, 7, 7], align_corners=False)
        return nn.functional.grid_sample(x, grid, align_corners=False)


class Branch(nn.Module):
    """Takes one of two branches, by the data, with `torch.cond`."""

    def __init__(self) -> None:
        super().__init__()
        self.warm = nn.Linear(6, 6)
        self.cold = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""

        def warm(value: Tensor) -> Tensor:
            return torch.relu(self.warm(value))

        def cold(value: Tensor) -> Tensor:
            return torch.tanh(self.cold(value))

        return torch.cond(x.sum() > 0, warm, cold, (x,))


class Iterate(nn.Module):
    """Iterates a contraction a number of times that the data decide, with `torch.while_loop`."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        from torch._higher_order_ops.while_loop import while_loop

        def unfinished(count: Tensor, value: Tensor) -> Tensor:
            return count < 4

        def advance(count: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return count + 1, torch.tanh(self.step(value)) + 0.1 * value

        return while_loop(unfinished, advance, (torch.zeros((), dtype=torch.int64), x))[1]


class TopkSort(nn.Module):
    """Top-k values and indices, and a full sort."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the network."""
        values, indices = torch.topk(x, 3, dim=1)
        return values, indices, torch.sort(x, dim=1, descending=True)[0]


class MaskedCumsum(nn.Module):
    """Causal masking, cumulative sums and `where`."""

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        scores = (x @ x.transpose(1, 2)).masked_fill(~causal, float("-inf")).softmax(-1)
        mixed = scores @ x
        return torch.where(mixed > 0, torch.cumsum(mixed, 1), mixed.abs())


class PadRollUnfold(nn.Module):
    """Reflection and constant padding, a cyclic shift, sliding blocks."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network."""
        padded = nn.functional.pad(x, [1, 2, 2, 1], mode="reflect")
        rolled = torch.roll(padded, [1, -2], [2, 3])
        blocks = nn.functional.unfold(nn.functional.pad(x, [1, 1, 1, 1]), [3, 3], stride=2)
        return rolled, blocks


class ResidualBlock(nn.Module):
    """Squeeze-and-excitation residual block with a strided shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.excite = nn.Conv2d(2, 8, 1)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        y = self.second(nn.functional.silu(self.norm(self.first(x))))
        scale = self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        return nn.functional.relu6(y * torch.sigmoid(scale) + self.shortcut(x))


def _image(channels: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("x", "float32", ("batch", channels, "height", "width")),)


def _fixed_image(channels: int, height: int, width: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("x", "float32", ("batch", channels, height, width)),)


def _series(features: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("x", "float32", ("batch", "sequence", features)),)


TINY_MODELS: tuple[TinyModel, ...] = (
    TinyModel("conv_bn_relu", ConvBnRelu, _image(3)),
    TinyModel("depthwise_pool", DepthwisePool, _image(4)),
    TinyModel("transposed_conv", TransposedConv, _image(3)),
    TinyModel("lstm", Lstm, _series(6)),
    TinyModel("gru", Gru, _series(6)),
    TinyModel(
        "bidirectional_rnn",
        BidirectionalRnn,
        (TensorSpec("x", "float32", ("sequence", "batch", 5)),),
    ),
    TinyModel("self_attention", SelfAttention, _series(16)),
    TinyModel("encoder", Encoder, _series(16)),
    TinyModel("norms", Norms, _image(4)),
    TinyModel("upsample", Upsample, _fixed_image(2, 6, 5)),
    TinyModel(
        "scatter_gather",
        ScatterGather,
        (TensorSpec("x", "float32", ("batch", 8)), TensorSpec("index", "int64", ("batch", 5))),
    ),
    TinyModel(
        "embedding_mean",
        EmbeddingMean,
        (TensorSpec("ids", "int64", ("batch", "sequence")),),
    ),
    TinyModel("einsum", Einsum, _series(8)),
    TinyModel("spectrum", Spectrum, _series(32)),
    TinyModel("grid_sample", GridSample, _image(2)),
    TinyModel("branch", Branch, (TensorSpec("x", "float32", ("batch", 6)),)),
    TinyModel("iterate", Iterate, (TensorSpec("x", "float32", ("batch", 5)),)),
    TinyModel("topk_sort", TopkSort, (TensorSpec("x", "float32", ("batch", 11)),)),
    TinyModel("masked_cumsum", MaskedCumsum, _series(6)),
    TinyModel("pad_roll_unfold", PadRollUnfold, _fixed_image(2, 8, 9)),
    TinyModel("residual_block", ResidualBlock, _image(4)),
)
