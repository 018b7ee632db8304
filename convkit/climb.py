"""Takes one step of a route: its rungs in order, each result opened and verified, one chosen."""

from __future__ import annotations

import functools
import gc
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from convkit import __version__, fusing, graph, judging, resources, verification
from convkit.artifact import Artifact, LineageEntry, Opening, Precision
from convkit.errors import (
    ConvkitError,
    RungSkipped,
    StepError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from convkit.foresight import warnings_of
from convkit.graph import ConverterGraph
from convkit.listener import Listener
from convkit.loading import load_module
from convkit.recording import LazySamples, Recorder
from convkit.report import RungReport, StepReport
from convkit.step import Converter, Package, Rung, Step, Work
from convkit.workspace import Workspace, is_disk_full


@dataclass(frozen=True)
class _Attempt:
    """What one rung made: the result, opened and judged."""

    artifact: Artifact
    comparison: verification.Comparison
    peak_rss_mib: float = 0.0


@dataclass(frozen=True)
class Climb:
    """Takes steps: the rungs of each in order until one gives a verified result.

    Attributes:
        converters: where formats are found.
        place: where results come into being.
        recorder: runs the untouched source.
        options: step name -> its options.
        last: the step whose result gets the destination's name.
        verifies: False where the user wants no comparison.
        trust: passed on to what opens results.
        calibration, examples, is_forced: see `Work`.
        listener: hears how it goes on.
    """

    converters: ConverterGraph
    place: Workspace
    recorder: Recorder
    options: Mapping[str, Mapping[str, Any]]
    last: Step
    verifies: bool
    trust: bool
    calibration: Path | None
    examples: Path | None
    is_forced: bool
    listener: Listener

    def take(self, step: Step, source: Artifact, number: int) -> tuple[Artifact, StepReport]:
        """The step's verified result and how it went.

        Of rungs that verify, the first that keeps every dynamic dimension serves; failing that,
        the one that keeps most.

        Raises:
            ConvkitError: no rung gave a verified result; the first real failure is raised.
        """
        best: tuple[_Attempt, str, tuple[str, ...], dict[str, Any]] | None = None
        reasons: dict[str, str] = {}
        failures: list[ConvkitError] = []
        warned = warnings_of(step, source, self.options, self.calibration, self.converters)
        with resources.measured() as usage:
            for rung in step.rungs:
                notes: list[str] = []
                facts: dict[str, Any] = {}
                try:
                    attempt = self._attempt(step, rung, source, number, notes.append, facts)
                except RungSkipped as skipped:
                    reasons[rung.name] = str(skipped)
                    continue
                except ConvkitError as error:
                    if self.recorder.has_failed or type(error) is UsageError:
                        raise  # a rung that overlooks what the user said is no way round it
                    reasons[rung.name] = _reason(error)
                    failures.append(error)
                    continue
                finally:
                    gc.collect()
                lost = attempt.comparison.lost
                if best is None or len(lost) < len(best[0].comparison.lost):
                    best = (attempt, rung.name, tuple(notes), facts)
                if not lost:
                    break
                reasons[rung.name] = f"loses the dynamic dimensions {', '.join(lost)}"
        if best is None:
            raise self._failure(step, failures, reasons)
        attempt, served, kept_notes, kept_facts = best
        lost = attempt.comparison.lost
        fixed = (f"Dynamic dimensions that became fixed: {', '.join(lost)}",) if lost else ()
        reasons.pop(served, None)
        report = StepReport(
            name=step.name,
            seconds=usage.seconds,
            peak_rss_mib=max(usage.peak_rss_mib, attempt.peak_rss_mib),
            loses=step.loses,
            rungs=(
                *(RungReport(name, False, reason) for name, reason in reasons.items()),
                RungReport(served, True),
            ),
            notes=(*warned, *kept_notes, *fixed),
            checks=attempt.comparison.checks,
            facts=kept_facts,
        )
        return attempt.artifact, report

    def _attempt(
        self,
        step: Step,
        rung: Rung,
        source: Artifact,
        number: int,
        note: Callable[[str], None],
        facts: dict[str, Any],
    ) -> _Attempt:
        """Runs one rung, opens what it made, and judges it."""
        missing = [need for need in rung.needs if not need.is_available]
        if missing:
            raise RungSkipped(f"needs {missing[0].module}: {missing[0].install}")
        target = graph.after(step, (source.format, source.precision))
        out = self.place.room(f"{number}-{rung.name}") / self._result_name(step, source, target)
        if not rung.is_eager:
            _import(rung.needs)  # while the source runs
            source = self._resolved(source)
        self.listener.stage(f"{step.name} ({rung.name})")
        work = Work(
            samples=LazySamples(self.recorder),
            load=self._load,
            note=note,
            progress=functools.partial(self._progress, step),
            recorded=lambda: self._recorded(target[0]),
            calibration=self.calibration,
            is_forced=self.is_forced,
            examples=self.examples,
            record=facts.__setitem__,
        )
        _run_rung(step, rung, source, out, work, self.options.get(step.name, {}))
        digest = source.sha256()  # like what follows, while the source may still run
        if not self.verifies:
            made = self._describe(step, source, out, target[1], digest)
            return _Attempt(made, verification.Comparison(()))
        judging.prepare(self.converters.format(target[0]))
        made = self._describe(step, self._resolved(source), out, target[1], digest)
        self.listener.stage(f"Verifying {step.name} ({rung.name})")
        judgement = judging.judge(
            made, self.recorder.recording(), self.converters.format(made.format)
        )
        for text in (*judgement.notes, *judgement.comparison.notes):
            note(text)
        if not judgement.comparison.passed:
            raise _verification_error(step, judgement.comparison, out)
        return _Attempt(made, judgement.comparison, judgement.peak_rss_mib)

    def _progress(
        self, step: Step, what: str, done: int, total: int | None, unit: str = ""
    ) -> None:
        self.recorder.check()
        self.listener.progress(f"{step.name}: {what}", done, total, unit)

    def _failure(
        self, step: Step, failures: list[ConvkitError], reasons: Mapping[str, str]
    ) -> ConvkitError:
        """The most telling failure of a step, with why its other rungs did not serve.

        A result that was made but differs is more than one that could not be made; it is kept.
        """
        if not failures:
            why = [f"{name}: {reason}" for name, reason in reasons.items()]
            return UnsupportedError(f"{step.name} has no way to convert this model.", why=why)
        chosen = max(failures, key=lambda failure: (failure.exit_code == 7, failure.exit_code != 6))
        others = [f"{name}: {why}" for name, why in reasons.items() if why != _reason(chosen)]
        chosen.why = (*chosen.why, *others)
        result = chosen.details.pop("result", None)
        if result is not None:
            kept = self.place.reject(result)
            chosen.why = (*chosen.why, f"Kept for inspection: {kept}")
            chosen.hint = chosen.hint or (
                f"Look where it begins:  convkit verify {self.recorder.words} "
                f"{shlex.quote(str(kept))} --bisect\n"
                "Or compare on real inputs:  --samples inputs.npz"
            )
        return chosen

    def _recorded(self, target: str) -> Artifact:
        """The source as its run showed it; what opens the result is loaded while it runs."""
        judging.prepare(self.converters.format(target))
        return self.recorder.source()

    def _resolved(self, source: Artifact) -> Artifact:
        """The artifact with inputs and outputs known, which for the source means that it ran."""
        return self.recorder.source() if source.path == self.recorder.path else source

    def _load(self, artifact: Artifact) -> Any:
        load = self.converters.format(artifact.format).load
        if load is None:
            raise StepError(f"{artifact.format} files have no framework object to load.")
        return load(artifact)

    def _result_name(self, step: Step, source: Artifact, target: graph.State) -> str:
        """The destination's name wherever its format arises, so that names written inside fit.

        Other results have it with the ending that their step or format gives.
        """
        name = self.place.destination.name
        final = graph.after(self.last, target)[0]
        if target[0] == final:
            return name
        suffixes = self.converters.format(final).suffixes
        stem = name.removesuffix(next((s for s in suffixes if s and name.endswith(s)), ""))
        own = step.ending if isinstance(step, Converter) else None
        ending = own(source) if own else None
        return stem + (self.converters.format(target[0]).suffixes[0] if ending is None else ending)

    def _describe(
        self, step: Step, source: Artifact, out: Path, precision: Precision, digest: str
    ) -> Artifact:
        """The written file as an artifact; what its headers do not tell follows from the source.

        The source's `digest` goes into the lineage.
        """
        wrote_code = isinstance(step, Converter) and step.writes_code
        opening = Opening(inputs=source.inputs, trust=self.trust or wrote_code)
        found = graph.detect(out, opening=opening, graph=self.converters)
        expected = graph.after(step, (source.format, source.precision))[0]
        if found.format != expected:
            raise StepError(f"{step.name} wrote {found.format} where {expected} was due.")
        entry = LineageEntry(
            step=step.name,
            options=fusing.options_in(step, self.options),
            versions=_versions(step),
            input_sha256=digest,
            finished_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        return replace(
            found,
            precision=precision,
            inputs=found.inputs or source.inputs,
            outputs=found.outputs or source.outputs,
            lineage=(*source.lineage, entry),
        )


def _reason(error: ConvkitError) -> str:
    """What happened, and the first line of why."""
    return f"{error.what} {error.why[0]}" if error.why else error.what


def _import(needs: Iterable[Package]) -> None:
    for need in needs:
        load_module(need.module)


def _run_rung(
    step: Step, rung: Rung, source: Artifact, out: Path, work: Work, options: Mapping[str, Any]
) -> None:
    """Runs a rung with the options it knows; foreign exceptions become a StepError."""
    mine = {name: value for name, value in options.items() if name in rung.options}
    try:
        rung.run(source, out, work, **mine)
    except (ConvkitError, RungSkipped, MemoryError):
        raise
    except Exception as cause:
        if is_disk_full(cause):
            raise OSError(28, "No space left on device") from cause
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise StepError(
            f"{step.name} ({rung.name}) failed: {type(cause).__name__}: {first[:500]}",
            hint="See the whole trace:  -v",
        ) from cause
    if not out.exists():
        raise StepError(f"{step.name} ({rung.name}) ended without writing a result.")


def _verification_error(
    step: Step, comparison: verification.Comparison, result: Path
) -> VerificationError:
    worst = comparison.failures[0]
    if worst.metric == "runs":
        what = f"Verification failed after {step.name}: the result does not run."
        why = [check.sample for check in comparison.failures[:5]]
    else:
        name = worst.output
        what = f"Verification failed after {step.name}: '{name}' is too far from the source model."
        why = [_told(check) for check in comparison.failures[:5]]
    checks = [check.to_json() for check in comparison.checks]
    return VerificationError(what, why=why, checks=checks, result=result)


def _told(check: verification.Check) -> str:
    if check.metric in ("shape", "dtype", "name"):  # the sample says it; there is no number
        return f"{check.output}: another {check.metric}, {check.sample}"
    measured = f"{check.metric} {check.value:.6g}, the limit is {check.limit:.6g}"
    return f"{check.output}: {measured}" + (f" ({check.sample})" if check.sample else "")


def _versions(step: Step) -> dict[str, str]:
    versions = {"convkit": __version__}
    for need in step.needs:
        try:
            versions[need.distribution] = metadata.version(need.distribution)
        except metadata.PackageNotFoundError:
            continue
    return versions
