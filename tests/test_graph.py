"""The planner and detection, on toy formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import toy_rooms as toy

from convkit import factory_name
from convkit import graph as graphs
from convkit.artifact import Precision
from convkit.errors import ModelError, NoRouteError, UnknownNameError, UsageError
from convkit.options import options_of

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8


def names(route: graphs.Route) -> list[str]:
    return [step.name for step in route.steps]


def test_plan_finds_a_chain_of_converters() -> None:
    found = toy.graph(toy.edge("a", "b"), toy.edge("b", "c"))
    assert names(found.plan(("a", FP32), "c")) == ["a-to-b", "b-to-c"]


def test_plan_takes_the_cheaper_of_two_routes() -> None:
    found = toy.graph(toy.edge("a", "b"), toy.edge("b", "c"), toy.edge("a", "c", cost=3.0))
    assert names(found.plan(("a", FP32), "c")) == ["a-to-b", "b-to-c"]


def test_plan_lowers_precision_as_late_as_possible() -> None:
    passes = (toy.lowering("a", "fp16"), toy.lowering("b", "fp16"))
    found = toy.graph(toy.edge("a", "b"), *passes)
    assert names(found.plan(("a", FP32), "b", FP16)) == ["a-to-b", "b-fp16"]


def test_plan_lowers_early_where_only_the_source_has_the_pass() -> None:
    found = toy.graph(toy.edge("a", "b"), toy.lowering("a", "fp16"))
    assert names(found.plan(("a", FP32), "b", FP16)) == ["a-fp16", "a-to-b"]


def test_plan_spares_what_a_converter_made_a_pass_that_works_on_sources_only() -> None:
    at_end = replace(toy.lowering("b", "fp16"), of_source=True)
    found = toy.graph(toy.edge("a", "b"), at_end, toy.lowering("a", "fp16"))
    assert names(found.plan(("a", FP32), "b", FP16)) == ["a-fp16", "a-to-b"]
    assert names(found.plan(("b", FP32), "b", FP16)) == ["b-fp16"]


def test_plan_keeps_the_precision_when_none_is_asked_for() -> None:
    found = toy.graph(toy.edge("a", "b"), toy.lowering("b", "int8", ("fp32", "fp16")))
    route = found.plan(("a", FP16), "b")
    assert route.states[-1] == ("b", FP16)


def test_plan_never_raises_precision() -> None:
    found = toy.graph(toy.edge("a", "b"), toy.lowering("a", "fp32", ("fp16",)))
    with pytest.raises(NoRouteError, match="never rises"):
        found.plan(("a", FP16), "b", FP32)


def test_plan_does_not_swap_the_two_half_precisions() -> None:
    found = toy.graph(toy.lowering("a", "bf16", ("fp32", "fp16")))
    with pytest.raises(NoRouteError):
        found.plan(("a", FP16), "a", Precision.BF16)


def test_plan_respects_what_a_converter_carries() -> None:
    found = toy.graph(toy.edge("a", "b", carries=("fp32",)))
    with pytest.raises(NoRouteError):
        found.plan(("a", INT8), "b")


def test_plan_prefers_a_longer_route_that_works_here() -> None:
    direct = toy.edge("a", "c", needs=(toy.ABSENT,))
    found = toy.graph(direct, toy.edge("a", "b"), toy.edge("b", "c"))
    assert names(found.plan(("a", FP32), "c")) == ["a-to-b", "b-to-c"]


def test_route_with_a_missing_package_stays_visible_with_its_install_line() -> None:
    found = toy.graph(toy.edge("a", "b", needs=(toy.ABSENT,)))
    (missing,) = found.plan(("a", FP32), "b").missing()
    assert missing.install == 'pip install "convkit-ml[absent]"'


def test_no_route_says_what_can_be_reached() -> None:
    found = toy.graph(toy.edge("a", "b"), toy.lowering("b", "fp16"))
    with pytest.raises(NoRouteError) as caught:
        found.plan(("a", FP32), "b", INT8)
    text = str(caught.value)
    assert "No route from a (fp32) to b (int8)." in text
    assert "b can be reached at: fp16, fp32" in text


def test_unknown_format_offers_the_nearest() -> None:
    found = toy.graph(toy.edge("a", "b"), formats="ab")
    with pytest.raises(UnknownNameError, match="Unknown format 'onxn'"):
        found.plan(("a", FP32), "onxn")
    real = graphs.discover()
    with pytest.raises(UnknownNameError, match="Did you mean 'onnx'"):
        real.plan(("onnx", FP32), "onxn")


def test_detect_recognises_content_and_ignores_the_suffix(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "model.b", "a")
    assert graphs.detect(path, graph=toy.graph()).format == "a"


def test_detect_reads_the_precision(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "m", "a", "fp16")
    assert graphs.detect(path, graph=toy.graph()).precision is FP16


def test_missing_file_offers_the_nearest_name(tmp_path: Path) -> None:
    toy.write(tmp_path / "model.onnx", "a")
    with pytest.raises(ModelError, match=r"Did you mean .*model\.onnx"):
        graphs.detect(tmp_path / "modle.onnx", graph=toy.graph())


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"\x00\x01garbage", "not a model of a known format")],
)
def test_what_is_no_model_is_refused_with_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        graphs.detect(path, graph=toy.graph())


def test_hub_names_are_not_downloaded() -> None:
    with pytest.raises(UsageError, match="hf download org/name"):
        graphs.detect("hf://org/name", graph=toy.graph())


def test_a_local_looking_name_is_never_sent_to_a_hub() -> None:
    with pytest.raises(ModelError, match="no file or folder org/name"):
        graphs.detect("org/name", graph=toy.graph())


def test_weights_beside_a_path_are_refused(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "m.a", "a")
    with pytest.raises(UsageError, match="--weights goes with a factory"):
        graphs.detect(path, weights=path, graph=toy.graph())


def test_missing_module_of_a_factory_is_named() -> None:
    with pytest.raises(ModelError, match=r"no Python module no_such_module\.here"):
        graphs.detect("no_such_module.here:build", graph=toy.graph())


def test_options_are_read_from_the_step_and_typed() -> None:
    found = toy.graph(toy.lowering("a", "fp16"))
    assert options_of(found, {"a-fp16.keep-io": False}) == {"a-fp16": {"keep_io": False}}


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("a-fp17.keep_io", False, "Did you mean 'a-fp16'"),
        ("a-fp16.keep_oi", False, "Did you mean 'keep_io'"),
        ("a-fp16.keep_io", "perhaps", "takes bool, not 'perhaps'"),
        ("keep_io", False, "does not name an option"),
    ],
)
def test_wrong_options_are_refused_with_the_nearest(
    setting: str, value: object, words: str
) -> None:
    found = toy.graph(toy.lowering("a", "fp16"))
    with pytest.raises(UsageError, match=words):
        options_of(found, {setting: value})


def test_every_step_found_connects_known_formats() -> None:
    found = graphs.discover()
    for step in found.steps.values():
        states = {
            getattr(step, side) for side in ("source", "target", "format") if hasattr(step, side)
        }
        assert states <= set(found.formats), step.name


def test_every_format_found_can_be_reached_or_left() -> None:
    found = graphs.discover()
    from convkit.drawing import ends

    touched = {name for step in found.steps.values() for name in ends(step)}
    assert touched == set(found.formats)


def test_weights_may_name_a_key_inside(tmp_path: Path) -> None:
    assert factory_name.split_weights("w.pt:model_state") == (Path("w.pt"), "model_state")
    assert factory_name.split_weights("w.pt") == (Path("w.pt"), None)
    colon = tmp_path / "a:b"
    colon.touch()
    assert factory_name.split_weights(str(colon)) == (colon, None)
