from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from convkit.artifact import Artifact, Opening, Precision, TensorSpec  # noqa: E402
from convkit.errors import (  # noqa: E402
    InputsUnknownError,
    ModelError,
    SamplesError,
    UnsafeError,
    UnsupportedError,
)
from convkit.formats.torchscript import torchscript  # noqa: E402
from tests import material, script_models  # noqa: E402
from tests.script_models import compile_network, save  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

_ROWS = (TensorSpec("x", "float32", ("batch", 6)),)


@pytest.fixture
def branch(tmp_path: Path) -> Artifact:
    """A scripted network with a branch; 56 weights."""
    network = script_models.SCRIPT_MODELS["DataBranch"].factory()
    return save(compile_network(network, "script"), tmp_path, _ROWS)


def rewritten(path: Path, change: dict[str, bytes | None]) -> Path:
    """A copy of an archive with records replaced, added or (None) left out."""
    out = path.with_name("rewritten.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        folder = source.namelist()[0].partition("/")[0]
        for name in source.namelist():
            record = name.partition("/")[2]
            data = change.get(record, source.read(name))
            if data is not None:
                target.writestr(name, data)
        for record in change.keys() - {n.partition("/")[2] for n in source.namelist()}:
            target.writestr(f"{folder}/{record}", change[record] or b"")
    return out


def test_archives_of_all_three_ways_are_recognised(tmp_path: Path) -> None:
    network = script_models.SCRIPT_MODELS["MultiOutput"].factory()
    for way in script_models.WAYS:
        artifact = save(compile_network(network, way, (torch.zeros(2, 6),)), tmp_path, _ROWS)
        assert torchscript.matches(artifact.path, Opening())


def test_state_dicts_programs_and_other_zips_are_left_to_others(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    torch.export.save(torch.export.export(network, (torch.zeros(2, 2),)), tmp_path / "program.pt2")
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    (tmp_path / "noise.pt").write_bytes(os.urandom(4096))
    (tmp_path / "empty.pt").write_bytes(b"")
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "missing.pt"):
        assert not torchscript.matches(path, Opening()), path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("way", script_models.WAYS)
def test_description_agrees_with_pytorch(dtype: str, way: str, tmp_path: Path) -> None:
    network = script_models.SCRIPT_MODELS["MultiOutput"].factory().to(getattr(torch, dtype))
    example = torch.zeros(2, 6, dtype=getattr(torch, dtype))
    artifact = save(compile_network(network, way, (example,)), tmp_path)
    described = torchscript.describe(artifact.path, Opening())
    assert described.precision is {
        "float32": Precision.FP32, "float16": Precision.FP16, "bfloat16": Precision.BF16
    }[dtype]  # fmt: skip
    assert described.parameter_count == sum(p.numel() for p in network.parameters())
    assert described.details["arguments"] == ["x: Tensor"]
    assert described.details["methods"] == ["forward"]


def test_signatures_are_read_from_the_code(tmp_path: Path) -> None:
    network = script_models.ScaledBy().eval()
    artifact = save(compile_network(network, "script"), tmp_path)
    described = torchscript.describe(artifact.path, Opening())
    assert described.details["arguments"] == ["x: Tensor", "mode: int"]
    assert described.details["returns"] == "Tensor"


def test_describing_imports_neither_pytorch_nor_numpy(branch: Artifact) -> None:
    code = (
        "import sys; from pathlib import Path; from convkit.artifact import Opening\n"
        "from convkit.formats.torchscript import torchscript\n"
        f"torchscript.describe(Path({str(branch.path)!r}), Opening())\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused_with_its_size(branch: Artifact, share: float) -> None:
    data = branch.path.read_bytes()
    cut = branch.path.with_name("cut.torchscript")
    cut.write_bytes(data[: int(len(data) * share)])
    assert torchscript.matches(cut, Opening())
    with pytest.raises(ModelError, match=f"{cut.stat().st_size} bytes"):
        torchscript.describe(cut, Opening())
    with pytest.raises(ModelError):
        torchscript.open(Artifact(cut, "torchscript", Precision.FP32))


def test_a_file_cut_within_its_code_is_known_without_the_suffix(branch: Artifact) -> None:
    data = branch.path.read_bytes()
    cut = branch.path.with_name("cut.pt")
    cut.write_bytes(data[: data.index(b"/code/") + 40])
    assert torchscript.matches(cut, Opening())


def test_a_flipped_byte_in_the_module_tree_is_noticed(branch: Artifact) -> None:
    with zipfile.ZipFile(branch.path) as archive:
        tree = next(i for i in archive.infolist() if i.filename.endswith("/data.pkl"))
        content = archive.read(tree)
    data = bytearray(branch.path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 0xFF
    bad = branch.path.with_name("bad.pt")
    bad.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="damaged"):
        torchscript.describe(bad, Opening())


def test_a_missing_weights_record_is_named(branch: Artifact) -> None:
    with pytest.raises(ModelError, match="damaged") as caught:
        torchscript.describe(rewritten(branch.path, {"data/0": None}), Opening())
    assert "data/0" in str(caught.value)


def test_weights_shorter_than_their_tensor_are_refused(branch: Artifact) -> None:
    with pytest.raises(ModelError) as caught:
        torchscript.describe(rewritten(branch.path, {"data/0": b"\0" * 8}), Opening())
    assert "8 bytes of" in str(caught.value)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pt"
    empty.write_bytes(b"")
    with pytest.raises(ModelError, match="empty"):
        torchscript.describe(empty, Opening())
    with pytest.raises(ModelError, match="no file"):
        torchscript.describe(tmp_path / "missing.pt", Opening())


def test_a_zip_bomb_is_refused_before_it_is_unpacked(branch: Artifact) -> None:
    bomb = branch.path.with_name("bomb.pt")
    with zipfile.ZipFile(branch.path) as source, zipfile.ZipFile(bomb, "w") as target:
        for info in source.infolist():
            is_tree = info.filename.endswith("/data.pkl")
            data = b"\0" * (64 << 20) if is_tree else source.read(info)
            method = zipfile.ZIP_DEFLATED if is_tree else zipfile.ZIP_STORED
            target.writestr(info.filename, data, method)
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(ModelError, match="out of proportion"):
        torchscript.describe(bomb, Opening())


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "a/../../evil", "a\\..\\evil"])
def test_record_names_that_leave_the_archive_are_unsafe(branch: Artifact, name: str) -> None:
    with zipfile.ZipFile(branch.path, "a") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, b"")
    with pytest.raises(UnsafeError, match="outside the archive"):
        torchscript.describe(branch.path, Opening())


class _WritesFile(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "stolen.bin")
        return x


def test_code_that_writes_files_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "writes.pt"
    torch.jit.script(_WritesFile()).save(str(path))
    with pytest.raises(UnsafeError, match="touches files"):
        torchscript.describe(path, Opening())
    assert torchscript.describe(path, Opening(trust=True)).parameter_count == 0


class _Calls:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_with_a_call_in_it_is_described_but_never_executed(branch: Artifact) -> None:
    marker = branch.path.with_name("executed")
    evil = pickle.dumps(_Calls(marker), protocol=2)
    path = rewritten(branch.path, {"data.pkl": evil})
    torchscript.describe(path, Opening())
    with pytest.raises(ModelError):
        torchscript.open(Artifact(path, "torchscript", Precision.FP32))
    assert not marker.exists()


def test_garbage_in_the_module_tree_is_refused(branch: Artifact) -> None:
    for garbage in (b"", b"\x80\x02", os.urandom(200), b"\x80\x02]" + b"(" * 5000 + b"."):
        with pytest.raises(ModelError):
            torchscript.describe(rewritten(branch.path, {"data.pkl": garbage}), Opening())


def test_unknown_inputs_are_asked_for_by_the_names_of_the_arguments(tmp_path: Path) -> None:
    artifact = save(compile_network(script_models.ScaledBy().eval(), "script"), tmp_path)
    with pytest.raises(InputsUnknownError) as caught:
        torchscript.open(artifact)
    assert "x: Tensor, mode: int" in str(caught.value)
    assert '--input "x=' in str(caught.value)


def test_an_input_that_is_no_argument_is_refused(tmp_path: Path, branch: Artifact) -> None:
    wrong = (TensorSpec("y", "float32", ("batch", 6)),)
    with pytest.raises(SamplesError, match="no argument 'y'"):
        torchscript.open(save(torch.jit.load(branch.path), tmp_path, wrong))


def test_a_number_argument_takes_a_value_that_the_code_compares_with(tmp_path: Path) -> None:
    artifact = save(compile_network(script_models.ScaledBy().eval(), "script"), tmp_path, _ROWS)
    with torchscript.open(artifact) as runner:
        assert [str(spec) for spec in runner.inputs] == [
            "x: float32[batch, 6]",
            "mode: int64[]",
        ]
        feeds = runner.example({"batch": 2}, 0)
        assert feeds["mode"] in (7, 9)
        assert runner(feeds)["output"].shape == (2, 4)


class _TwoTables(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(500, 4)
        self.kinds = torch.nn.Embedding(2, 4)

    def forward(self, ids: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        return self.words(ids) + self.kinds(kinds)


def test_ids_are_drawn_small_only_where_a_table_is_small(tmp_path: Path) -> None:
    specs = tuple(TensorSpec(name, "int64", ("batch", "length")) for name in ("ids", "kinds"))
    artifact = save(compile_network(_TwoTables(), "script"), tmp_path, specs)
    with torchscript.open(artifact) as runner:
        feeds = runner.example({"batch": 3}, 0)
    assert feeds["ids"].max() > 1
    assert feeds["kinds"].max() == 1


def test_every_call_starts_from_the_state_as_loaded(tmp_path: Path) -> None:
    artifact = save(compile_network(script_models.RunningMean().eval(), "script"), tmp_path, _ROWS)
    ones = np.ones((3, 6), np.float32)
    with torch.no_grad():
        fresh = torch.jit.load(artifact.path)(torch.from_numpy(ones)).numpy()
    with torchscript.open(artifact) as runner:
        first = runner({"x": ones})["output"]
        runner({"x": np.zeros((5, 6), np.float32)})
        again = runner({"x": ones})["output"]
    assert np.array_equal(first, fresh)
    assert np.array_equal(again, fresh)


def test_a_module_with_reset_states_is_reset_before_each_call() -> None:
    specs = (TensorSpec("x", "float32", ("batch", 512)),)
    path = material.silero_vad_file()
    described = torchscript.describe(path, Opening(inputs=specs))
    artifact = Artifact(path, "torchscript", described.precision, specs)
    with torchscript.open(artifact) as runner:
        feeds = runner.example({"batch": 2}, 0)
        assert feeds["sr"] == 16000
        first = runner(feeds)["output"]
        assert np.array_equal(runner(feeds)["output"], first)
    module = torch.jit.load(path).eval()
    module.reset_states()
    with torch.no_grad():
        assert np.array_equal(module(torch.from_numpy(feeds["x"]), 16000).numpy(), first)


class _Nested(torch.nn.Module):
    def forward(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]:
        return x, (x + 1, x + 2), {"key": x + 3}


def test_outputs_are_named_by_position_key_and_nesting(tmp_path: Path) -> None:
    artifact = save(compile_network(_Nested(), "script"), tmp_path, _ROWS)
    with torchscript.open(artifact) as runner:
        outputs = runner({"x": np.zeros((1, 6), np.float32)})
    assert {name: float(array[0, 0]) for name, array in outputs.items()} == {
        "output_0": 0.0,
        "output_1.0": 1.0,
        "output_1.1": 2.0,
        "output_2.key": 3.0,
    }


def test_a_dictionary_gives_its_keys(tmp_path: Path) -> None:
    network = script_models.NamedResults().eval()
    specs = (*_ROWS, TensorSpec("mask", "float32", ("batch", 1)))
    artifact = save(compile_network(network, "script"), tmp_path, specs)
    with torchscript.open(artifact) as runner:
        assert list(runner(runner.example({}, 0))) == ["logits", "hidden"]


def test_bfloat16_goes_in_and_out(tmp_path: Path) -> None:
    network = script_models.SCRIPT_MODELS["MultiOutput"].factory().bfloat16()
    specs = (TensorSpec("x", "bfloat16", ("batch", 6)),)
    artifact = save(compile_network(network, "script"), tmp_path, specs)
    with torchscript.open(artifact) as runner:
        outputs = runner(runner.example({"batch": 2}, 0))
    assert outputs["output_0"].dtype.name == "bfloat16"


class _TakesList(torch.nn.Module):
    def forward(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts)


def test_an_argument_that_is_no_tensor_or_number_is_named(tmp_path: Path) -> None:
    artifact = save(compile_network(_TakesList(), "script"), tmp_path)
    with pytest.raises(UnsupportedError, match="parts: List"):
        torchscript.open(artifact)


def test_loading_warns_of_nothing(branch: Artifact) -> None:
    code = (
        "import warnings; warnings.simplefilter('error', DeprecationWarning)\n"
        "import torch; from pathlib import Path; from convkit.artifact import *\n"
        "from convkit.formats.torchscript import torchscript as t\n"
        f"t.load(Artifact(Path({str(branch.path)!r}), 'torchscript', Precision.FP32))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_archives_written_with_extra_inputs_open_without_being_told(tmp_path: Path) -> None:
    module = compile_network(script_models.SCRIPT_MODELS["MultiOutput"].factory(), "script")
    document = '{"inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 6]}]}'
    buffer = io.BytesIO()
    torch.jit.save(module, buffer, _extra_files={"convkit.json": document})
    path = tmp_path / "model.pt"
    path.write_bytes(buffer.getvalue())
    assert torchscript.describe(path, Opening()).inputs == _ROWS
    with torchscript.open(Artifact(path, "torchscript", Precision.FP32)) as runner:
        assert runner.inputs == _ROWS
