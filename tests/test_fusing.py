"""Neighbours on a route that work tensor by tensor are taken in one pass over the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from convkit import fusing, pipeline
from convkit.artifact import Artifact, Precision
from convkit.errors import NoRouteError, UsageError, VerificationError
from convkit.graph import ConverterGraph
from convkit.recipe import Recipe
from convkit.step import Converter, Pass, Work
from convkit.streaming import streaming_converter, streaming_pass
from tests import toy_rooms as toy


@dataclass(frozen=True)
class Number:
    """A toy model on its way."""

    format: str
    precision: str
    factor: float
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.format} {self.precision} {self.factor}"

    @property
    def byte_count(self) -> int:
        return len(str(self))


SUNK: list[str] = []


def sink(number: Number, out: Path, work: Work) -> None:
    SUNK.append(out.name)
    out.write_text(str(number))


@contextmanager
def opened(source: Artifact, work: Work) -> Iterator[Number]:
    name, precision, factor = source.path.read_text().split()[:3]
    yield Number(name, precision, float(factor))


def converting(source: str, target: str, **facts: Any) -> Converter:
    @streaming_converter(
        source, target, sink=sink, carries=("fp32", "bf16", "q4"), loses="a", **facts
    )
    @contextmanager
    def run(source: Artifact, work: Work, *, bias: float = 0.0) -> Iterator[Number]:
        """Streams."""
        with opened(source, work) as number:
            precision = facts.get("gives", {}).get(number.precision, number.precision)
            yield Number(target, precision, number.factor + bias, ("converted",))

    return run


def lowering(format: str, precision: str, accepts: tuple[str, ...], **facts: Any) -> Pass:
    @streaming_pass(format, precision, open=opened, sink=sink, accepts=accepts, loses="b", **facts)
    def run(number: Number, work: Work, *, scheme: str = "plain", gain: float = 1.0) -> Number:
        """Lowers."""
        notes = (*number.notes, f"as {scheme}")
        return replace(number, precision=precision, factor=number.factor * gain, notes=notes)

    return run


def graph(*more: Converter | Pass) -> ConverterGraph:
    made = toy.graph(converting("a", "b"), lowering("b", "q4", ("fp32", "q4")), *more)
    schemes = {"plain": Precision.Q4, "fancy": Precision.Q4, "whole": Precision.FP32}
    formats = {**made.formats, "b": replace(made.formats["b"], schemes=schemes)}
    return replace(made, formats=formats)


def run(tmp_path: Path, **fields: Any) -> pipeline.Report:
    SUNK.clear()
    fields.setdefault("model", str(toy.write(tmp_path / "m.a", "a")))
    fields.setdefault("to", "b")
    return pipeline.run(Recipe(**fields), converters=graph())


def test_a_converter_and_a_pass_write_one_file(tmp_path: Path) -> None:
    report = run(tmp_path, precision="q4")
    assert report.route == ("a-to-b", "b-q4")
    assert [step.name for step in report.steps] == ["a-to-b + b-q4"]
    assert SUNK == ["m.q4.b"]
    assert (tmp_path / "m.q4.b").read_text() == "b q4 2.0"
    assert report.steps[0].notes == ("converted", "as plain")
    assert report.passed


def test_options_reach_the_step_they_name_and_the_manifest(tmp_path: Path) -> None:
    settings = {"a-to-b.bias": 0.0, "b-q4.gain": 1.0}
    report = run(tmp_path, precision="q4", settings=settings)
    (entry,) = report.artifact.read_lineage()
    assert entry.step == "a-to-b + b-q4"
    assert entry.options == {"a-to-b": {"bias": 0.0}, "b-q4": {"gain": 1.0}}


def test_the_joint_result_is_verified_against_the_source(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"a-to-b \+ b-q4"):
        run(tmp_path, precision="q4", settings={"b-q4.gain": 3.0})
    assert not (tmp_path / "m.q4.b").exists()


def test_a_scheme_says_the_precision_and_names_the_result(tmp_path: Path) -> None:
    report = run(tmp_path, scheme="fancy")
    assert report.artifact.path.name == "m.fancy.b"
    assert report.steps[0].notes[-1] == "as fancy"


def test_an_unknown_scheme_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown scheme of b 'fancie'") as caught:
        run(tmp_path, scheme="fancie")
    assert caught.value.hint == "Did you mean 'fancy'?"


def test_a_scheme_of_another_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--scheme fancy is q4, not int8"):
        run(tmp_path, scheme="fancy", precision="int8")


def test_another_scheme_of_the_same_precision_is_a_step(tmp_path: Path) -> None:
    report = run(tmp_path, model=str(toy.write(tmp_path / "m.b", "b", "q4")), scheme="fancy")
    assert report.route == ("b-q4",)
    assert report.artifact.path.name == "m.fancy.b"


def test_the_exact_size_is_known_before_the_work(tmp_path: Path) -> None:
    recipe = Recipe(model=str(toy.write(tmp_path / "m.a", "a")), to="b", precision="q4")
    job = pipeline.plan(recipe, graph())
    assert pipeline.predicted_bytes(job) == len("b q4 2.0")


def test_without_verification_the_source_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: toy.ToyRunner, feeds: Any) -> Any:
        raise AssertionError("the model was run")

    monkeypatch.setattr(toy.ToyRunner, "__call__", refuse)
    report = run(tmp_path, precision="q4", verify=False)
    assert not report.passed
    assert report.samples == ()


def test_steps_that_do_not_stream_are_taken_apart() -> None:
    streaming, plain = converting("a", "b"), toy.edge("b", "c", carries=("fp32",))
    made = toy.graph(streaming, plain, lowering("b", "q4", ("fp32",)))
    route = made.plan(("a", Precision.FP32), "c")
    assert fusing.fused(route, {}) == (streaming, plain)


def test_what_a_converter_unpacks_needs_no_precision_to_be_asked_for() -> None:
    made = toy.graph(converting("a", "b", gives={"q4": "fp32"}), lowering("b", "q4", ("fp32",)))
    assert made.plan(("a", Precision.Q4), "b").states[-1] == ("b", Precision.FP32)
    again = made.plan(("a", Precision.Q4), "b", Precision.Q4)
    assert [step.name for step in again.steps] == ["a-to-b", "b-q4"]


def test_a_route_never_comes_back_to_a_format() -> None:
    there, back = converting("a", "b", gives={"q4": "fp32"}), converting("b", "a")
    made = toy.graph(there, back, toy.lowering("a", "fp16"))
    with pytest.raises(NoRouteError):
        made.plan(("a", Precision.Q4), "a", Precision.FP16)


def test_a_pass_that_recasts_may_keep_the_number_of_bits() -> None:
    plain = lowering("b", "fp16", ("bf16",))
    with pytest.raises(NoRouteError):
        toy.graph(plain).plan(("b", Precision.BF16), "b", Precision.FP16)
    recasting = lowering("b", "fp16", ("bf16",), recasts=True)
    route = toy.graph(recasting).plan(("b", Precision.BF16), "b", Precision.FP16)
    assert route.steps == (recasting,)


def test_what_a_pass_quantized_is_not_unpacked_again() -> None:
    unpacking = converting("a", "b", gives={Precision.Q4: Precision.FP32})
    made = toy.graph(unpacking, toy.lowering("a", "q4", ("bf16",)))
    assert made.plan(("a", Precision.Q4), "b", Precision.FP32).steps == (unpacking,)
    with pytest.raises(NoRouteError):
        made.plan(("a", Precision.BF16), "b", Precision.FP32)


def test_a_pass_on_folders_follows_a_converter_that_makes_one() -> None:
    of_source = replace(toy.lowering("b", "fp16"), of_source=True)
    to_file, to_folder = converting("a", "b"), converting("a", "b", makes_folder=True)
    with pytest.raises(NoRouteError):
        toy.graph(to_file, of_source).plan(("a", Precision.FP32), "b", Precision.FP16)
    route = toy.graph(to_folder, of_source).plan(("a", Precision.FP32), "b", Precision.FP16)
    assert route.steps == (to_folder, of_source)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pure": True}, "--pure has no effect"),
        ({"tensor_types": ("x=q8_0",)}, "--tensor-type has no effect"),
        ({"calibration": Path("text.txt")}, "--calibration has no effect"),
    ],
)
def test_what_no_step_of_the_route_takes_is_said(
    tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    if "calibration" in fields:
        fields = {"calibration": tmp_path / fields["calibration"]}
        fields["calibration"].write_text("a text")
    with pytest.raises(UsageError, match=says):
        run(tmp_path, **fields)
