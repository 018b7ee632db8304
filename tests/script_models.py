"""Eleven networks as TorchScript: traced, scripted, scripted and frozen; 33 files in all.

Seven are tiny models; four have what only TorchScript's own language has: loops whose length the
shape or the data decide, a branch on the data, a mixed bag of results.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convkit import samples
from convkit.artifact import Artifact, Opening, TensorSpec
from convkit.errors import RungSkipped, UnsupportedError
from convkit.formats.torchscript import torchscript
from convkit.step import Converter, Format, Work
from tests import tiny_models


class LoopOverBatch(nn.Module):
    """Adds up its rows one by one, in a loop as long as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        total = torch.zeros(5)
        for row in range(x.size(0)):
            total = torch.tanh(total + self.head(x[row]))
        return total.unsqueeze(0) + self.head(x)


class WhileLarge(nn.Module):
    """Halves its input until it is small, as often as the data ask."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        y = self.head(x) * 20.0
        while bool(y.abs().max() > 1.0):
            y = y * 0.5
        return y


class DataBranch(nn.Module):
    """One of two layers, by the sign of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.warm = nn.Linear(6, 4)
        self.cold = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        if bool(x.sum() > 0):  # noqa: SIM108 - one branch each
            y = torch.relu(self.warm(x))
        else:
            y = torch.tanh(self.cold(x))
        return y + 1.0


class MultiOutput(nn.Module):
    """A tensor, its row-wise winner and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the network."""
        y = self.head(x)
        return y, y.argmax(dim=1), y.mean(dim=1, keepdim=True)


class RunningMean(nn.Module):
    """Keeps a running sum and a count between calls: the state convkit resets."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.total = torch.zeros(4)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network."""
        if x.size(1) != 6:
            raise ValueError("six features are expected")
        self.calls += 1
        self.seen.add_(1.0)
        if self.calls > 1:
            self.total = self.total * 0.5
        for row in range(x.size(0)):
            self.total = self.total + self.head(x[row])
        return self.head(x) + self.total / self.calls + self.seen


class NamedResults(nn.Module):
    """Results in a dictionary, as Hugging Face models give them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Runs the network."""
        logits = self.head(x) * mask
        return {"logits": logits, "hidden": torch.tanh(x)}


class ScaledBy(nn.Module):
    """Takes a number beside its tensor, and branches on it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor, mode: int) -> Tensor:
        """Runs the network."""
        if mode == 7:
            return self.head(x)
        if mode == 9:
            return torch.relu(self.head(x))
        raise ValueError("mode is 7 or 9")


# A result near zero carries the rounding of what cancelled in it: a few units of 1.0 in float32.
_NOISE = 1e-6

_ROWS = (TensorSpec("x", "float32", ("batch", 6)),)
_OWN = (LoopOverBatch, WhileLarge, DataBranch, MultiOutput)
_TINY = ("conv_bn_relu", "lstm", "gru", "self_attention", "encoder", "upsample", "embedding_mean")
WAYS = ("trace", "script", "freeze")

SCRIPT_MODELS: dict[str, tiny_models.TinyModel] = {
    model.name: model for model in tiny_models.TINY_MODELS if model.name in _TINY
} | {kind.__name__: tiny_models.TinyModel(kind.__name__, kind, _ROWS) for kind in _OWN}


@dataclass(frozen=True)
class Case:
    """One of the 33 files."""

    model: tiny_models.TinyModel
    way: str

    @property
    def id(self) -> str:
        """Test id."""
        return f"{self.model.name}-{self.way}"

    def artifact(self, folder: Path) -> Artifact:
        """Saves it and describes it as convkit sees it."""
        network = self.model.factory()
        feeds = samples.draw(self.model.inputs, {"batch": 3}, 1)
        example = tuple(torch.from_numpy(array) for array in feeds.values())
        return save(compile_network(network, self.way, example), folder, self.model.inputs)


def cases() -> Iterator[Case]:
    """All 33."""
    for model in SCRIPT_MODELS.values():
        for way in WAYS:
            yield Case(model, way)


def compile_network(network: nn.Module, way: str, example: tuple[Any, ...] = ()) -> Any:
    """A ScriptModule, gone through bytes once."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if way == "trace":
            module = torch.jit.trace(network.eval(), example, strict=False)
        else:
            module = torch.jit.script(network.eval())
        if way == "freeze":
            module = torch.jit.freeze(module)
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
        buffer.seek(0)
        return torch.jit.load(buffer)


def save(module: Any, folder: Path, inputs: tuple[TensorSpec, ...] = ()) -> Artifact:
    """Writes a ScriptModule and gives its artifact."""
    path = folder / "model.torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(module, str(path))
    opening = Opening(inputs=inputs)
    found = torchscript.describe(path, opening)
    return Artifact(path, "torchscript", found.precision, inputs, (), (), opening)


@dataclass(frozen=True)
class Recorded:
    """A source's artifact with its specs, its runs, and the Work a converter gets."""

    artifact: Artifact
    runs: list[tuple[Any, Any]]
    work: Work
    notes: list[str]


def record(source: Format, artifact: Artifact, enough: int = 3) -> Recorded:
    """Runs a source at several shapes, as the pipeline does before a conversion."""
    runs: list[tuple[Any, Any]] = []
    with source.open(artifact) as runner:  # type: ignore[misc]
        for seed, sizes in enumerate(samples.shape_sets(runner.inputs)):
            feeds = runner.example(sizes, seed)
            with contextlib.suppress(RuntimeError):  # a traced loop refuses other lengths
                runs.append((feeds, runner(feeds)))
            if len(runs) == enough:
                break
        artifact = replace(artifact, inputs=runner.inputs)
    return recorded_of(source, artifact, runs)


def climb(step: Converter, recorded: Recorded, out: Path, **options: Any) -> str:
    """Takes a step's rungs in order until one writes a result; gives its name."""
    failure: Exception | None = None
    for rung in step.rungs:
        recorded.notes.clear()
        try:
            rung.run(recorded.artifact, out, recorded.work, **options)
        except RungSkipped:
            continue
        except UnsupportedError as error:
            failure = failure or error
            continue
        return rung.name
    assert failure is not None
    raise failure


def onnx_outputs(path: Path, feeds: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What ONNX Runtime computes, by output name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == list(feeds)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_same(expected: Any, got: Any, tolerance: float) -> None:
    """Names, dtypes and shapes equal; values within `tolerance` of the largest magnitude."""
    assert list(got) == list(expected)
    for name, reference in expected.items():
        assert got[name].shape == reference.shape, name
        assert got[name].dtype == reference.dtype, name
        if reference.size:
            scale = max(1e-6, float(np.abs(reference.astype(np.float64)).max()))
            difference = np.abs(reference.astype(np.float64) - got[name].astype(np.float64))
            assert float(difference.max()) <= max(tolerance * scale, _NOISE), name


def recorded_of(source: Format, artifact: Artifact, runs: list[tuple[Any, Any]]) -> Recorded:
    """The same from runs made by hand."""
    outputs = tuple(
        TensorSpec(name, array.dtype.name, array.shape) for name, array in runs[0][1].items()
    )
    notes: list[str] = []
    load = source.load
    assert load is not None
    work = Work([feeds for feeds, _ in runs], load, notes.append, lambda *_: None)
    return Recorded(replace(artifact, outputs=outputs), runs, work, notes)
