"""The command `convkit bench`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from convkit.cli_options import common, model_options

_UNITS_S = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}


def _seconds(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """`20`, `20s`, `2m` in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in _UNITS_S:
        raise click.BadParameter(f"'{text}' is no time; write 20s or 2m")
    return float(found[1]) * _UNITS_S[found[2]]


def _batches(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, ...]:
    """Whole numbers between commas."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise click.BadParameter(f"'{text}' names no batches; write 1,32")
    return tuple(map(int, parts))


def _bench_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is measured, and for how long."""
    for option in (
        click.option("--explain", is_flag=True,
                     help="Say where the time of ONNX models goes, and what would save some."),
        click.option("--threads", type=int, metavar="N",
                     help="Threads to compute with; else as many as there are processors."),
        click.option("--batch", "batches", callback=_batches, metavar="1,32",
                     help="Rows of a call; else 1, or what the models fix."),
        click.option("--time", "time_s", default="20s", show_default=True, callback=_seconds,
                     metavar="TIME", help="Measuring time, shared by all models and batches."),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@_bench_options
@model_options
@common
def bench(
    models: tuple[str, ...], as_json: bool, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Measure MODELs of any formats side by side: latency, throughput, memory, size.

    The first one is what the others are compared with. A difference is called one only where its
    95 % interval excludes that there is none.

    \b
    convkit bench model.onnx model.int8.onnx
    convkit bench model/ model.onnx --batch 1,32 --time 60s
    convkit bench model.int8.onnx model.onnx --explain
    """
    from convkit import benchmark, benchmark_tables, console

    with console.progressing(is_quiet=quiet or as_json, is_verbose=verbose) as listener:
        report = benchmark.bench(models, listener=listener, **options)
    if as_json:
        console.print_json(report.to_json())
    elif quiet:
        for result in report.results:
            latency = "failed" if result.latency is None else f"{result.latency.p50_ms:.6g}"
            click.echo(f"{result.artifact.path}\t{result.batch}\t{latency}")
    else:
        terminal = console.stdout()
        for part in benchmark_tables.tables(report):
            terminal.print(part, soft_wrap=isinstance(part, str))
