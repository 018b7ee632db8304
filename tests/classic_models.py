"""The classic PyTorch networks that people learn with and still ship, with seeded weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convkit.artifact import Opening, TensorSpec
from tests.tiny_models import TinyModel


@dataclass(frozen=True)
class ClassicModel(TinyModel):
    """A classic network and what it takes."""

    @property
    def opening(self) -> Opening:
        """How convkit opens it by name."""
        return Opening(factory=f"{__name__}:{self.module.__name__}", inputs=self.inputs)


class Linear(nn.Module):
    """A straight line: (batch, 1) -> (batch, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        return self.line(x)


class LstmClassifier(nn.Module):
    """Classifies a series; its initial states are zeros of the batch's size, made in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(10, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        hidden = torch.zeros(2, x.shape[0], 64)
        cell = torch.zeros(2, x.shape[0], 64)
        states, _ = self.lstm(x, (hidden, cell))
        return self.head(states[:, -1])


class RnnBatchFirst(nn.Module):
    """An Elman network of two layers; all states and the final ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 5, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network."""
        output, hidden = self.rnn(x)
        return output, hidden


class GruSequenceFirst(nn.Module):
    """A GRU of two layers, the sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, num_layers=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network."""
        output, hidden = self.gru(x)
        return output, hidden


class GruWithState(nn.Module):
    """A GRU of two layers that starts from a given state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, num_layers=2, batch_first=True)

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network."""
        output, hidden = self.gru(x, h0)
        return output, hidden


class LstmBothWays(nn.Module):
    """A bidirectional LSTM of two layers; all states, the final ones, and the cells."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the network."""
        output, (hidden, cell) = self.lstm(x)
        return output, hidden, cell


class Residual(nn.Module):
    """Three residual stages as in ResNet, the later ones with a strided shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.stages = nn.ModuleList(
            [_ResidualBlock(8, 8, 1), _ResidualBlock(8, 16, 2), _ResidualBlock(16, 32, 2)]
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class _ResidualBlock(nn.Module):
    def __init__(self, taken: int, given: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(taken, given, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(given)
        self.second = nn.Conv2d(given, given, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(given)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or taken != given:
            self.shortcut = nn.Sequential(
                nn.Conv2d(taken, given, 1, stride, bias=False), nn.BatchNorm2d(given)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class Inception(nn.Module):
    """Branches of different kernels, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Conv2d(3, 4, 1)
        self.small = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1))
        self.large = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 5, padding=2))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 4, 1))
        self.norm = nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        branches = [self.point(x), self.small(x), self.large(x), self.pooled(x)]
        return self.head(torch.relu(self.norm(torch.cat(branches, 1))).mean((2, 3)))


class MixtureOfExperts(nn.Module):
    """A gate picks the best two of four experts for each row and weighs what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(10, 4)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 10)) for _ in range(4)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        scores, chosen = torch.topk(self.gate(x), 2, dim=-1)
        shares = torch.softmax(scores, dim=-1)
        said = torch.stack([expert(x) for expert in self.experts], dim=1)
        picked = torch.gather(said, 1, chosen.unsqueeze(-1).expand(-1, -1, x.shape[1]))
        return (shares.unsqueeze(-1) * picked).sum(1)


def _series(features: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("x", "float32", ("batch", "sequence", features)),)


_IMAGES = (TensorSpec("x", "float32", ("batch", 3, 32, 32)),)

CLASSIC_MODELS: tuple[ClassicModel, ...] = (
    ClassicModel("linear", Linear, (TensorSpec("x", "float32", ("batch", 1)),)),
    ClassicModel("lstm_classifier", LstmClassifier, _series(10)),
    ClassicModel("rnn_batch_first", RnnBatchFirst, _series(3)),
    ClassicModel(
        "gru_sequence_first",
        GruSequenceFirst,
        (TensorSpec("x", "float32", ("sequence", "batch", 3)),),
    ),
    ClassicModel(
        "gru_with_state",
        GruWithState,
        (*_series(3), TensorSpec("h0", "float32", (2, "batch", 5))),
    ),
    ClassicModel("lstm_both_ways", LstmBothWays, _series(3)),
    ClassicModel("residual", Residual, _IMAGES),
    ClassicModel("inception", Inception, _IMAGES),
    ClassicModel("moe", MixtureOfExperts, (TensorSpec("x", "float32", ("batch", 10)),)),
)
