from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from convkit import samples
from convkit.artifact import Artifact, Opening, TensorSpec
from convkit.converters.torch_to_onnx import stream, torch_to_onnx
from convkit.errors import RungSkipped, UnsupportedError
from convkit.formats import torch as torch_format
from convkit.step import Work
from tests import material, tiny_models

RUNGS = {rung.name: rung.run for rung in torch_to_onnx.rungs}
TINY = {model.name: model for model in tiny_models.TINY_MODELS}
# float32 sums in another order; five times the largest error measured on these networks (2.5e-5,
# grid_sample, whose coordinates amplify rounding).
ATOL = 1.3e-4


class Converted:
    """What a rung wrote, with the source's own outputs to compare with."""

    def __init__(self, path: Path, opening: Opening, out: Path) -> None:
        self.path, self.opening, self.out = path, opening, out
        self.notes: list[str] = []
        found = torch_format.describe(path, opening)
        source = Artifact(path, "torch", found.precision, found.inputs, opening=opening)
        with torch_format.open_torch(source) as runner:
            self.runs = []
            for seed, sizes in enumerate(samples.shape_sets(runner.inputs)):
                feeds = runner.example(sizes, seed)
                try:
                    self.runs.append((feeds, runner(feeds)))
                except RuntimeError:  # ICLabel wants its batch in fours
                    continue
                if len(self.runs) == 3:
                    break
            self.source = Artifact(
                path, "torch", found.precision, runner.inputs, runner.outputs, (), opening
            )

    def by(self, rung: str, **options: object) -> onnx.ModelProto:
        work = Work(
            [feeds for feeds, _ in self.runs],
            torch_format.load,
            self.notes.append,
            lambda what, done, total: None,
        )
        RUNGS[rung](self.source, self.out, work, **options)
        return onnx.load(self.out)

    def served(self) -> str:
        """The first rung that applies and keeps dynamic sizes, as the pipeline chooses."""
        for name in RUNGS:
            try:
                self.by(name)
            except RungSkipped:
                continue
            if not any("lost" in note for note in self.notes):
                return name
            self.notes.clear()
        raise AssertionError("no rung serves")

    def assert_agrees(self, atol: float = ATOL) -> None:
        session = onnxruntime.InferenceSession(self.out, providers=["CPUExecutionProvider"])
        assert [i.name for i in session.get_inputs()] == [s.name for s in self.source.inputs]
        for feeds, want in self.runs:
            got = session.run(None, dict(feeds))
            assert [o.name for o in session.get_outputs()] == list(want)
            for array, expected in zip(got, want.values(), strict=True):
                assert array.dtype == expected.dtype
                np.testing.assert_allclose(array, expected, atol=atol, rtol=1e-4)


def convert(module: type[nn.Module] | str, out: Path, *inputs: TensorSpec) -> Converted:
    name = module if isinstance(module, str) else f"{module.__module__}:{module.__name__}"
    return Converted(Path(__file__), Opening(factory=name, inputs=inputs), out / "m.onnx")


def tiny(name: str, out: Path) -> Converted:
    return Converted(Path(tiny_models.__file__), TINY[name].opening, out / "m.onnx")


X = TensorSpec("x", "float32", ("batch", 6))


class Scaled(nn.Module):
    """Takes a plain number; gives an input back, and one output twice."""

    def forward(self, x: torch.Tensor, power: int) -> tuple[torch.Tensor, ...]:
        y = x**power
        return x, y, y


class Fours(nn.Module):
    """Fixes its batch to that of the example."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.shape[0] + torch.arange(int(x.shape[0])).sum()


class Decides(nn.Module):
    """Branches on its data in Python."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Layer(nn.Module):
    """Uses an operator nobody translates."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.convkit_tests.mystery(x)


class Unknown(nn.Module):
    """Holds that layer some levels down."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6), Layer()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[1](self.blocks[0](x))


@torch.library.custom_op("convkit_tests::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@mystery.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


QUICK = ["conv_bn_relu", "lstm", "branch", "topk_sort", "encoder"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in TINY]
)
def test_tiny_model_agrees_at_every_shape_and_keeps_its_dynamic_sizes(name, tmp_path):
    converted = tiny(name, tmp_path)
    converted.served()
    converted.assert_agrees()
    onnx.checker.check_model(converted.out, full_check=True)


def test_result_carries_the_versions_names_and_sizes_asked_for(tmp_path):
    model = tiny("residual_block", tmp_path).by("export")
    assert model.ir_version == 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    dims = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 4, "height", "width"]
    assert [output.name for output in model.graph.output] == ["output"]
    written = "".join(p.value for n in model.graph.node for p in n.metadata_props)
    assert str(Path.cwd()) not in written  # no stack traces with paths of this machine


@pytest.mark.parametrize(("rung", "opset"), [("export", 18), ("export", 23), ("legacy", 17)])
def test_opset_is_as_asked_where_the_exporter_can(tmp_path, rung, opset):
    converted = tiny("depthwise_pool", tmp_path)
    assert converted.by(rung, opset=opset).opset_import[0].version == opset
    converted.assert_agrees()


def test_opset_beyond_an_exporter_is_clamped_or_left_to_the_next(tmp_path):
    converted = tiny("topk_sort", tmp_path)
    assert converted.by("export", opset=99).opset_import[0].version == 23
    assert "opset 23 at most" in converted.notes[0]
    with pytest.raises(RungSkipped):
        converted.by("export", opset=15)


def test_recurrent_layers_stay_whole(tmp_path):
    converted = tiny("lstm", tmp_path)
    with pytest.raises(RungSkipped, match="unrolls"):
        converted.by("export")
    operators = [node.op_type for node in converted.by("legacy").graph.node]
    assert operators.count("LSTM") == 2
    converted.by("unrolled")
    assert any("sequence became" in note for note in converted.notes)


def test_repeated_outputs_inputs_as_outputs_and_plain_numbers_survive(tmp_path):
    power = TensorSpec("power", "int64", ())
    for rung in ("export", "legacy"):
        converted = convert(Scaled, tmp_path, X, power)
        converted.source = Artifact(
            converted.path, "torch", converted.source.precision, (X, power),
            converted.source.outputs, (), converted.opening,
        )  # fmt: skip
        converted.runs = [({**f, "power": np.array(3)}, None) for f, _ in converted.runs]
        model = converted.by(rung)
        assert [o.name for o in model.graph.output] == ["output_0", "output_1", "output_2"]
        assert "became the constant 3" in converted.notes[0]
        session = onnxruntime.InferenceSession(converted.out)
        x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)
        for got, want in zip(session.run(None, {"x": x}), (x, x**3, x**3), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_size_that_becomes_fixed_is_reported_by_name(tmp_path):
    converted = convert(Fours, tmp_path, X)
    converted.by("export")
    assert any("x.batch became" in note for note in converted.notes)


def test_a_decision_on_data_is_explained(tmp_path):
    with pytest.raises(UnsupportedError, match="decides by its data") as caught:
        convert(Decides, tmp_path, X).by("export")
    assert "torch.cond" in caught.value.hint


@pytest.mark.parametrize("rung", ["export", "legacy"])
def test_untranslatable_operator_is_named_with_its_module_path(tmp_path, rung):
    converted = convert(Unknown, tmp_path, X)
    with pytest.raises(UnsupportedError, match="mystery") as caught:
        converted.by(rung)
    assert "blocks.1" in str(caught.value)
    assert not converted.out.exists()


def test_exported_program_converts_with_its_own_names(tmp_path):
    batch = torch.export.Dim("batch")
    network = TINY["residual_block"].factory()
    program = torch.export.export(
        network, (torch.randn(3, 4, 16, 16),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, tmp_path / "m.pt2")
    converted = Converted(tmp_path / "m.pt2", Opening(), tmp_path / "m.onnx")
    assert converted.served() == "export"
    converted.assert_agrees()


def test_weights_beyond_the_limit_go_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "EXTERNAL_OVER_BYTES", 1000)
    monkeypatch.setattr(stream, "_SMALL_BYTES", 0)
    converted = tiny("encoder", tmp_path)
    model = converted.by("export")
    assert (tmp_path / "m.onnx.data").stat().st_size > 1000
    assert {f.name for f in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert model.graph.initializer
    converted.assert_agrees()


def test_streamed_file_equals_what_protobuf_writes(tmp_path, monkeypatch):
    """Byte order of fields aside: parsing and serializing again gives the same message."""
    monkeypatch.setattr(stream, "_SMALL_BYTES", 0)
    converted = tiny("encoder", tmp_path)
    model = converted.by("export")
    raw = converted.out.read_bytes()
    assert len(model.SerializeToString()) == len(raw)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", material.MATERIAL)
def test_trained_model_agrees_at_shapes_other_than_the_exports(name, tmp_path):
    found = material.MATERIAL[name]
    converted = Converted(found.path(), found.opening, tmp_path / "m.onnx")
    converted.served()
    converted.assert_agrees()
