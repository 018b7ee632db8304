from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from convkit.artifact import Artifact, Opening, Precision, TensorSpec  # noqa: E402
from convkit.converters.torchscript_to_torch import torchscript_to_torch  # noqa: E402
from convkit.errors import UnsupportedError  # noqa: E402
from convkit.formats.torchscript import torchscript  # noqa: E402
from tests import material, script_models  # noqa: E402
from tests.script_models import Case, climb, compile_network, record, save  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

_ROWS = (TensorSpec("x", "float32", ("batch", 6)),)

# The same kernels run, but attention fused into one kernel is spelled out: measured 3e-7.
_FP32 = 1e-5


def results(path: Path, feeds: object) -> list[torch.Tensor]:
    program = torch.export.load(path).module()
    arguments = [torch.from_numpy(array) for array in feeds.values()]  # type: ignore[attr-defined]
    with torch.no_grad():
        found: list[torch.Tensor] = torch.utils._pytree.tree_leaves(program(*arguments))
    return found


@pytest.mark.parametrize(
    "name", ["conv_bn_relu-freeze", "encoder-trace", "self_attention-script", "DataBranch-script"]
)
def test_programs_agree_with_their_source_at_other_shapes(name: str, tmp_path: Path) -> None:
    case = next(case for case in script_models.cases() if case.id == name)
    recorded = record(torchscript, case.artifact(tmp_path))
    out = tmp_path / "model.pt2"
    climb(torchscript_to_torch, recorded, out)
    for feeds, expected in recorded.runs:
        got = results(out, feeds)
        for left, right in zip(expected.values(), got, strict=True):
            torch.testing.assert_close(right, torch.from_numpy(left), rtol=_FP32, atol=_FP32)


def test_arguments_and_weights_keep_their_names(tmp_path: Path) -> None:
    case = Case(script_models.SCRIPT_MODELS["embedding_mean"], "script")
    out = tmp_path / "model.pt2"
    climb(torchscript_to_torch, record(torchscript, case.artifact(tmp_path)), out)
    program = torch.export.load(out)
    assert program.graph_signature.user_inputs == ("ids",)
    assert {name.removeprefix("inner.") for name in program.state_dict} == {
        "embedding.weight",
        "head.weight",
        "head.bias",
    }


def test_a_dictionary_stays_one(tmp_path: Path) -> None:
    specs = (*_ROWS, TensorSpec("mask", "float32", ("batch", 1)))
    module = compile_network(script_models.NamedResults().eval(), "script")
    recorded = record(torchscript, save(module, tmp_path, specs))
    out = tmp_path / "model.pt2"
    climb(torchscript_to_torch, recorded, out)
    result = torch.export.load(out).module()(torch.zeros(4, 6), torch.ones(4, 1))
    assert list(result) == ["logits", "hidden"]


def test_what_has_no_counterpart_is_named_with_its_place(tmp_path: Path) -> None:
    case = Case(script_models.SCRIPT_MODELS["WhileLarge"], "script")
    recorded = record(torchscript, case.artifact(tmp_path))
    with pytest.raises(UnsupportedError, match="prim::Loop") as caught:
        climb(torchscript_to_torch, recorded, tmp_path / "model.pt2")
    assert "script_models.py" in str(caught.value)


def test_silero_vad_becomes_a_program_for_one_sample_rate(tmp_path: Path) -> None:
    path = material.silero_vad_file()
    specs = (TensorSpec("x", "float32", ("batch", 512)), TensorSpec("sr", "int64", ()))
    artifact = Artifact(path, "torchscript", Precision.FP32, specs, (), (), Opening(inputs=specs))
    recorded = record(torchscript, artifact)
    out = tmp_path / "silero.pt2"
    climb(torchscript_to_torch, recorded, out)
    assert "'sr' must be 16000" in " ".join(recorded.notes)
    for feeds, expected in recorded.runs:
        (got,) = results(out, feeds)
        torch.testing.assert_close(got, torch.from_numpy(expected["output"]), rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError):
        results(out, {**recorded.runs[0][0], "sr": np.asarray(8000)})
