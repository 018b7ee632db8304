"""Runs the untouched source once and keeps its outputs, beside the first step where that pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import overload

import numpy as np

from convkit import graph, samples, verification
from convkit.artifact import Artifact, TensorSpec
from convkit.child import Child, ChildDiedError, is_not_loaded
from convkit.errors import MissingRequirementError, SamplesError, StepError
from convkit.step import Feeds, Format, LanguageRunner, Runner

SHAPE_SETS = 3
"""Shapes every result is checked at: batch 1, a larger batch, an odd length."""

WINDOW_TOKENS = 512
"""Length of the rows that a text is cut into, as perplexities are usually quoted for."""

_TEXT_TOKENS = 256
_CONTROL_ROWS = (1, 3, 8, 8, 8, 4)
"""Rows of the batches that calibration data give to compare results on."""

_SEED = 0
_INPUTS_HINT = "Describe inputs it accepts:  --input NAME=DTYPE[SIZES]   or  --samples inputs.npz"


class Recorder:
    """Records a source model; in a process of its own if its framework is not loaded here yet.

    The process works from the moment this is made, so that a step which needs no inputs runs
    beside it, and its memory is gone before results are opened. Where that step loads the same
    framework (TensorFlow takes five seconds), the source is run here after it instead.

    Args:
        source: the model as headers describe it.
        examples: the user's samples.
        format: of the source.
        held_out: calibration data whose control share serves in place of samples.
        loaded: modules that the first step loads by itself, before it asks for the recording.
        is_wanted: whether anything will be compared with the recording for certain; if not, the
            source is run only when a step asks for inputs.

    Attributes:
        peak_rss_mib: of the process, once the recording is there.
    """

    def __init__(
        self,
        source: Artifact,
        examples: Path | None,
        format: Format,
        held_out: Path | None = None,
        loaded: Sequence[str] = (),
        is_wanted: bool = True,
    ) -> None:
        self.peak_rss_mib = 0.0
        self._source = source
        self._examples = examples
        self._held_out = held_out
        self._format = format
        self._recording: verification.Recording | None = None
        self._failure: Exception | None = None
        self._child: Child[verification.Recording] | None = None
        modules = [need.module for need in format.needs]
        if is_wanted and is_not_loaded(modules) and not set(modules) <= set(loaded):
            self._child = Child(_record_by_name, source, examples, held_out)

    @property
    def path(self) -> Path:
        """Of the source."""
        return self._source.path

    @property
    def words(self) -> str:
        """How a command line names the source."""
        return self._source.words

    @property
    def is_done(self) -> bool:
        """Whether the source was run, or is being run."""
        return self._recording is not None or self._child is not None

    @property
    def has_failed(self) -> bool:
        """Whether the source could not be run: no way of converting it will help."""
        return self._failure is not None

    def recording(self) -> verification.Recording:
        """What the source computes; waits for it.

        Raises:
            ConvkitError: the source cannot be opened or run.
        """
        if self._failure is not None:
            raise self._failure
        if self._recording is None:
            try:
                self._recording = self._record()
            except Exception as failure:
                self._failure = failure
                raise
        return self._recording

    def check(self) -> None:
        """Ends long work at once if the source turned out not to run; waits for nothing.

        Raises:
            ConvkitError: the source cannot be opened or run.
        """
        if self._child is not None and self._child.has_ended:
            self.recording()

    def source(self) -> Artifact:
        """The source with inputs and outputs as its run showed them; waits for it."""
        recording = self.recording()
        return replace(self._source, inputs=recording.inputs, outputs=recording.outputs)

    def stop(self) -> None:
        """Ends the process if it still runs."""
        if self._child is not None:
            self._child.stop()

    def _record(self) -> verification.Recording:
        if self._child is None:
            return record_source(self._source, self._examples, self._format, self._held_out)
        try:
            recording = self._child.result()
        except ChildDiedError as cause:
            raise StepError(
                f"The process that ran the source model {cause}.",
                why="A kill by the system (signal 9) means that memory ran out.",
                hint="See what this machine has:  convkit doctor",
            ) from cause
        self.peak_rss_mib = self._child.peak_rss_mib
        return recording


class LazySamples(Sequence[Feeds]):
    """The inputs that the source accepted; looking at them waits until it ran."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __len__(self) -> int:
        return len(self._recorder.recording().runs)

    @overload
    def __getitem__(self, index: int) -> Feeds: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Feeds]: ...

    def __getitem__(self, index: int | slice) -> Feeds | Sequence[Feeds]:
        return self._recorder.recording().samples[index]


def _record_by_name(
    source: Artifact, examples: Path | None, held_out: Path | None
) -> verification.Recording:
    return record_source(source, examples, graph.discover().format(source.format), held_out)


def record_source(
    source: Artifact, examples: Path | None, format: Format, held_out: Path | None = None
) -> verification.Recording:
    """Opens the source, runs it on the examples or on inputs it makes sense of, closes it.

    Without examples it is run on the control share of calibration data `held_out`, if there are
    such.

    Raises:
        ConvkitError: it cannot be opened, or accepts none of the inputs.
    """
    if format.open is None:
        raise StepError(f"{source.format} models cannot be run, so nothing can be verified.")
    missing = [need for need in format.needs if not need.is_available]
    if missing:
        raise MissingRequirementError(
            f"Running {source.format} models needs {missing[0].module}.", hint=missing[0].install
        )
    text = examples if examples and samples.is_text(examples) else None
    given = samples.read(examples) if examples and not text else []
    with format.open(source) as runner:
        if text:
            given = text_windows(runner, text)
        elif held_out and not examples:
            given = control_samples(held_out, runner.inputs)
        else:
            given = [samples.without_labels(feeds, runner.inputs) for feeds in given]
        wanted = max(SHAPE_SETS, len(given)) + (isinstance(runner, LanguageRunner) and not given)
        try:
            recording = verification.record(
                runner, inputs_for(runner, given), wanted, given, source.precision
            )
        except StepError as error:
            if source.opening.inputs:  # the user described them
                raise SamplesError(error.what, why=error.why, hint=_INPUTS_HINT) from error
            raise
    _check_given_accepted(given, recording)
    return recording


def control_samples(path: Path, inputs: Sequence[TensorSpec]) -> list[Feeds]:
    """What is held out of calibration data: a batch of one, one of three, and more in eights.

    Raises:
        SamplesError: the data cannot be read or do not fit the inputs.
    """
    from convkit.quantization.calibration_data import CalibrationData

    _, control = CalibrationData(path, inputs).shares()
    begins = [0, *accumulate(_CONTROL_ROWS)]
    return [
        feeds
        for begin, rows in zip(begins, _CONTROL_ROWS, strict=False)
        if begin < control.count
        for feeds in control.between(begin, begin + rows).batches(rows)
    ]


def _check_given_accepted(given: Sequence[Feeds], recording: verification.Recording) -> None:
    """The user's own samples are what a result is to be right on: none may fall away.

    Raises:
        SamplesError: the source refused one.
    """
    accepted = {id(feeds) for feeds in recording.samples}
    for index, feeds in enumerate(given):
        if id(feeds) not in accepted:
            raise SamplesError(
                f"The source model does not run on sample {index}.",
                why=recording.refused[:3],
                hint=_INPUTS_HINT,
            )


def inputs_for(runner: Runner, given: list[Feeds]) -> Iterator[Feeds]:
    """Inputs to compare at: the user's samples as they are, then in other shapes; else seeded ones.

    Without dynamic dimensions there is one shape, and seeds vary instead.
    """
    specs = runner.inputs
    if given:
        _check_samples(given, specs)
        shapes = samples.shape_sets(specs) if samples.dynamic_names(specs) else iter(())
        return chain(given, (samples.resize(given[0], specs, sizes) for sizes in shapes))
    if samples.dynamic_names(specs):
        shape_sets = samples.shape_sets(specs)
        shaped = (runner.example(sizes, _SEED + i) for i, sizes in enumerate(shape_sets))
        return chain(_text(runner), shaped) if isinstance(runner, LanguageRunner) else shaped
    return (runner.example({}, _SEED + i) for i in range(SHAPE_SETS))


def _text(runner: LanguageRunner) -> Iterator[Feeds]:
    """One row long enough to tell predictions apart, where the model takes such."""
    length = min(_TEXT_TOKENS, runner.context_length or _TEXT_TOKENS)
    names = samples.dynamic_names(runner.inputs)  # whatever its file calls batch and sequence
    yield runner.example(dict(zip(names, (1, length), strict=False)), _SEED)


def text_windows(runner: Runner, path: Path) -> list[Feeds]:
    """A text as rows of one length, each beginning as a prompt does.

    Source: llama.cpp, `tools/perplexity/perplexity.cpp`: rows of 512 tokens, the first of each
    replaced by the one that begins a text; what is left over at the end falls away.

    Raises:
        SamplesError: the model takes no text, or the text is missing or too short.
    """
    if not isinstance(runner, LanguageRunner):
        raise SamplesError(
            f"{path} is a text, and the model predicts none.",
            hint="Give arrays:  --samples inputs.npz",
        )
    text = samples.read_text(path)
    tokens = runner.encode(text)
    length = min(WINDOW_TOKENS, runner.context_length or WINDOW_TOKENS)
    if len(tokens) < length:
        raise SamplesError(
            f"{path} is too short: {len(tokens)} tokens, one row takes {length}.",
            hint="Give a longer text.",
        )
    begins_alike = tokens[:1] != runner.encode(text, is_prompt=False)[:1]
    rows: list[Feeds] = []
    for begin in range(0, len(tokens) - length + 1, length):
        row = np.array([tokens[begin : begin + length]], np.int64)
        if begins_alike:
            row[0, 0] = tokens[0]
        rows.append({"input_ids": row, "attention_mask": np.ones_like(row)})
    return rows


def _check_samples(given: Sequence[Feeds], specs: tuple[TensorSpec, ...]) -> None:
    names = {spec.name for spec in specs}
    for index, feeds in enumerate(given):
        if names and set(feeds) != names:
            raise SamplesError(
                f"Sample {index} does not fit the model's inputs.",
                why=[
                    f"the model takes  {', '.join(map(str, specs))}",
                    f"the sample has   {', '.join(sorted(feeds))}",
                ],
                hint="Name the arrays like the inputs.",
            )
