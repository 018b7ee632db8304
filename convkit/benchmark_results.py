"""What the turns of several models come to: latencies, ratios to the first model, doubts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from convkit import benchmark_statistics as statistics
from convkit.artifact import Artifact
from convkit.benchmark_report import Latency, Measurement
from convkit.benchmark_subject import Block, Opened, Warmth
from convkit.errors import ConvkitError

_NOISY_SPREAD = 0.2
CROWDED = 0.05
"""Share of the time that threads wait for a processor, from which on it is told."""


@dataclass
class Series:
    """What one model gave at one batch.

    Attributes:
        label: a short name that no other model has.
        run_count, lead_count: calls of a turn, timed and not.
        warmths: how it came to its speed, each time.
        launches: its turns, for each start of its process.
        error: why it could not be run.
    """

    artifact: Artifact
    label: str
    opened: Opened
    error: ConvkitError | None = None
    warmths: list[Warmth] = field(default_factory=list)
    launches: list[list[Block]] = field(default_factory=list)
    run_count: int = 1
    lead_count: int = 0
    peak_rss_mib: float = 0.0

    @property
    def warmth(self) -> Warmth | None:
        """How it came to its speed the last time."""
        return self.warmths[-1] if self.warmths else None

    @property
    def blocks(self) -> list[Block]:
        """All turns."""
        return [block for launch in self.launches for block in launch]

    @property
    def launch_medians_ms(self) -> list[float]:
        """The median of each start."""
        return [
            statistics.median(statistics.joined([block.runs_ms for block in launch]))
            for launch in self.launches
        ]

    @property
    def is_running(self) -> bool:
        """Whether it did not fail so far."""
        return self.error is None


def results(batch: int, several: Sequence[Series]) -> list[Measurement]:
    """What the series of one batch say, beside the first one's."""
    running = [series for series in several if series.is_running]
    rounds = [[block.runs_ms for block in series.blocks] for series in running]
    drawn: dict[int, statistics.Array] = {}
    if rounds and len(rounds[0]) >= statistics.LEAST_ROUNDS:
        drawn = dict(zip(map(id, running), statistics.medians(rounds), strict=True))
    first = several[0]
    base = latency_of(first) if first.is_running else None
    found = []
    for series in several:
        own = drawn.get(id(series))
        latency = speedup = interval = None
        if series.is_running:
            medians = series.launch_medians_ms
            within = None if own is None else statistics.interval(own)
            latency = latency_of(series)
            latency = replace(
                latency, p50_ci_ms=statistics.widened(within, latency.p50_ms, medians)
            )
        if latency is not None and base is not None:
            speedup = base.p50_ms / latency.p50_ms
            if series is first:
                interval = (1.0, 1.0)
            elif own is not None:
                pairs = zip(first.launch_medians_ms, series.launch_medians_ms, strict=True)
                ratios = [before / now for before, now in pairs]
                within = statistics.interval(drawn[id(first)] / own)
                interval = statistics.widened(within, speedup, ratios)
        verdict = "" if series is first else statistics.verdict(interval)
        found.append(_measurement(batch, series, latency, speedup, interval, verdict))
    return found


def _measurement(
    batch: int,
    series: Series,
    latency: Latency | None,
    speedup: float | None,
    interval: statistics.Interval | None,
    verdict: str,
) -> Measurement:
    warmths, error = series.warmths, series.error
    return Measurement(
        artifact=series.artifact,
        label=series.label,
        batch=batch,
        size_bytes=series.artifact.size_bytes(),
        latency=latency,
        speedup=speedup,
        speedup_ci=interval,
        verdict=verdict,
        peak_rss_mib=series.peak_rss_mib,
        import_ms=series.opened.import_ms,
        load_ms=series.opened.load_ms,
        first_run_ms=warmths[0].first_run_ms if warmths else None,
        is_warm=all(warmth.is_steady for warmth in warmths[1:]),
        error="" if error is None else " ".join([error.what, *error.why]),
    )


def latency_of(series: Series) -> Latency:
    """How long the calls of a series took, without an interval."""
    rounds = [block.runs_ms for block in series.blocks]
    runs = statistics.joined(rounds)
    seconds = sum(block.seconds for block in series.blocks)
    return Latency(
        run_count=len(runs),
        round_count=len(rounds),
        p50_ms=statistics.median(runs),
        p95_ms=statistics.percentile(runs, 95),
        p99_ms=statistics.percentile(runs, 99),
        p50_ci_ms=None,
        launch_count=len(series.launches),
        mean_ms=float(runs.mean()),
        spread=statistics.spread(runs),
        drift=statistics.drift(rounds),
        waited=sum(block.waited_s for block in series.blocks) / seconds,
    )


def doubts(batch: int, several: Sequence[Series]) -> Iterator[str]:
    """What makes the numbers of one batch doubtful, a sentence each."""
    crowded = [0.0]
    for series in several:
        if series.is_running:
            latency = latency_of(series)
            crowded.append(latency.waited)
            is_cold = not all(warmth.is_steady for warmth in series.warmths[1:])
            for what in _doubts(latency, is_cold):
                yield f"{series.label} at batch {batch} {what}"
    if max(crowded) > CROWDED:
        yield (
            f"At batch {batch} threads waited for a processor up to {max(crowded):.0%} of the "
            "time: other programs run here, and all models are slower for it"
        )


def _doubts(latency: Latency, is_cold: bool) -> Iterator[str]:
    if is_cold:
        yield "had not settled when the warm-up was over"
    if latency.round_count < statistics.LEAST_ROUNDS:
        yield (
            f"was run in {latency.round_count} rounds only, too few for an interval; "
            "give it more --time"
        )
    if latency.drift is not None and abs(latency.drift) > statistics.DRIFT:
        change = "slower" if latency.drift > 0 else "faster"
        yield (
            f"was {abs(latency.drift):.0%} {change} in the last third than in the first: "
            "load, heat or clock changed"
        )
    if latency.spread > _NOISY_SPREAD:
        yield f"is noisy: the middle half of its runs spreads by {latency.spread:.0%}"
