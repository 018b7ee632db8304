from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from convkit.artifact import Artifact, Opening, Precision, TensorSpec  # noqa: E402
from convkit.converters.torchscript_to_onnx import torchscript_to_onnx  # noqa: E402
from convkit.formats.torchscript import torchscript  # noqa: E402
from tests import material, script_models  # noqa: E402
from tests.script_models import (  # noqa: E402
    Case,
    Recorded,
    assert_same,
    climb,
    compile_network,
    onnx_outputs,
    record,
    save,
)

pytestmark = pytest.mark.filterwarnings("ignore")

_ROWS = (TensorSpec("x", "float32", ("batch", 6)),)

# Both sides sum in float32, in another order: networks of this size were measured below 1e-6.
_FP32 = 1e-5
# A float16 mantissa rounds to 5e-4; ONNX Runtime rounds after other operators than PyTorch does.
_FP16 = 1e-2

_QUICK = (
    "lstm-script", "self_attention-freeze", "encoder-trace", "LoopOverBatch-script",
    "WhileLarge-freeze", "DataBranch-script", "MultiOutput-trace",
)  # fmt: skip


def assert_converts(recorded: Recorded, out: Path, tolerance: float = _FP32) -> str:
    """Converts, checks the file, and compares with the source at every recorded shape."""
    served = climb(torchscript_to_onnx, recorded, out)
    onnx.checker.check_model(str(out), full_check=True)
    for feeds, expected in recorded.runs:
        assert_same(expected, onnx_outputs(out, feeds), tolerance)
    return served


def _cases(quick: bool) -> list[Case]:
    return [case for case in script_models.cases() if (case.id in _QUICK) == quick]


@pytest.mark.parametrize("case", _cases(True), ids=lambda case: case.id)
def test_networks_agree_in_onnx_runtime_at_other_shapes(case: Case, tmp_path: Path) -> None:
    assert_converts(record(torchscript, case.artifact(tmp_path)), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("case", _cases(False), ids=lambda case: case.id)
def test_all_other_networks_agree_too(case: Case, tmp_path: Path) -> None:
    assert_converts(record(torchscript, case.artifact(tmp_path)), tmp_path / "model.onnx")


def test_there_are_33_cases() -> None:
    assert len(list(script_models.cases())) == 33


def test_the_data_decide_the_branch_in_the_result(tmp_path: Path) -> None:
    case = Case(script_models.SCRIPT_MODELS["DataBranch"], "script")
    recorded = record(torchscript, case.artifact(tmp_path))
    out = tmp_path / "model.onnx"
    assert climb(torchscript_to_onnx, recorded, out) == "script-exporter"
    with torchscript.open(recorded.artifact) as runner:
        for sign in (-1.0, 1.0):
            feeds = {"x": np.full((5, 6), sign, np.float32)}
            assert_same(runner(feeds), onnx_outputs(out, feeds), _FP32)


def test_a_loop_runs_as_long_as_the_batch(tmp_path: Path) -> None:
    case = Case(script_models.SCRIPT_MODELS["LoopOverBatch"], "script")
    recorded = record(torchscript, case.artifact(tmp_path))
    out = tmp_path / "model.onnx"
    climb(torchscript_to_onnx, recorded, out)
    with torchscript.open(recorded.artifact) as runner:
        feeds = runner.example({"batch": 11}, 5)
        assert_same(runner(feeds), onnx_outputs(out, feeds), _FP32)


def test_dimensions_keep_their_names_in_inputs_and_outputs(tmp_path: Path) -> None:
    for way in ("trace", "script"):
        case = Case(script_models.SCRIPT_MODELS["lstm"], way)
        out = tmp_path / "model.onnx"
        climb(torchscript_to_onnx, record(torchscript, case.artifact(tmp_path)), out)
        graph = onnx.load(out).graph
        shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        }
        assert shapes["x"] == ["batch", "sequence", 6]
        assert list(shapes.values())[1:] == [
            ["batch", "sequence", 10],
            [2, "batch", 10],
            [2, "batch", 10],
        ]


@pytest.mark.parametrize("way", script_models.WAYS)
def test_the_file_loads_widely_and_holds_no_path_of_this_machine(way: str, tmp_path: Path) -> None:
    case = Case(script_models.SCRIPT_MODELS["MultiOutput"], way)
    out = tmp_path / "model.onnx"
    climb(torchscript_to_onnx, record(torchscript, case.artifact(tmp_path)), out)
    model = onnx.load(out)
    assert model.ir_version <= 10
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {20}
    assert str(Path(torch.__file__).parent).encode() not in out.read_bytes()
    assert b"tests/script_models.py" not in out.read_bytes()


def test_an_older_opset_can_be_asked_for(tmp_path: Path) -> None:
    case = Case(script_models.SCRIPT_MODELS["MultiOutput"], "script")
    recorded = record(torchscript, case.artifact(tmp_path))
    out = tmp_path / "model.onnx"
    assert climb(torchscript_to_onnx, recorded, out, opset=13) == "script-exporter-straight"
    assert onnx.load(out).opset_import[0].version == 13
    for feeds, expected in recorded.runs:
        assert_same(expected, onnx_outputs(out, feeds), _FP32)


@pytest.mark.parametrize("way", ["trace", "script"])
def test_half_precision_is_kept(way: str, tmp_path: Path) -> None:
    network = script_models.SCRIPT_MODELS["MultiOutput"].factory().half()
    specs = (TensorSpec("x", "float16", ("batch", 6)),)
    module = compile_network(network, way, (torch.zeros(2, 6, dtype=torch.half),))
    recorded = record(torchscript, save(module, tmp_path, specs))
    out = tmp_path / "model.onnx"
    climb(torchscript_to_onnx, recorded, out)
    kinds = {tensor.data_type for tensor in onnx.load(out).graph.initializer if tensor.dims}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    for feeds, expected in recorded.runs:
        got = onnx_outputs(out, feeds)
        assert_same({"output_0": expected["output_0"]}, {"output_0": got["output_0"]}, _FP16)


def test_results_in_a_dictionary_keep_their_keys(tmp_path: Path) -> None:
    specs = (*_ROWS, TensorSpec("mask", "float32", ("batch", 1)))
    for way in ("trace", "script"):
        example = (torch.zeros(3, 6), torch.ones(3, 1))
        module = compile_network(script_models.NamedResults().eval(), way, example)
        recorded = record(torchscript, save(module, tmp_path, specs))
        assert_converts(recorded, tmp_path / "model.onnx")
        names = [value.name for value in onnx.load(tmp_path / "model.onnx").graph.output]
        assert names == ["logits", "hidden"]


def test_a_number_stays_an_input_and_decides(tmp_path: Path) -> None:
    artifact = save(compile_network(script_models.ScaledBy().eval(), "script"), tmp_path, _ROWS)
    recorded = record(torchscript, artifact)
    out = tmp_path / "model.onnx"
    assert_converts(recorded, out)
    with torchscript.open(recorded.artifact) as runner:
        for mode in (7, 9):
            feeds = dict(runner.example({"batch": 4}, 2)) | {"mode": np.asarray(mode)}
            assert_same(runner(feeds), onnx_outputs(out, feeds), _FP32)


def test_state_is_reset_in_the_result_and_the_report_says_so(tmp_path: Path) -> None:
    artifact = save(compile_network(script_models.RunningMean().eval(), "script"), tmp_path, _ROWS)
    recorded = record(torchscript, artifact)
    before = artifact.path.read_bytes()
    assert_converts(recorded, tmp_path / "model.onnx")
    assert artifact.path.read_bytes() == before
    told = " ".join(recorded.notes)
    assert "keeps state between calls" in told
    assert "total" in told
    assert "1 check by which the source refuses" in told


@pytest.mark.parametrize(("rate", "samples_count"), [(16000, 512), (8000, 256)])
def test_silero_vad_agrees_at_both_sample_rates(
    rate: int, samples_count: int, tmp_path: Path
) -> None:
    path = material.silero_vad_file()
    specs = (
        TensorSpec("x", "float32", ("batch", samples_count)),
        TensorSpec("sr", "int64", ()),
    )
    artifact = Artifact(path, "torchscript", Precision.FP32, specs, (), (), Opening(inputs=specs))
    recorded = record(torchscript, artifact)
    out = tmp_path / "silero.onnx"
    assert assert_converts(recorded, out) == "script-exporter"
    with torchscript.open(recorded.artifact) as runner:
        feeds = dict(runner.example({"batch": 17}, 9))
        assert feeds["sr"] == rate
        assert_same(runner(feeds), onnx_outputs(out, feeds), _FP32)


def test_one_silero_file_serves_both_sample_rates(tmp_path: Path) -> None:
    path = material.silero_vad_file()
    specs = (TensorSpec("x", "float32", ("batch", "samples")), TensorSpec("sr", "int64", ()))
    artifact = Artifact(path, "torchscript", Precision.FP32, specs, (), (), Opening(inputs=specs))
    generator = np.random.default_rng(0)
    runs = []
    with torchscript.open(artifact) as runner:
        for batch, size, rate in ((2, 512, 16000), (3, 256, 8000), (1, 512, 16000)):
            sound = generator.standard_normal((batch, size)).astype(np.float32)
            feeds = {"x": sound, "sr": np.asarray(rate)}
            runs.append((feeds, runner(feeds)))
    recorded = script_models.recorded_of(torchscript, artifact, runs)
    assert_converts(recorded, tmp_path / "silero.onnx")
