"""A converter graph of toy formats, for tests of the planner and the pipeline.

A toy model is a text file: its format's name, then a number; it multiplies its input by the number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from convkit import samples
from convkit.artifact import Artifact, Description, Opening, Precision, TensorSpec
from convkit.graph import ConverterGraph
from convkit.step import (
    Converter,
    Feeds,
    Format,
    Outputs,
    Package,
    Pass,
    Runner,
    Work,
    ladder,
    precision_pass,
    rung,
)

ABSENT = Package("no_such_module_anywhere", "absent")
INPUT = TensorSpec("x", "float32", ("batch", 4))


class ToyRunner(Runner):
    """Multiplies `x` by the number in the file; inputs as the file declares them."""

    def __init__(self, factor: float, inputs: tuple[TensorSpec, ...] = (INPUT,)) -> None:
        self.factor = factor
        self.inputs = inputs
        self.outputs = ()

    def __call__(self, feeds: Feeds) -> Outputs:
        return {"y": np.float32(self.factor) * feeds["x"]}

    def example(self, sizes: Any, seed: int) -> Feeds:
        return samples.draw(self.inputs, sizes, seed)


def toy_format(name: str) -> Format:
    """A format whose files begin with its name."""

    def matches(path: Path, opening: Opening) -> bool:
        return path.is_file() and path.read_text(errors="replace").startswith(f"{name} ")

    def describe(path: Path, opening: Opening) -> Description:
        precision = Precision(path.read_text().split()[1])
        return Description(precision, (INPUT,), parameter_count=1)

    def opened(artifact: Artifact) -> Runner:
        words = artifact.path.read_text().split()
        fixed = (TensorSpec("x", "float32", (3, 4)),) if "fixed" in words else (INPUT,)
        return ToyRunner(float(words[2]), fixed)

    return Format(name, (f".{name}",), (), matches, describe, opened)


def write(path: Path, name: str, precision: str = "fp32", factor: float = 2.0) -> Path:
    """A toy model on disk."""
    path.write_text(f"{name} {precision} {factor}")
    return path


def copying(
    name: str, target: str, factor: float = 1.0, suffix: str = ""
) -> Callable[[Artifact, Path, Work], None]:
    """A rung's function that writes the target format, its number times `factor`."""

    def run(source: Artifact, out: Path, work: Work, *, bias: float = 0.0) -> None:
        """Copies."""
        _, precision, number = source.path.read_text().split()[:3]
        out.write_text(f"{target} {precision} {float(number) * factor + bias} {suffix}")

    run.__name__ = name
    return run


def edge(
    source: str,
    target: str,
    *,
    carries: tuple[str, ...] = ("fp32", "fp16", "int8"),
    needs: tuple[Package, ...] = (),
    cost: float = 1.0,
) -> Converter:
    """A converter of one rung that copies."""
    only = rung("copy", needs=needs)(copying("copy", target))
    return ladder(source, target, only, carries=carries, loses="nothing", cost=cost)


def lowering(format: str, precision: str, accepts: tuple[str, ...] = ("fp32",)) -> Pass:
    """A pass that keeps the number."""

    @precision_pass(format, precision, accepts=accepts, loses="digits")
    def run(source: Artifact, out: Path, work: Work, *, keep_io: bool = True) -> None:
        """Lowers."""
        words = source.path.read_text().split()
        out.write_text(f"{words[0]} {precision} {words[2]}")

    return run


def graph(*steps: Converter | Pass, formats: str = "abc") -> ConverterGraph:
    """A graph of toy formats with these steps."""
    return ConverterGraph({n: toy_format(n) for n in formats}, {s.name: s for s in steps}, {})
