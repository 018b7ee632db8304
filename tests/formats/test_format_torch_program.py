from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from convkit.artifact import Artifact, Opening, TensorSpec
from convkit.errors import ModelError, UnsafeError
from convkit.formats.torch import describe, load, matches, open_torch
from tests.tiny_models import ConvBnRelu, Lstm

X = (TensorSpec("x", "float32", ("batch", 3, 8, 8)),)
MARKER = "convkit-was-executed"


class Exploding:
    """Unpickling one would create a folder."""

    def __reduce__(self):
        return os.mkdir, (MARKER,)


def artifact(path: Path) -> Artifact:
    found = describe(path, Opening())
    return Artifact(path, "torch", found.precision, found.inputs, found.outputs)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "conv.pt2"
    batch = torch.export.Dim("batch")
    made = torch.export.export(
        ConvBnRelu().eval(), (torch.randn(3, 3, 8, 8),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(made, path)
    return path


def test_program_describes_itself_as_it_runs(program):
    found = artifact(program)
    described = describe(program, Opening())
    assert matches(program, Opening())
    assert described.parameter_count == 8 * 27 + 4 * 8
    assert described.operators["aten.conv2d.default"] == 1
    with open_torch(found) as runner:
        assert runner.inputs == described.inputs == X
        for batch in (1, 3):
            outputs = runner(runner.example({"batch": batch}, 0))
    assert list(outputs) == [spec.name for spec in described.outputs]
    assert runner.outputs == described.outputs


def test_program_runs_as_the_network_it_was_exported_from(tmp_path):
    network = Lstm().eval()
    torch.export.save(torch.export.export(network, (torch.randn(2, 4, 6),)), tmp_path / "m.pt2")
    with open_torch(artifact(tmp_path / "m.pt2")) as runner:
        feeds = runner.example({}, 0)
        got = runner(feeds)
    with torch.inference_mode():
        want = network(torch.from_numpy(feeds["x"]))
    assert list(got) == ["output_0", "output_1", "output_2"]
    # Unrolled step by step instead of the fused kernel: float32 sums in another order.
    np.testing.assert_allclose(got["output_0"], want[0].numpy(), atol=1e-6)


EVIL = "__import__('os').mkdir('convkit-was-executed')"


@pytest.mark.parametrize(
    "poison",
    [
        lambda p: p["graph_module"]["graph"]["nodes"][0].update(target="torch.os.system"),
        lambda p: p["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"].update(
            expr_str=EVIL
        ),
        lambda p: p.update(guards_code=[EVIL]),
        lambda p: p["graph_module"]["graph"]["inputs"][-1]["as_tensor"].update(name=f"x={EVIL}"),
    ],
    ids=["call target", "size expression", "guard", "argument name"],
)
def test_program_with_code_is_refused_and_nothing_runs(program, tmp_path, monkeypatch, poison):
    monkeypatch.chdir(tmp_path)
    path = rewritten(program, tmp_path / "evil.pt2", poison)
    for act in (lambda: describe(path, Opening()), lambda: load(artifact(path))):
        with pytest.raises(UnsafeError):
            act()
    assert not (tmp_path / MARKER).exists()


def test_program_with_a_pickle_or_a_library_is_refused(program, tmp_path):
    pickled = io.BytesIO()
    torch.save(Exploding(), pickled)
    for name, data in (("conv/data/sample_inputs/model.pt", pickled.getvalue()),
                       ("conv/data/aotinductor/model/x.so", b"\x7fELF")):  # fmt: skip
        path = rewritten(program, tmp_path / "evil.pt2", lambda p: None, {name: data})
        with pytest.raises(UnsafeError):
            describe(path, Opening())


def test_damaged_program_is_a_model_error(program, tmp_path):
    path = rewritten(program, tmp_path / "m.pt2", lambda p: p.pop("graph_module"))
    with pytest.raises(ModelError, match="damaged"):
        describe(path, Opening())


def rewritten(source: Path, target: Path, change, replaced=()) -> Path:
    replaced = dict(replaced)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("models/model.json"):
                document = json.loads(data)
                change(document)
                data = json.dumps(document).encode()
            new.writestr(name, replaced.pop(name, data))
        for name, data in replaced.items():
            new.writestr(name, data)
    return target
