"""A benchmark as tables for a terminal of 100 columns, the best marked, the verdict last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Column, Table

from convkit.benchmark_results import CROWDED

if TYPE_CHECKING:
    from convkit.benchmark_report import BenchReport, Measurement
    from convkit.explaining import Explanation

_MIB = 1 << 20
_ROWS = 12
_VERDICTS = {"faster": "[green]faster[/]", "slower": "[red]slower[/]", "same": "no difference"}


def tables(report: BenchReport) -> Iterator[Any]:
    """What to print, in order."""
    machine = report.machine
    yield (
        f"{escape(machine['processor'])}, {machine['threads']} of {machine['cores']} cores, "
        f"{machine['memory_mib'] / 1024:.0f} GiB; runs on the CPU"
    )
    for batch, words in report.inputs.items():
        results = [result for result in report.results if result.batch == batch]
        yield _latencies(results, f"Batch {batch}   {words}")
        yield from _errors(results)
    yield _costs(report)
    for explanation in report.explanations:
        yield from explanation_tables(explanation)
    for note in report.notes:
        yield f"  [yellow]{escape(note)}[/]"
    yield from _summary(report.results)


def _latencies(results: Sequence[Measurement], title: str) -> Table:
    columns = ["p50 ms", "95 % of p50", "p95", "p99", "rows/s"]
    compared = ["speed", "95 % of speed"] if len(results) > 1 else []
    table = Table(_name_column(), *map(_right, columns + compared), title=escape(title))
    if compared:
        table.add_column("")
    best = min((r.latency.p50_ms for r in results if r.latency), default=0.0)
    for result in results:
        cells = _cells(result, is_best=result.latency is not None and result.latency.p50_ms == best)
        table.add_row(escape(result.label), *cells[: len(table.columns) - 1])
    return table


def _cells(result: Measurement, *, is_best: bool) -> list[str]:
    latency = result.latency
    if latency is None:
        return ["[red]failed[/]"]
    p50 = number(latency.p50_ms)
    return [
        f"[bold]{p50}[/]" if is_best else p50,
        _interval(latency.p50_ci_ms),
        number(latency.p95_ms),
        number(latency.p99_ms),
        number(result.throughput_per_s),
        "" if result.speedup is None else f"{result.speedup:.3g}x",
        _interval(result.speedup_ci) if result.verdict else "",
        _VERDICTS.get(result.verdict, ""),
    ]


def _errors(results: Sequence[Measurement]) -> Iterator[str]:
    for result in results:
        if result.error:
            yield f"  [red]{escape(result.label)}: {escape(result.error)}[/]"


def _costs(report: BenchReport) -> Table:
    """What a model takes beside time, once for each model."""
    table = Table(
        _name_column(), "format", "precision", _right("size MiB"), _right("peak MiB"),
        _right("import ms"), _right("load ms"), _right("first call ms"),
        title="Size, memory and cold start",
    )  # fmt: skip
    peaks: dict[int, float] = {}
    for result in report.results:
        key = id(result.artifact)
        peaks[key] = max(peaks.get(key, 0.0), result.peak_rss_mib)
    for result in report.results:
        peak = peaks.pop(id(result.artifact), None)
        if peak is None:
            continue  # it was there at another batch
        table.add_row(
            escape(result.label),
            result.artifact.format,
            str(result.artifact.precision),
            number(result.size_bytes / _MIB),
            f"{peak:.0f}" if peak else "",
            f"{result.import_ms:.0f}",
            number(result.load_ms),
            number(result.first_run_ms),
        )
    return table


def _summary(results: Sequence[Measurement]) -> Iterator[str]:
    """A sentence for each model that is compared with the first."""
    for result in results:
        if not result.verdict or result.speedup is None or result.speedup_ci is None:
            continue
        name, low, high = escape(result.label), *result.speedup_ci
        base = escape(results[0].label)
        at = f"at batch {result.batch}"
        if result.verdict == "same":
            yield (
                f"{name} is neither faster nor slower than {base} {at}: "
                f"{low:.3f} to {high:.3f} times as fast, 95 %"
            )
        else:
            yield (
                f"{name} is {_VERDICTS[result.verdict]} than {base} {at}: "
                f"{result.speedup:.2f} times as fast, {low:.2f} to {high:.2f}, 95 %"
            )


def number(value: float | None) -> str:
    """Three or four digits, whatever the size; empty without a value."""
    if value is None:
        return ""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{number(ends[0])}-{number(ends[1])}"


def _name_column() -> Column:
    """Long names are broken, not cut."""
    return Column("model", overflow="fold", min_width=12)


def _right(title: str) -> Column:
    return Column(title, justify="right")


def explanation_tables(explanation: Explanation) -> Iterator[Any]:
    """Where the time of one model goes, what would save some, and which layers changed."""
    total = explanation.total_ms
    name = escape(explanation.path.name)
    table = Table(
        "operator", _right("nodes"), _right("ms"), _right("share"), "on",
        title=f"{name}: {number(total)} ms in its nodes",
    )  # fmt: skip
    for row in explanation.operators[:_ROWS]:
        provider = row.provider.removesuffix("ExecutionProvider")
        cells = (str(row.node_count), number(row.ms), f"{row.ms / total:.1%}", provider)
        table.add_row(escape(row.op_type), *cells)
    yield table
    if explanation.waited > CROWDED:
        yield (
            f"  [yellow]{name}: threads waited for a processor in {explanation.waited:.0%} of the "
            "time: other programs run here, and what is predicted is the less certain[/]"
        )
    if explanation.findings:
        yield _findings(explanation, name)
    else:
        yield f"  {name}: nothing found that would save a hundredth of its time"
    if explanation.layers and explanation.reference is not None:
        yield _layers(explanation, name)


def _findings(explanation: Explanation, name: str) -> Table:
    total = explanation.total_ms
    table = Table(
        Column("why", overflow="fold"), _right("ms"), _right("share"), _right("would save"),
        Column("what to do", overflow="fold"),
        title=f"{name}: why it is not faster",
    )  # fmt: skip
    for finding in explanation.findings:
        gain = "" if finding.gain_ms is None else f"{number(finding.gain_ms)} ms, "
        gain += "" if finding.gain_ms is None else f"{finding.gain_ms / total:.0%}"
        table.add_row(
            escape(finding.what),
            number(finding.ms),
            f"{finding.share:.1%}",
            gain,
            escape(finding.remedy),
        )
    return table


def _layers(explanation: Explanation, name: str) -> Table:
    reference = escape(explanation.reference.name if explanation.reference else "")
    table = Table(
        "layer", "runs as", _right("ms"), _right("before"), _right("speed"),
        title=f"{name} beside {reference}: what changed most",
    )  # fmt: skip
    *layers, rest = explanation.layers
    for layer in [*layers[:_ROWS], rest]:
        ratio = layer.reference_ms / layer.ms if layer.ms else 0.0
        colour = "green" if ratio > 1 else "red"
        speed = f"[{colour}]{ratio:.2f}x[/]" if ratio else ""
        cells = (layer.operator, number(layer.ms), number(layer.reference_ms), speed)
        table.add_row(escape(layer.name), *cells)
    return table
