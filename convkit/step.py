"""What acts: formats, converters, passes, runners, and the decorators that make their records.

A plugin file is a function and its record; importing it only makes the record. Keyword-only
arguments of the function are its options (`--set onnx-fp16.keep_io=false`), read from the
signature; `**kwargs` is refused, so every option is known by name.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

from convkit.artifact import Artifact, Description, Opening, Precision
from convkit.runner import Feeds as Feeds
from convkit.runner import LanguageRunner as LanguageRunner
from convkit.runner import Outputs as Outputs
from convkit.runner import Runner as Runner
from convkit.runner import Session as Session
from convkit.runner import Sizes as Sizes


@dataclass(frozen=True)
class Package:
    """A Python package that a step needs.

    Attributes:
        module: what is imported.
        extra: the extra of convkit that brings it.
        name: the distribution's name where it is not the module's (`mobius` is `mobius-onnx`).
        instead: modules that serve in its place.
    """

    module: str
    extra: str
    name: str = ""
    instead: tuple[str, ...] = ()

    @property
    def distribution(self) -> str:
        """Its name as pip knows it."""
        return self.name or self.module.replace("_", "-")

    @property
    def is_available(self) -> bool:
        """Whether the module, or one in its place, can be found; it is not imported."""
        return any(map(_is_there, (self.module, *self.instead)))

    @property
    def install(self) -> str:
        """The line that brings it."""
        return f'pip install "convkit-ml[{self.extra}]"'


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@dataclass(frozen=True)
class Format:
    """A file format: recognises its files, describes them from headers, opens them.

    Attributes:
        name: `onnx`, `torch` ...
        suffixes: usual endings; the first is what results get ("" for a folder).
        needs: packages that `open` needs. `matches` and `describe` work without where possible.
        matches: whether the content at a path is of this format; never raises on bad content.
        describe: reads headers only. Raises ModelError, UnsafeError.
        open: a Runner for an artifact of this format, or None where it cannot be run.
        open_exact: a Runner that rounds as real hardware of that precision does, where the usual
            runtime hides it (ONNX Runtime on x86 computes fp16 in fp32). None: `open` is exact.
        load: the framework's own object (an `nn.Module`) for a converter; None where the path
            is enough.
        schemes: names that users of this format know for ways of quantizing -> the precision that
            each belongs to (`q4_k_m`).
        heeds: fields of `Opening` that count here, beside inputs and trust.
    """

    name: str
    suffixes: tuple[str, ...]
    needs: tuple[Package, ...]
    matches: Callable[[Path, Opening], bool]
    describe: Callable[[Path, Opening], Description]
    open: Callable[[Artifact], Runner] | None
    open_exact: Callable[[Artifact], Runner] | None = None
    load: Callable[[Artifact], Any] | None = None
    schemes: Mapping[str, Precision] = field(default_factory=dict)
    heeds: tuple[str, ...] = ()


class Stream(Protocol):
    """A model on its way, tensor by tensor, from where it lies to where it is written."""

    @property
    def byte_count(self) -> int | None:
        """Exact size of what will be written; None where only the work itself would tell."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the report."""


@dataclass(frozen=True)
class Streaming:
    """How a step works tensor by tensor, so that neighbours on a route need one pass over the disk.

    Attributes:
        open: what the step begins with, as a context manager that gives a stream: of a converter
            `(source, work, *, options...)` gives the target's, of a pass `(source, work)` the
            format's own.
        change: of a pass: `(stream, work, *, options...)` gives the changed stream.
        sink: `(stream, out, work)` writes a stream.
    """

    open: Callable[..., AbstractContextManager[Any]]
    sink: Callable[[Any, Path, Work], None]
    change: Callable[..., Any] | None = None


class Progress(Protocol):
    """Hears how far a piece of work is."""

    def __call__(self, what: str, done: int, total: int | None, unit: str = "") -> None:
        """`total` is None where unknown; `unit` is `B` where bytes are counted."""


@dataclass
class Work:
    """What the pipeline hands a step beside its input and output.

    Attributes:
        samples: inputs that the untouched source model was seen to accept; several shapes where
            dimensions are dynamic. The first has batch 1, the second a batch of at least 2. Looking
            at them waits until the source ran.
        load: loads the framework object behind an artifact (see `Format.load`).
        note: takes one sentence for the report ("dynamic dimension 'height' became 224").
        progress: hears how far the work is.
        recorded: the route's source with inputs and outputs as its run showed them; waits for it.
            For eager rungs; others get them with their source.
        calibration: representative data that the user gave for a calibrated pass.
        is_forced: the user insists, where a step would refuse for the result's sake.
        examples: the user's samples as a file, where labels may lie beside the inputs.
        record: keeps JSON values by name for the report, beside its sentences.
    """

    samples: Sequence[Feeds]
    load: Callable[[Artifact], Any]
    note: Callable[[str], None]
    progress: Progress
    recorded: Callable[[], Artifact] | None = None
    calibration: Path | None = None
    is_forced: bool = False
    examples: Path | None = None
    record: Callable[[str, Any], None] = lambda name, values: None


@dataclass(frozen=True)
class Rung:
    """One way to take a step: `run(source, out, work, *, options...)` writes `out`.

    `run` raises `RungSkipped` where it does not apply. It may write further files beside `out`
    whose names begin with `out.name`; the folder is its own.

    An eager rung begins while the source model still runs, for what it can do without knowing the
    inputs; its `source` is as headers describe it, and `work.recorded()` waits for the rest.
    """

    name: str
    needs: tuple[Package, ...]
    run: Callable[..., None]
    is_eager: bool = False

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """Keyword-only parameters of `run`, by name."""
        return options_of(self.run)


@dataclass(frozen=True)
class Converter:
    """Changes the format and keeps the precision. Its rungs are tried in order, each verified.

    Attributes:
        source, target: format names.
        carries: precisions it keeps.
        loses: one sentence a user understands.
        cost: the planner's weight; 1.0 is an ordinary conversion.
        writes_code: whether a result may be Python that this step itself wrote, none of it taken
            from the source, so that the result may be opened to be verified.
        gives: precisions that the target holds otherwise than the source: quantized weights that
            are unpacked to floating point, exactly.
        ending: what the name of a result ends in, for a source; None: as the format's files do.
        makes_folder: whether a result is a folder as users have them, for steps on such.
        of_source: works on a model as users have it, not on what most converters make.
        takes: whether it may be a step on the way of this source to other formats; None: of any.
            Towards its own target it is taken all the same, for it can say best what is wrong.
        streaming: how it works tensor by tensor, if it does.
        label: its name, where it is not that of its formats.
    """

    source: str
    target: str
    carries: tuple[Precision, ...]
    loses: str
    cost: float
    rungs: tuple[Rung, ...]
    doc: str = ""
    writes_code: bool = False
    gives: Mapping[Precision, Precision] = field(default_factory=dict)
    ending: Callable[[Artifact], str | None] | None = None
    makes_folder: bool = False
    of_source: bool = False
    takes: Callable[[Artifact], bool] | None = None
    streaming: Streaming | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """`torch-to-onnx`."""
        return self.label or f"{self.source}-to-{self.target}"

    @property
    def needs(self) -> tuple[Package, ...]:
        """What keeps it from running: the needs of its first rung that lacks least."""
        return min(
            (rung.needs for rung in self.rungs),
            key=lambda needs: sum(not need.is_available for need in needs),
        )

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """Options of all rungs, by name."""
        return {name: p for rung in self.rungs for name, p in rung.options.items()}


Warns = Callable[[Mapping[str, int], Mapping[str, Any]], Sequence[str]]


@dataclass(frozen=True)
class Pass:
    """Changes the precision and keeps the format.

    Attributes:
        format: the format it works on.
        accepts: precisions it starts from.
        precision: what it gives.
        schemes: names for `--scheme`; empty where there is one way only.
        calibrated: needs representative samples.
        loses: one sentence a user understands.
        cost: the planner's weight.
        of_source: works on a model as users have it (a folder with its configuration), not on what
            most converters make.
        streaming: how it works tensor by tensor, if it does.
        recasts: may also be taken where bits do not get fewer: to another floating type.
        warns: sentences on what is known beforehand to disappoint, for the operators of the model
            with their counts (none where it is of another format yet) and the options said, with
            `calibration` among them: the data, or None.
    """

    format: str
    accepts: tuple[Precision, ...]
    precision: Precision
    loses: str
    cost: float
    rungs: tuple[Rung, ...]
    schemes: tuple[str, ...] = ()
    calibrated: bool = False
    doc: str = ""
    of_source: bool = False
    streaming: Streaming | None = None
    recasts: bool = False
    warns: Warns | None = None

    @property
    def name(self) -> str:
        """`onnx-fp16`."""
        return f"{self.format}-{self.precision.value}"

    @property
    def needs(self) -> tuple[Package, ...]:
        """Packages it needs."""
        return self.rungs[0].needs

    @property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """Its options, by name."""
        return self.rungs[0].options


Step = Converter | Pass


def rung(
    name: str, *, needs: Sequence[Package] = (), is_eager: bool = False
) -> Callable[[Callable[..., None]], Rung]:
    """Makes a function `(source, out, work, *, options...)` one rung of a converter's ladder."""

    def record(function: Callable[..., None]) -> Rung:
        options_of(function)
        return Rung(name, tuple(needs), function, is_eager)

    return record


def converter(
    source: str,
    target: str,
    *,
    carries: Sequence[str],
    loses: str,
    needs: Sequence[Package] = (),
    cost: float = 1.0,
    writes_code: bool = False,
) -> Callable[[Callable[..., None]], Converter]:
    """Makes a function `(source, out, work, *, options...)` the converter from source to target."""

    def record(function: Callable[..., None]) -> Converter:
        only = rung(f"{source}-to-{target}", needs=needs)(function)
        made = ladder(source, target, only, carries=carries, loses=loses, cost=cost)
        return replace(made, writes_code=writes_code)

    return record


def ladder(
    source: str,
    target: str,
    *rungs: Rung,
    carries: Sequence[str],
    loses: str,
    cost: float = 1.0,
) -> Converter:
    """The converter that tries `rungs` in order; the first whose result verifies serves."""
    precisions = tuple(Precision(p) for p in carries)
    doc = inspect.getdoc(rungs[0].run) or ""
    return Converter(source, target, precisions, loses, cost, rungs, doc)


def precision_pass(
    format: str,
    precision: str,
    *,
    accepts: Sequence[str],
    loses: str,
    needs: Sequence[Package] = (),
    schemes: Sequence[str] = (),
    calibrated: bool = False,
    cost: float = 1.0,
    of_source: bool = False,
    warns: Warns | None = None,
) -> Callable[[Callable[..., None]], Pass]:
    """Makes a function `(source, out, work, *, options...)` the pass of a format to a precision."""

    def record(function: Callable[..., None]) -> Pass:
        only = rung(f"{format}-{precision}", needs=needs)(function)
        return Pass(
            format,
            tuple(Precision(p) for p in accepts),
            Precision(precision),
            loses,
            cost,
            (only,),
            tuple(schemes),
            calibrated,
            inspect.getdoc(function) or "",
            of_source,
            warns=warns,
        )

    return record


def options_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Keyword-only parameters of a step's function, by name."""
    options = {}
    for name, parameter in inspect.signature(function, eval_str=False).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            _refuse_kwargs(function)
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            options[name] = parameter
    return options


def _refuse_kwargs(function: Callable[..., None]) -> NoReturn:
    raise TypeError(f"{function.__qualname__} takes **kwargs; name its options one by one")
