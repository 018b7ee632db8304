from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convkit
from convkit.artifact import Artifact, Precision, TensorSpec
from convkit.checks import LIMITS
from convkit.errors import GateError, UsageError
from convkit.quantization.calibration_data import CalibrationData
from convkit.quantization.control import LEAST_SQNR_DB, Control, controlled
from convkit.quantization.layers import Layer
from convkit.quantization.reference import Reference
from convkit.quantization.sensitivity import swept
from convkit.step import Feeds, Work
from tests.onnx_files import onnx, runtime
from tests.quantization.digit_network import (
    LAYERS,
    TRAINED_ON,
    digits,
    trained,
    with_outlier,
    write_network,
)

quantization = pytest.importorskip(
    "onnxruntime.quantization", reason="ONNX Runtime's quantizer stands for any"
)

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as trained, one with an outlier, and samples of digits it never saw."""
    folder = tmp_path_factory.mktemp("digits")
    weights = trained()
    write_network(weights, folder / "net.onnx")
    write_network(with_outlier(weights), folder / "broken.onnx")
    images, labels = digits()
    images, labels = images[TRAINED_ON:], labels[TRAINED_ON:]
    np.savez(folder / "labelled.npz", image=images, labels=labels)
    np.savez(folder / "bare.npz", image=images)
    np.savez(folder / "few.npz", image=images[:40], labels=labels[:40])
    return folder


class Quantizer:
    """ONNX Runtime's static quantizer with one scale for each weight; counts its calls."""

    def __init__(self, model: Path, data: CalibrationData, out: Path) -> None:
        self.model, self.data, self.out = model, data, out
        self.asked: list[frozenset[str]] = []

    def __call__(self, keep: frozenset[str]) -> Path:
        self.asked.append(keep)
        batches = iter(self.data.shares()[0].batches(64))

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
            def get_next(self) -> Feeds | None:
                return next(batches, None)

        quantization.quantize_static(
            self.model, self.out, Reader(), nodes_to_exclude=sorted(keep), per_channel=False
        )
        return self.out


def control(
    folder: Path,
    model: str,
    samples: str,
    tmp_path: Path,
    max_drop: float,
    metric: str | None = None,
    examples: str | None = None,
    precision: str | None = None,
) -> tuple[Control, Quantizer, list[str]]:
    path = folder / model
    image = TensorSpec("image", "float32", ("batch", 1, 8, 8))
    data = CalibrationData(folder / samples, [image])
    make = Quantizer(path, data, tmp_path / "candidate.onnx")
    arrays = {each.name: each.dims for each in onnx.load(path).graph.initializer}
    layers = [
        Layer(name, "Conv", int(np.prod(arrays[f"{name}.weight"])), f"{name}.weight", (), ())
        for name in LAYERS
    ]
    notes: list[str] = []
    work = Work((), lambda _: None, notes.append, lambda *_: None)
    if examples:
        work.examples = folder / examples
    source = Artifact(path, "onnx", Precision.FP32, (image,), ())
    limits: dict[str, Any] = {"max_drop": max_drop, "metric": metric, "precision": precision}
    found = controlled(make, layers, data, source, work=work, **limits)
    return found, make, notes


def accuracy(path: Path, images: Array, labels: Array) -> float:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    return float((logits.argmax(-1) == labels).mean())


def test_the_broken_layer_is_the_one_given_back(folder: Path, tmp_path: Path) -> None:
    found, make, notes = control(folder, "broken.onnx", "labelled.npz", tmp_path, 0.02)
    assert found.keep == {"second"}
    assert found.passed
    facts = found.facts
    assert facts["metric"] == "accuracy"
    assert facts["drop_quantized"] > 0.3
    held_out = np.load(folder / "labelled.npz")
    images, labels = held_out["image"][4::5], held_out["labels"][4::5]
    assert facts["value_before"] == accuracy(folder / "broken.onnx", images, labels)
    assert facts["value"] == accuracy(make(found.keep), images, labels)
    assert facts["drop"] == facts["value_before"] - facts["value"] <= 0.02
    assert len(make.asked) <= 4 + 4 + 3  # the sweep, the search, the prices

    (layer,) = facts["layers"]
    all_int8 = make(frozenset()).stat().st_size
    assert layer["bytes"] == make(frozenset({"second"})).stat().st_size - all_int8 > 0
    low, high = layer["latency_ratio_ci"]
    assert 0 < low <= layer["latency_ratio"] <= high
    found.conclude(tmp_path / "out.onnx")
    assert any("1 of 4 layers stay in fp32" in note for note in notes)
    saved = json.loads((tmp_path / "out.onnx.sensitivity.json").read_text())
    assert saved["ranking"][0]["layers"] == ["second"]
    noise = {row["layers"][0]: row["noise_share"] for row in saved["ranking"]}
    assert noise["second"] > 10 * max(noise[name] for name in ("first", "third", "last"))
    drawn = ElementTree.parse(tmp_path / "out.onnx.sensitivity.svg").getroot()
    assert drawn.tag.endswith("svg")
    texts = [element.text for element in drawn.iter() if element.tag.endswith("text")]
    assert set(LAYERS) <= set(texts)


def test_a_limit_that_holds_at_once_costs_one_measurement(folder: Path, tmp_path: Path) -> None:
    found, make, notes = control(folder, "net.onnx", "bare.npz", tmp_path, 0.05)
    assert (found.keep, found.passed, len(make.asked)) == (frozenset(), True, 1)
    found.conclude(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx.sensitivity.json").exists()
    assert "top-1 agreement" in notes[0]
    assert "measured against the source, as there are no labels" in notes[0]


def test_few_samples_do_not_show_a_small_drop(folder: Path, tmp_path: Path) -> None:
    found, _, notes = control(folder, "net.onnx", "bare.npz", tmp_path, 0.005, examples="few.npz")
    found.conclude(tmp_path / "out.onnx")
    assert found.facts["samples"] == 40  # samples with labels judge, before data without
    assert found.facts["against"] == "labels"
    assert any("cannot be seen on so few" in note and "200 samples" in note for note in notes)


def test_where_nothing_suffices_the_best_is_named(folder: Path, tmp_path: Path) -> None:
    found, make, _ = control(folder, "net.onnx", "bare.npz", tmp_path, 1e-9, metric="noise")
    assert not found.passed
    assert len(found.keep) == 3
    assert found.keep in make.asked
    with pytest.raises(GateError, match="No choice of layers") as failure:
        found.conclude(tmp_path / "out.onnx")
    assert failure.value.exit_code == 8
    assert failure.value.details["result"] == tmp_path / "out.onnx"
    assert "3 of 4 in fp32" in str(failure.value)


def test_a_sweep_that_would_take_too_long_joins_neighbours(folder: Path, tmp_path: Path) -> None:
    path = folder / "broken.onnx"
    image = TensorSpec("image", "float32", ("batch", 1, 8, 8))
    data = CalibrationData(folder / "few.npz", [image])
    make = Quantizer(path, data, tmp_path / "candidate.onnx")
    layers = [Layer(name, "Conv", 100, "", (), ()) for name in LAYERS]
    reference = Reference(path, data.shares()[1], None, tmp_path, lambda *_: None)
    found = swept(make, layers, reference, {}, progress=lambda *_: None, limit_s=0.0)
    assert {each.names for each in found} == {("first",), ("second", "third", "last")}
    assert found[0].names[0] == "second"


def test_without_any_samples_nothing_can_be_controlled(folder: Path) -> None:
    source = Artifact(folder / "net.onnx", "onnx", Precision.FP32, (), ())
    work = Work((), lambda _: None, print, lambda *_: None)
    with pytest.raises(UsageError, match="there are none"):
        controlled(lambda _: Path(), [], None, source, max_drop=0.1, metric=None, work=work)


def test_convert_gives_layers_back_and_tells_their_price(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "to": "onnx",
        "precision": "int8",
        "metric": "noise",
        "calibration": folder / "bare.npz",
        "settings": {"onnx-int8.equalize": False},
        "out": tmp_path / "out.onnx",
        "force": True,
    }
    report = convkit.convert(folder / "net.onnx", max_drop=0.5, **settings)
    assert report.control is not None
    assert report.control["layers"] == []
    limit = 0.6 * report.control["drop"]
    report = convkit.convert(folder / "net.onnx", max_drop=limit, **settings)
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    facts = told["control"]
    assert facts == told["steps"][0]["control"]
    assert facts["drop"] <= limit < facts["drop_quantized"]
    kept = [layer["name"] for layer in facts["layers"]]
    assert 0 < len(kept) < facts["layer_count"] == 4
    made = onnx.load(tmp_path / "out.onnx").graph.initializer
    floats = {tensor.name for tensor in made if tensor.data_type == onnx.TensorProto.FLOAT}
    assert {f"{layer}.weight" for layer in kept} <= floats
    assert facts["size_bytes"] > facts["size_bytes_quantized"]
    assert (tmp_path / facts["ranking"]).exists()


def test_dynamic_int8_gives_layers_back_too(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "to": "onnx",
        "scheme": "dynamic",
        "samples": folder / "labelled.npz",
        "metric": "noise",
        "out": tmp_path / "out.onnx",
        "force": True,
    }
    report = convkit.convert(folder / "net.onnx", max_drop=0.5, **settings)
    assert report.control is not None
    lost = report.control["drop"]
    assert report.control["samples"] == len(np.load(folder / "labelled.npz")["labels"])
    report = convkit.convert(folder / "net.onnx", max_drop=0.95 * lost, **settings)
    assert report.control is not None
    assert report.control["drop"] <= 0.95 * lost
    assert report.control["layers"]
    ranking = tmp_path / report.control["ranking"]
    assert ranking.exists()
    convkit.convert(folder / "net.onnx", max_drop=0.5, **settings)
    assert not ranking.exists()  # it belonged to the result that was replaced


def test_convert_keeps_the_best_where_nothing_suffices(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(GateError) as failure:
        convkit.convert(
            folder / "net.onnx",
            to="onnx",
            precision="int8",
            calibration=folder / "bare.npz",
            metric="noise",
            max_drop=1e-9,
            settings={"onnx-int8.equalize": False},
            out=out,
        )
    assert not out.exists()
    rejected = tmp_path / ".rejected" / "out.onnx"
    onnx.checker.check_model(onnx.load(rejected))
    assert f"Kept for inspection: {rejected}" in str(failure.value)
    assert failure.value.hint.startswith("Allow more:  --max-drop ")
    assert failure.value.details["control"]["drop"] > 1e-9
    json.dumps(failure.value.details, allow_nan=False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"calibration": "bare.npz", "metric": "accuracy"}, "needs labels"),
        ({"calibration": "bare.npz", "metric": "nonsense"}, "Unknown metric"),
        ({"scheme": "dynamic"}, "there are none"),
    ],
)
def test_what_cannot_be_measured_ends_with_a_usage_error(
    folder: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    if "calibration" in options:
        options = {**options, "calibration": folder / options["calibration"], "precision": "int8"}
    with pytest.raises(UsageError, match=told) as failure:
        convkit.convert(
            folder / "net.onnx", to="onnx", max_drop=0.01, out=tmp_path / "out.onnx", **options
        )
    assert failure.value.exit_code == 2


def test_control_asks_for_the_noise_that_verification_allows() -> None:
    assert {name: LIMITS[Precision(name)].sqnr_db for name in LEAST_SQNR_DB} == LEAST_SQNR_DB


def test_layers_return_until_verification_passes_too(folder: Path, tmp_path: Path) -> None:
    found, _, notes = control(
        folder, "broken.onnx", "labelled.npz", tmp_path, 1.0, precision="int8"
    )
    found.conclude(tmp_path / "out.onnx")
    assert found.keep == {"second"}  # although all may be lost by the metric
    assert found.facts["sqnr_db_quantized"] < 20.0 <= found.facts["sqnr_db"]
    assert any("where verification asks for 20" in note for note in notes)
