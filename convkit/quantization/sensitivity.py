"""How sensitive a model is to each of its layers: one at a time is quantized, the rest is float."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from convkit.errors import UnsupportedError
from convkit.quantization.accuracy import sqnr_db
from convkit.quantization.reference import Reference
from convkit.step import Progress

SWEEP_SAMPLES = 32
"""Samples that a sweep runs on: noise of a layer is a mean over all elements of the outputs, and
needs fewer samples than a share of right answers."""

_SWEEP_S = 300.0
"""What a sweep may take; of a larger model neighbouring layers are quantized together."""


class Layer(Protocol):
    """What is known of a layer before it is quantized."""

    @property
    def name(self) -> str:
        """Of its node."""

    @property
    def op_type(self) -> str:
        """Of its node."""

    @property
    def parameter_count(self) -> int:
        """Elements of its weights."""


@dataclass(frozen=True)
class Sensitivity:
    """What a layer, or neighbouring ones together, cost in accuracy.

    Attributes:
        names: of its nodes.
        op_type: of them; `Conv, Gemm` where they differ.
        parameter_count: of all.
        noise_share: noise in the outputs where nothing else is quantized, over their signal.
        time_share: of a run of the float model, that is spent in them.
        size_share: of all parameters of layers.
    """

    names: tuple[str, ...]
    op_type: str
    parameter_count: int
    noise_share: float
    time_share: float
    size_share: float

    @property
    def price(self) -> float:
        """What it costs to have it in float: its shares of size and time, at least a little."""
        return self.size_share + self.time_share + _LEAST_PRICE

    @property
    def worth(self) -> float:
        """Noise that goes for each unit of price."""
        return self.noise_share / self.price

    def to_json(self) -> dict[str, Any]:
        """As JSON values; a layer that makes no noise, or all of it, has no SQNR."""
        decibels = sqnr_db(self.noise_share)
        return {
            "layers": list(self.names),
            "op_type": self.op_type,
            "parameter_count": self.parameter_count,
            "noise_share": self.noise_share if abs(decibels) != float("inf") else None,
            "sqnr_db": round(decibels, 3) if abs(decibels) != float("inf") else None,
            "size_share": round(self.size_share, 6),
            "time_share": round(self.time_share, 6),
        }


_LEAST_PRICE = 0.002
"""A layer that turns float has two conversions around it, however small it is."""


def swept(
    make: Callable[[frozenset[str]], Path],
    layers: Sequence[Layer],
    reference: Reference,
    times: Mapping[str, float],
    *,
    base: Path | None = None,
    progress: Progress,
    most_samples: int = SWEEP_SAMPLES,
    limit_s: float = _SWEEP_S,
) -> list[Sensitivity]:
    """The sensitivity of every layer, most worth giving back first.

    Args:
        make: the model with the layers of these names in float.
        layers: those that can be quantized, in the graph's order.
        reference: the model in float.
        times: share of the run time of layers, by name.
        base: the model in float as it is before layers are quantized, where that is not the
            reference itself; noise counts from there.
        progress: hears how far it is, and how long it will take.
        most_samples: that it runs on.
        limit_s: what it may take; neighbours are joined until it does.

    Raises:
        StepError: a model does not run.
    """
    everything = frozenset(layer.name for layer in layers)
    total = sum(layer.parameter_count for layer in layers) or 1
    right = reference.outputs_of(base, most_samples)
    found: list[Sensitivity] = []
    begin = done = 0
    size, started = 1, time.perf_counter()
    while begin < len(layers):
        group = layers[begin : begin + size]
        names = tuple(layer.name for layer in group)
        try:
            model = make(everything - set(names))
            noise = reference.noise_share(model, most_samples, right)
        except UnsupportedError:
            noise = 0.0  # alone it is not quantized at all
        found.append(
            Sensitivity(
                names,
                ", ".join(dict.fromkeys(layer.op_type for layer in group)),
                sum(layer.parameter_count for layer in group),
                noise,
                sum(times.get(name, 0.0) for name in names),
                sum(layer.parameter_count for layer in group) / total,
            )
        )
        begin += len(group)
        done += 1
        each_s = (time.perf_counter() - started) / done
        left_s = limit_s - (time.perf_counter() - started)
        size = max(1, round((len(layers) - begin) / max(1.0, left_s / each_s)))
        rest_s = each_s * -(-(len(layers) - begin) // size)
        progress(f"layer by layer, {rest_s:.0f} s left", begin, len(layers))
    return sorted(found, key=lambda each: -each.worth)
