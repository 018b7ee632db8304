"""What a benchmark found, as objects and JSON; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convkit.artifact import Artifact

if TYPE_CHECKING:
    from convkit.explaining import Explanation

Interval = tuple[float, float]


@dataclass(frozen=True)
class Latency:
    """How long calls of a model took.

    Attributes:
        run_count, round_count: timed calls, and rounds in which all models took turns.
        launch_count: starts of the process.
        p50_ms, p95_ms, p99_ms: percentiles; None where too few calls lie beyond them.
        p50_ci_ms: the 95 % interval of the median; None with too few rounds.
        mean_ms: of all calls.
        spread: width of the middle half of the calls as a share of the median.
        drift: how much slower the last third was than the first; None with too few rounds.
        waited: share of the time in which no processor was free for the model's threads.
    """

    run_count: int
    round_count: int
    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    p50_ci_ms: Interval | None
    launch_count: int
    mean_ms: float
    spread: float
    drift: float | None
    waited: float


@dataclass(frozen=True)
class Measurement:
    """One model at one batch.

    Attributes:
        artifact: the model.
        label: a short name that no other model of the report has.
        batch: rows of each call; 0 where the inputs have none.
        size_bytes: of its files.
        latency: None where it could not be run at this batch; `error` says why.
        speedup: how many times as fast as the first model by the median; None without a first one.
        speedup_ci: its 95 % interval.
        verdict: `faster`, `slower`, or `same` where the interval holds 1; "" for the first model.
        peak_rss_mib: peak memory of its process, at opening or at this batch.
        import_ms, load_ms, first_run_ms: a cold start: loading the packages, opening the model, the
            first call.
        is_warm: whether its speed had settled before it was timed.
    """

    artifact: Artifact
    label: str
    batch: int
    size_bytes: int
    latency: Latency | None = None
    speedup: float | None = None
    speedup_ci: Interval | None = None
    verdict: str = ""
    peak_rss_mib: float = 0.0
    import_ms: float = 0.0
    load_ms: float = 0.0
    first_run_ms: float | None = None
    is_warm: bool = True
    error: str = ""

    @property
    def throughput_per_s(self) -> float | None:
        """Rows a second."""
        if self.latency is None:
            return None
        return max(1, self.batch) * 1e3 / self.latency.mean_ms

    def to_json(self) -> dict[str, Any]:
        """One entry of `results` of `convkit bench --json`."""
        latency = self.latency
        document: dict[str, Any] = {
            "path": str(self.artifact.path),
            "label": self.label,
            "format": self.artifact.format,
            "precision": str(self.artifact.precision),
            "batch": self.batch,
            "p50_ms": latency and _rounded(latency.p50_ms),
            "p95_ms": latency and _rounded(latency.p95_ms),
            "p99_ms": latency and _rounded(latency.p99_ms),
            "p50_ci_ms": latency and _pair(latency.p50_ci_ms),
            "throughput_per_s": _rounded(self.throughput_per_s),
            "peak_rss_mib": _rounded(self.peak_rss_mib),
            "size_bytes": self.size_bytes,
            "speedup": _rounded(self.speedup),
            "speedup_ci": _pair(self.speedup_ci),
            "verdict": self.verdict,
            "import_ms": _rounded(self.import_ms),
            "load_ms": _rounded(self.load_ms),
            "first_run_ms": _rounded(self.first_run_ms),
            "is_warm": self.is_warm,
            "error": self.error or None,
        }
        if latency is not None:
            document |= {
                "runs": latency.run_count,
                "rounds": latency.round_count,
                "launches": latency.launch_count,
                "mean_ms": _rounded(latency.mean_ms),
                "spread": _rounded(latency.spread),
                "drift": _rounded(latency.drift),
                "waited": _rounded(latency.waited),
            }
        return document


@dataclass(frozen=True)
class BenchReport:
    """Models side by side.

    Attributes:
        machine: what they ran on: processor, memory, versions, threads.
        inputs: what each call was given, by batch: `x: float32[1, 3, 224, 224]`.
        results: every model at every batch; the first model first.
        notes: what makes the numbers doubtful.
        explanations: where the time goes, per ONNX model, where it was asked for.
    """

    machine: Mapping[str, Any]
    inputs: Mapping[int, str]
    results: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    explanations: tuple[Explanation, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON of `convkit bench`."""
        document: dict[str, Any] = {
            "machine": dict(self.machine),
            "inputs": {str(batch): words for batch, words in self.inputs.items()},
            "results": [result.to_json() for result in self.results],
            "notes": list(self.notes),
        }
        if self.explanations:
            document["explain"] = [each.to_json() for each in self.explanations]
        return document


def labels(paths: Sequence[Path]) -> list[str]:
    """Short names that tell files apart: as many of the last folders as it takes, else numbers."""
    named: list[str] = []
    for path in paths:
        others = {other for other in paths if other != path}
        parts = range(1, len(path.parts) + 1)
        short = (str(Path(*path.parts[-count:])) for count in parts)
        rivals = ({str(Path(*other.parts[-count:])) for other in others} for count in parts)
        name = next((one for one, taken in zip(short, rivals, strict=True) if one not in taken), "")
        name = name or str(path)
        same = sum(each == name or each.startswith(f"{name} (") for each in named)
        named.append(f"{name} ({same + 1})" if same else name)
    return named


def _rounded(value: float | None) -> float | None:
    """Six significant digits: none of the clock's noise."""
    return None if value is None else float(f"{value:.6g}")


def _pair(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [_rounded(end) for end in interval]
