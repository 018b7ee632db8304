"""Steps that work tensor by tensor, so that neighbours on a route need one pass over the disk."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from convkit.artifact import Artifact, Precision
from convkit.step import (
    Converter,
    Package,
    Pass,
    Stream,
    Streaming,
    Work,
    ladder,
    options_of,
    precision_pass,
    rung,
)


def streaming_converter(
    source: str,
    target: str,
    *,
    sink: Callable[[Any, Path, Work], None],
    carries: Sequence[str],
    loses: str,
    needs: Sequence[Package] = (),
    gives: Mapping[str, str] = MappingProxyType({}),
    ending: str | None = None,
    makes_folder: bool = False,
    of_source: bool = False,
    takes: Callable[[Artifact], bool] | None = None,
) -> Callable[[Callable[..., AbstractContextManager[Any]]], Converter]:
    """Makes `(source, work, *, options...) -> context manager of a stream` a converter."""

    def record(function: Callable[..., AbstractContextManager[Any]]) -> Converter:
        def run(source: Artifact, out: Path, work: Work, **options: Any) -> None:
            with function(source, work, **options) as stream:
                write(stream, out, work, sink)

        way = rung(f"{source}-to-{target}", needs=needs, is_eager=True)(
            _with_options(function, run)
        )
        made = ladder(source, target, way, carries=carries, loses=loses)
        return replace(
            made,
            gives={Precision(here): Precision(there) for here, there in gives.items()},
            ending=None if ending is None else lambda artifact: ending,
            makes_folder=makes_folder,
            of_source=of_source,
            takes=takes,
            streaming=Streaming(function, sink),
        )

    return record


def streaming_pass(
    format: str,
    precision: str,
    *,
    open: Callable[[Artifact, Work], AbstractContextManager[Any]],
    sink: Callable[[Any, Path, Work], None],
    accepts: Sequence[str],
    loses: str,
    needs: Sequence[Package] = (),
    schemes: Sequence[str] = (),
    calibrated: bool = False,
    recasts: bool = False,
    of_source: bool = False,
) -> Callable[[Callable[..., Any]], Pass]:
    """Makes `(stream, work, *, options...) -> stream` the pass of a format to a precision."""

    def record(function: Callable[..., Any]) -> Pass:
        def run(source: Artifact, out: Path, work: Work, **options: Any) -> None:
            with open(source, work) as stream:
                write(function(stream, work, **options), out, work, sink)

        made = precision_pass(
            format,
            precision,
            accepts=accepts,
            loses=loses,
            needs=needs,
            schemes=schemes,
            calibrated=calibrated,
            of_source=of_source,
        )(_with_options(function, run))
        return replace(
            made,
            rungs=(replace(made.rungs[0], is_eager=True),),
            streaming=Streaming(open, sink, function),
            recasts=recasts,
        )

    return record


def write(stream: Stream, out: Path, work: Work, sink: Callable[[Any, Path, Work], None]) -> None:
    """Writes a stream, and hands on what is to be said of it."""
    for text in stream.notes:
        work.note(text)
    sink(stream, out, work)


def _with_options(function: Callable[..., Any], run: Callable[..., None]) -> Callable[..., None]:
    """`run` under the name and with the options of `function`."""
    plain = inspect.signature(run).parameters
    kept = [p for p in plain.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    run = functools.wraps(function)(run)
    vars(run)["__signature__"] = inspect.Signature([*kept, *options_of(function).values()])
    return run
