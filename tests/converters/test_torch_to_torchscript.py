from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from convkit.artifact import Artifact, Opening, Precision, TensorSpec  # noqa: E402
from convkit.converters.torch_to_torchscript import torch_to_torchscript  # noqa: E402
from convkit.errors import UnsupportedError  # noqa: E402
from convkit.formats.torch import torch as torch_format  # noqa: E402
from convkit.formats.torchscript import torchscript  # noqa: E402
from tests import script_models, tiny_models  # noqa: E402
from tests.script_models import assert_same, climb, record  # noqa: E402
from tests.tiny_models import TinyModel  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

# The same kernels in the same order; a fused attention kernel sums in another: measured 2e-7.
_FP32 = 1e-6

_CONTROL_FLOW = ("branch", "iterate")  # torch.cond and torch.while_loop have no TorchScript
_TINY = [model for model in tiny_models.TINY_MODELS if model.name not in _CONTROL_FLOW]


def source_of(model: TinyModel, inputs: tuple[TensorSpec, ...] | None = None) -> Artifact:
    """A factory's artifact, as `graph.detect` gives it."""
    module = model.module
    opening = Opening(
        factory=f"{module.__module__}:{module.__name__}", inputs=inputs or model.inputs
    )
    path = Path(__file__)
    return Artifact(path, "torch", Precision.FP32, opening.inputs, (), (), opening)


_QUICK = ("conv_bn_relu", "lstm", "norms", "self_attention", "topk_sort")


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, id=m.name, marks=() if m.name in _QUICK else pytest.mark.slow) for m in _TINY],
)
def test_networks_agree_with_eager_at_every_shape(model: TinyModel, tmp_path: Path) -> None:
    recorded = record(torch_format, source_of(model))
    out = tmp_path / "model.pt"
    climb(torch_to_torchscript, recorded, out)
    described = torchscript.describe(out, Opening())
    assert described.inputs == recorded.artifact.inputs
    made = Artifact(out, "torchscript", described.precision, described.inputs)
    with torchscript.open(made) as runner:
        for feeds, expected in recorded.runs:
            assert_same(expected, runner(feeds), _FP32)


@pytest.mark.parametrize("name", ["WhileLarge", "DataBranch"])
def test_what_the_data_decide_is_scripted_not_traced(name: str, tmp_path: Path) -> None:
    recorded = record(torch_format, source_of(script_models.SCRIPT_MODELS[name]))
    assert climb(torch_to_torchscript, recorded, tmp_path / "model.pt") == "script"


def test_a_loop_over_the_batch_fails_the_trace_and_is_scripted(tmp_path: Path) -> None:
    recorded = record(torch_format, source_of(script_models.SCRIPT_MODELS["LoopOverBatch"]))
    assert climb(torch_to_torchscript, recorded, tmp_path / "model.pt") == "script"


class NotScriptable(torch.nn.Module):
    """Decides by the data, in Python that TorchScript cannot compile."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Runs the network."""
        options = {"shift": 1.0, **{"scale": 2.0}}
        return x * options["scale"] if x.sum() > -1e9 else x


def test_a_decision_that_had_to_be_fixed_is_reported_with_its_place(tmp_path: Path) -> None:
    model = TinyModel("odd", NotScriptable, (TensorSpec("x", "float32", ("batch", 6)),))
    recorded = record(torch_format, source_of(model))
    assert climb(torch_to_torchscript, recorded, tmp_path / "model.pt") == "trace-fixed"
    assert "test_torch_to_torchscript.py:" in recorded.notes[0]


@pytest.mark.parametrize("name", _CONTROL_FLOW)
def test_higher_order_control_flow_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    model = next(model for model in tiny_models.TINY_MODELS if model.name == name)
    with pytest.raises(UnsupportedError, match="cannot be"):
        climb(torch_to_torchscript, record(torch_format, source_of(model)), tmp_path / "model.pt")


class Spread(torch.nn.Module):
    """Branches by the data, loops as often as there are rows, and sums as it goes."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Runs the network."""
        from torch._higher_order_ops.scan import scan

        def more(step, total):  # type: ignore[no-untyped-def]
            return step < 3

        def add(step, total):  # type: ignore[no-untyped-def]
            return step + 1, total + x.mean()

        start = torch.zeros((), dtype=torch.int64)
        chosen = torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))
        total = torch.while_loop(more, add, (start, torch.zeros(())))[1]
        last, sums = scan(lambda a, b: (a + b, (a + b) * 2), torch.zeros(x.shape[1]), x)
        return {"chosen": chosen, "total": total.clone(), "last": last, "sums": sums}


def test_control_flow_of_an_exported_program_stays_control_flow(tmp_path: Path) -> None:
    batch = {"x": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(Spread(), (torch.ones(4, 3),), dynamic_shapes=batch)
    path = tmp_path / "spread.pt2"
    torch.export.save(program, path)
    described = torch_format.describe(path, Opening())
    source = Artifact(path, "torch", Precision.FP32, described.inputs, described.outputs)
    assert climb(torch_to_torchscript, record(torch_format, source), tmp_path / "m.pt") == "trace"
    compiled = torch.jit.load(tmp_path / "m.pt")
    for x in (torch.rand(7, 3), -torch.rand(2, 3)):
        wanted = Spread()(x)
        got = dict(zip(sorted(wanted), [v for _, v in sorted(compiled(x).items())], strict=True))
        torch.testing.assert_close(got, wanted)


class Sizes(torch.nn.Module):
    """Cuts and fills by sizes."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Runs the network."""
        cut = x[:, : torch.sym_min(x.shape[1], 6)]
        return cut * 2, x.new_ones([torch.sym_max(x.shape[1] - 3, 2)])


def test_arithmetic_of_sizes_in_an_exported_program_is_traced(tmp_path: Path) -> None:
    sizes = {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(Sizes(), (torch.ones(4, 9),), dynamic_shapes=sizes)
    path = tmp_path / "sizes.pt2"
    torch.export.save(program, path)
    described = torch_format.describe(path, Opening())
    source = Artifact(path, "torch", Precision.FP32, described.inputs, described.outputs)
    assert climb(torch_to_torchscript, record(torch_format, source), tmp_path / "m.pt") == "trace"
    compiled = torch.jit.load(tmp_path / "m.pt")
    for shape in ((2, 8), (3, 7), (1, 12)):
        x = torch.rand(shape)
        torch.testing.assert_close(tuple(compiled(x)), Sizes()(x))
