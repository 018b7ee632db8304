"""How things look on a terminal: progress, tables, errors; all but results go to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from convkit.artifact import Artifact, Description
    from convkit.bisect import Divergence
    from convkit.demo import TourStop
    from convkit.doctor import Finding
    from convkit.errors import ConvkitError
    from convkit.graph import ConverterGraph
    from convkit.pipeline import Plan
    from convkit.report import Report
    from convkit.verification import Check

_WIDTH = 100
_GROUPED_FROM = 10_000
"""Numbers this large are written in groups of three digits; years and identifiers are smaller."""
_MIB = 1 << 20


def stdout() -> Console:
    """Where results go: at most 100 columns, and just that where there is no terminal."""
    console = Console(highlight=False)
    width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    return Console(highlight=False, width=width)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, indent=2, default=str, allow_nan=False))


class _Pace(ProgressColumn):
    """Megabytes a second and the time left, where bytes are counted."""

    def render(self, task: Task) -> str:
        if task.fields.get("unit") != "B" or not task.speed:
            return ""
        left = task.time_remaining
        return f"{task.speed / 1e6:.0f} MB/s" + ("" if left is None else f", {left:.0f} s left")


class Progressing:
    """Draws a run's stages and progress bars; a `Listener`."""

    def __init__(self, progress: Progress, *, is_verbose: bool) -> None:
        self._progress = progress
        self._is_verbose = is_verbose
        self._stage = progress.add_task("Starting", total=None)

    def stage(self, what: str) -> None:
        """A new stage has begun."""
        self._progress.reset(self._stage, description=what, total=None, unit="")
        if self._is_verbose:
            self._progress.console.print(escape(what))

    def progress(self, what: str, done: int, total: int | None, unit: str = "") -> None:
        """Work within the stage."""
        self._progress.update(self._stage, description=what, completed=done, total=total, unit=unit)

    def note(self, text: str) -> None:
        """Something the user should know."""
        self._progress.console.print(escape(text))


@contextmanager
def progressing(*, is_quiet: bool, is_verbose: bool) -> Iterator[Progressing]:
    """A listener that draws on standard error, and clears up behind itself.

    Whatever models and frameworks print meanwhile goes to standard error too: standard output is
    for the result alone.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        _Pace(),
    )
    console = Console(stderr=True, highlight=False)
    is_hidden = is_quiet or not console.is_terminal
    progress = Progress(
        *columns, console=console, transient=True, disable=is_hidden, redirect_stdout=False
    )
    with progress, _stdout_on_stderr():
        yield Progressing(progress, is_verbose=is_verbose)


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Sends standard output to standard error, of libraries in C and of child processes as well."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_error(error: ConvkitError) -> None:
    """An error on standard error: what, why, what to do."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]{escape(error.what)}[/]")
    for line in error.why:
        console.print(f"  {escape(line)}")
    for line in error.hint.splitlines():
        console.print(f"  [cyan]{escape(line)}[/]")


def error_json(error: ConvkitError) -> dict[str, Any]:
    """The JSON of an error, as `--json` prints it."""
    return {
        "error": {
            "code": error.exit_code,
            "name": type(error).__name__,
            "message": "\n".join([error.what, *error.why]),
            "hint": error.hint,
            "details": error.details,
        }
    }


def print_report(report: Report) -> None:
    """A conversion's outcome: steps, checks, verdict last."""
    console = stdout()
    steps = Table("step", "rung", _right("seconds"), _right("peak MiB"), title="Steps")
    for step in report.steps:
        steps.add_row(step.name, step.rung, f"{step.seconds:.1f}", f"{step.peak_rss_mib:.0f}")
    console.print(steps)
    for step in report.steps:
        for rung in step.rungs:
            if not rung.served and rung.reason:
                console.print(escape(f"  {step.name}: not by {rung.name}: {rung.reason}"))
        for note in step.notes:
            console.print(escape(f"  {step.name}: {note}"))
    if report.checks:
        print_checks(report.checks, f"Checks at {len(report.samples)} inputs")
        for label in report.samples:
            console.print(f"  compared at {escape(label)}", style="dim")
    for note in report.notes:
        console.print(escape(f"  {note}"))
    print_control(report.control)
    artifact = report.artifact
    verdict = "[green]verified[/]" if report.passed else "[yellow]not verified[/]"
    size = f"{report.size_bytes / _MIB:.1f} MiB"
    if report.source_size_bytes and not report.source.opening.factory:
        size += f" (source {report.source_size_bytes / _MIB:.1f} MiB)"
    console.print(
        f"{verdict}  {escape(str(artifact.path))}  {artifact.format} {artifact.precision}, {size}, "
        f"{report.seconds:.1f} s, peak {report.peak_rss_mib:.0f} MiB",
        soft_wrap=True,
    )


def print_control(control: Mapping[str, Any] | None) -> None:
    """Layers that returned to fp32 to keep accuracy, if any, and what each of them costs."""
    if control is None or not control["layers"]:
        return
    title = f"Layers in fp32: {len(control['layers'])} of {control['layer_count']}"
    table = Table("layer", "", _right("parameters"), _right("KiB"), _right("latency"), title=title)
    for layer in control["layers"]:
        size = layer["bytes"]
        table.add_row(
            escape(layer["name"]),
            layer["op_type"],
            f"{layer['parameter_count']:,}",
            "" if size is None else f"{size / 1024:+.0f}",
            _slowdown(layer),
        )
    size = control["size_bytes"] - control["size_bytes_quantized"]
    table.add_section()
    table.add_row("together", "", "", f"{size / 1024:+.0f}", _slowdown(control))
    stdout().print(table)


def _slowdown(facts: Mapping[str, Any]) -> str:
    """How much longer a run takes, where the measurement shows that it does."""
    if facts["latency_ratio"] is None:
        return ""
    low, high = facts["latency_ratio_ci"]
    return f"{facts['latency_ratio'] - 1:+.1%}" if low > 1 or high < 1 else "none seen"


def print_checks(checks: Sequence[Check], title: str) -> None:
    """A table of checks; contract checks only where they failed."""
    contract = ("shape", "dtype", "name", "output_count", "runs")
    table = Table("output", "metric", _right("value"), _right("limit"), "", title=title)
    for check in checks:
        if check.passed and check.metric in contract:
            continue
        mark = "[green]ok[/]" if check.passed else "[bold red]FAILED[/]"
        where = "" if check.passed else f" {escape(check.sample)}"
        value, limit = f"{check.value:.6g}", f"{check.limit:.4g}"
        table.add_row(escape(check.output), check.metric, value, limit, mark + where)
    stdout().print(table)


def print_plan(
    plan: Plan,
    missing: Sequence[str],
    size_bytes: int | None,
    warnings: Sequence[Mapping[str, str]] = (),
) -> None:
    """What a conversion would do, step by step, what each step loses, and what may disappoint."""
    console = stdout()
    source = plan.source
    console.print(f"{escape(str(source.path))}: {source.format} {source.precision}", soft_wrap=True)
    table = Table("", "step", "gives", "ways, in order", "loses")
    for number, row in enumerate(plan.route.explain(), 1):
        table.add_row(str(number), row["name"], row["to"], ", ".join(row["rungs"]), row["loses"])
    console.print(table)
    console.print(f"Result: {escape(str(plan.destination))}", soft_wrap=True)
    if size_bytes is not None:
        console.print(f"Size:   {size_bytes:,} bytes ({size_bytes / _MIB:.1f} MiB)")
    if missing:
        console.print(f"[yellow]Missing here:[/] {escape(', '.join(dict.fromkeys(missing)))}")
    for each in warnings:
        console.print(f"[yellow]{escape(each['step'])}:[/] {escape(each['warning'])}")


def print_description(artifact: Artifact, described: Description, facts: dict[str, Any]) -> None:
    """What `inspect` found."""
    console = stdout()
    table = Table(show_header=False, title=escape(artifact.path.name))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("format", artifact.format)
    table.add_row("precision", str(artifact.precision))
    table.add_row("size", f"{facts['size_bytes'] / _MIB:.1f} MiB")
    if described.parameter_count is not None:
        table.add_row("parameters", f"{described.parameter_count:,}")
    for title, specs in (("inputs", artifact.inputs), ("outputs", artifact.outputs)):
        table.add_row(title, escape("\n".join(map(str, specs)) or "known only when it runs"))
    if described.operators:
        ranked = sorted(described.operators.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {count}" for name, count in ranked[:16])
        table.add_row("operators", f"{shown}{' ...' if len(ranked) > 16 else ''}")
    for name, value in described.details.items():
        if value not in (None, "", [], {}, ()):
            table.add_row(name.replace("_", " "), escape(_plain(value)))
    for entry in artifact.lineage:
        table.add_row("made by", escape(f"{entry.step}, {entry.finished_at}"))
    console.print(table)


def print_formats(graph: ConverterGraph, rows: Sequence[dict[str, Any]]) -> None:
    """Formats and steps, what works here and the line that enables the rest."""
    console = stdout()
    formats = Table("format", "files", "runs here", title="Formats")
    for found in graph.formats.values():
        missing = [need for need in found.needs if not need.is_available]
        state = "[yellow]" + escape(missing[0].install) + "[/]" if missing else "[green]yes[/]"
        formats.add_row(found.name, " ".join(s or "folder" for s in found.suffixes), state)
    console.print(formats)
    steps = Table("step", "gives", "loses", "here", title="Steps")
    for row in rows:
        state = "[green]yes[/]" if row["available"] else "[yellow]" + escape(row["install"]) + "[/]"
        steps.add_row(row["name"], row["gives"], row["loses"], state)
    console.print(steps)


def print_findings(findings: Sequence[Finding]) -> None:
    """What `doctor` found; remedies last, ready to paste."""
    console = stdout()
    colours = {"ok": "green", "missing": "yellow", "wrong": "bold red"}
    table = Table("area", "name", "state", "what")
    for finding in findings:
        state = f"[{colours.get(finding.state, 'white')}]{finding.state}[/]"
        table.add_row(finding.area, finding.name, state, escape(finding.what))
    console.print(table)
    for finding in findings:
        if finding.remedy and finding.state == "wrong":
            console.print(
                f"Repair {finding.name}:  [cyan]{escape(finding.remedy)}[/]", soft_wrap=True
            )
    missing = [f for f in findings if f.remedy and f.state == "missing"]
    for remedy in dict.fromkeys(finding.remedy for finding in missing):
        console.print(f"To enable more:  [cyan]{escape(remedy)}[/]", soft_wrap=True)


def print_tour(stops: Sequence[TourStop]) -> None:
    """The demo's results side by side, and where to go on."""
    console = stdout()
    table = Table("result", "precision", _right("KiB"), _right("accuracy"), _right("SQNR dB"), "")
    for stop in stops:
        report = stop.report
        ratios = [check.value for check in report.checks if check.metric == "sqnr_db"]
        table.add_row(
            escape(report.artifact.path.name),
            str(report.artifact.precision),
            f"{report.size_bytes / 1024:.0f}",
            f"{stop.accuracy:.1%}",
            f"{min(ratios):.0f}" if ratios else "",
            "[green]verified[/]" if report.passed else "[red]not verified[/]",
        )
    console.print(table)
    console.print(
        "A network was trained on 1,300 handwritten digits, converted, and each result compared\n"
        "with the original; accuracy is on 497 digits it never saw.\n"
        f"The results lie in {escape(str(stops[0].report.artifact.path.parent))}. Try your own:\n"
        "  [cyan]convkit convert MODEL --to onnx --fp16[/]",
        soft_wrap=True,
    )


def print_divergence(found: Divergence | None) -> None:
    """Where two models part, or that they do not."""
    text = "No tensor that both models have diverges." if found is None else str(found)
    stdout().print(escape(text), soft_wrap=True)


def _right(title: str) -> Any:
    from rich.table import Column

    return Column(title, justify="right")


def _plain(value: Any) -> str:
    """A detail as people read it: a line for each where it is a table, sizes in MiB."""
    if isinstance(value, dict):
        is_table = all(isinstance(inner, dict) for inner in value.values())
        entries = (_entry(key, inner) for key, inner in value.items())
        return ("\n" if is_table else ", ").join(entries)
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:,}" if type(value) is int and value >= _GROUPED_FROM else str(value)


def _entry(key: str, value: Any) -> str:
    if key == "bytes":
        return f"{value / _MIB:.1f} MiB"
    return f"{key}{':' if isinstance(value, dict) else ''} {_plain(value)}"


def is_json_wanted() -> bool:
    """Whether the command line asks for JSON; needed where parsing it has failed."""
    return "--json" in sys.argv
