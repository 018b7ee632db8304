from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convkit.artifact import Artifact, Opening, Precision, TensorSpec
from convkit.errors import (
    InputsUnknownError,
    ModelError,
    UnknownNameError,
    UnsafeError,
    UsageError,
    WeightsMismatchError,
)
from convkit.formats.torch import describe, load, matches, open_torch
from tests import material
from tests.tiny_models import ConvBnRelu, EmbeddingMean

X = (TensorSpec("x", "float32", ("batch", 3, 8, 8)),)
MARKER = "convkit-was-executed"


class Exploding:
    """Unpickling one would create a file."""

    def __reduce__(self):
        return os.mkdir, (MARKER,)


class Nothing:
    """No network."""


class Bare(nn.Module):
    """Says nothing of its inputs."""

    def forward(self, first, second=None):
        return first


class WithExample(nn.Module):
    """Carries an example, as Lightning modules do; gives a nested result."""

    example_input_array = torch.ones(2, 5)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, features):
        y = self.linear(features)
        return {"logits": y, "nothing": None, "states": (y * 2, [y + 1]), "count": 3}


def with_example_tuple():
    return EmbeddingMean(), (torch.tensor([[3, 5, 2, 0]]),)


def needs_an_argument(width):
    return nn.Linear(width, 1)


NOT_CALLABLE = 3


def artifact(path: Path, opening: Opening | None = None) -> Artifact:
    opening = opening or Opening()
    found = describe(path, opening)
    return Artifact(path, "torch", found.precision, found.inputs, found.outputs, (), opening)


def factory(name: str, **more) -> Opening:
    return Opening(factory=f"{__name__}:{name}", **more)


def this_file() -> Path:
    return Path(__file__)


def save(path: Path, thing: object, *, legacy: bool = False) -> Path:
    torch.save(thing, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.fixture
def conv_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return ConvBnRelu().state_dict()


def conv_opening(**more) -> Opening:
    return Opening(factory="tests.tiny_models:ConvBnRelu", inputs=X, **more)


# Recognition


def test_weight_files_are_recognised_by_content(tmp_path, conv_state):
    zipped = save(tmp_path / "a.pt", conv_state)
    legacy = save(tmp_path / "b.pth", conv_state, legacy=True)
    save_file(conv_state, tmp_path / "c.safetensors")
    assert all(matches(p, Opening()) for p in (zipped, legacy, tmp_path / "c.safetensors"))


def test_torchscript_and_other_archives_are_not_torch(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    np.savez(tmp_path / "arrays.npz", x=np.ones(3))
    (tmp_path / "noise.pt").write_bytes(bytes(range(1, 200)))
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "saved_model.pb").write_bytes(b"x")
    names = ("script.pt", "arrays.npz", "noise.pt", "saved_model", "absent.pt")
    assert not any(matches(tmp_path / name, Opening()) for name in names)


@pytest.mark.parametrize("legacy", [False, True])
def test_headers_tell_parameters_and_precision_without_pytorch(tmp_path, conv_state, legacy):
    half = {k: v.half() if v.is_floating_point() else v for k, v in conv_state.items()}
    path = save(tmp_path / "half.pt", {"epoch": 3, "model": {"net": half}}, legacy=legacy)
    code = (
        "import sys; from pathlib import Path; from convkit.artifact import Opening;"
        "from convkit.formats.torch import describe;"
        f"d = describe(Path({str(path)!r}), Opening());"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules;"
        "print(d.precision, d.parameter_count, d.details['weights_key'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count = sum(v.numel() for v in half.values() if v.is_floating_point())
    assert done.stdout.split() == ["fp16", str(count), "model.net"]


# Weights in all their containers


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_weights_from_every_container_give_the_network_that_wrote_them(tmp_path, conv_state, kind):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(conv_state, path)
    else:
        save(path, conv_state, legacy=kind == "legacy")
    network = ConvBnRelu().eval()
    network.load_state_dict(conv_state)
    with open_torch(artifact(path, conv_opening())) as runner:
        feeds = runner.example({"batch": 2}, 0)
        (got,) = runner(feeds).values()
    with torch.inference_mode():
        want = network(torch.from_numpy(feeds["x"])).numpy()
    np.testing.assert_array_equal(got, want)  # the same kernels on the same numbers


def test_nested_weights_need_their_key_and_the_hint_names_it(tmp_path, conv_state):
    path = save(tmp_path / "ckpt.pt", {"step": 1, "model_state": conv_state})
    with pytest.raises(UsageError, match="does not hold its weights at the top") as caught:
        load(artifact(path, conv_opening()))
    assert "ckpt.pt:model_state" in caught.value.hint
    load(artifact(path, conv_opening(weights_key="model_state")))
    with pytest.raises(UsageError, match="no key 'model_stat'"):
        load(
            Artifact(path, "torch", Precision.FP32, opening=conv_opening(weights_key="model_stat"))
        )


def test_prefix_of_data_parallel_is_taken_off(tmp_path, conv_state):
    wrapped = {f"module.{k}": v for k, v in conv_state.items()}
    network = load(artifact(save(tmp_path / "w.pt", wrapped), conv_opening()))
    torch.testing.assert_close(network.conv.weight, conv_state["conv.weight"], rtol=0, atol=0)


def test_a_checkpoint_that_holds_itself_is_described(tmp_path, conv_state):
    checkpoint = {"model": conv_state}
    checkpoint["again"] = checkpoint
    torch.save(checkpoint, tmp_path / "loop.pt")
    found = describe(tmp_path / "loop.pt", Opening())
    assert found.details["weights_key"] == "model"


def test_first_five_differing_keys_are_named(tmp_path, conv_state):
    wrong = dict(conv_state)
    wrong["conv.weight"] = torch.zeros(8, 4, 3, 3)
    del wrong["norm.weight"]
    wrong |= {f"head.{i}.bias": torch.zeros(1) for i in range(6)}
    path = save(tmp_path / "w.pt", wrong)
    with pytest.raises(WeightsMismatchError) as caught:
        load(artifact(path, conv_opening()))
    text = str(caught.value)
    assert "8 keys differ" in text
    assert "conv.weight: file 8x4x3x3, network 8x3x3x3" in text
    assert "missing      norm.weight" in text
    assert "head.2.bias" in text
    assert "head.3.bias" not in text


def test_a_parameter_outside_every_layer_may_be_left_over(tmp_path, conv_state):
    path = save(tmp_path / "w.pt", conv_state | {"loss_scale": torch.ones(1)})
    load(artifact(path, conv_opening()))
    alone = save(tmp_path / "alone.pt", nn.Linear(2, 2).state_dict())
    with pytest.raises(WeightsMismatchError):  # nothing is filled, all is left over
        load(artifact(alone, factory("Bare")))


def test_a_half_precision_file_gives_a_half_precision_network(tmp_path):
    state = {k: v.half() for k, v in nn.Linear(5, 3).state_dict().items()}
    path = save(tmp_path / "w.pt", {f"linear.{k}": v for k, v in state.items()})
    found = artifact(path, factory("WithExample"))
    assert found.precision is Precision.FP16
    assert load(found).linear.weight.dtype is torch.float16


def test_bare_weights_can_be_described_but_ask_for_their_network(tmp_path, conv_state):
    path = save(tmp_path / "w.pt", conv_state)
    assert describe(path, Opening()).parameter_count == 8 * 27 + 4 * 8
    with pytest.raises(UsageError, match="weights only") as caught:
        open_torch(artifact(path))
    assert f"--weights {path}" in caught.value.hint


# Damage


@pytest.mark.parametrize("kind", ["zip.pt", "legacy.pth", "flat.safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_weights_are_refused_with_their_size(tmp_path, conv_state, kind, share):
    path = tmp_path / kind
    if kind.endswith("safetensors"):
        save_file(conv_state, path)
    else:
        save(path, conv_state, legacy=kind == "legacy.pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError) as caught:
        describe(path, conv_opening())
    assert str(len(whole[: int(len(whole) * share)])) in str(caught.value)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors", "w.bin", "w.pt2"])
@pytest.mark.parametrize("content", [b"", os.urandom(3000), b"\x80\x02" + os.urandom(500)])
def test_empty_and_random_files_are_model_errors(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises((ModelError, UnsafeError)):
        describe(path, conv_opening())


def test_missing_file_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        describe(tmp_path / "absent.pt", Opening())


def test_safetensors_with_a_huge_header_length_allocates_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(ModelError, match="not a safetensors file"):
        describe(path, Opening())


# Code in pickles


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_with_code_is_refused_and_nothing_runs(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "evil.pt", {"w": torch.ones(2), "x": Exploding()}, legacy=legacy)
    for act in (describe, lambda p, o: load(Artifact(p, "torch", Precision.FP32, opening=o))):
        with pytest.raises(UnsafeError, match=r"mkdir") as caught:
            act(path, Opening())
        assert caught.value.exit_code == 9
        with pytest.raises(UnsafeError):
            act(path, conv_opening())
    describe(path, Opening(trust=True))  # even trusted, describing runs nothing
    assert not (tmp_path / MARKER).exists()


def test_plain_pickle_with_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Exploding()))
    assert matches(path, Opening())
    with pytest.raises(UnsafeError, match="mkdir"):
        describe(path, Opening())
    assert not (tmp_path / MARKER).exists()


def test_pickled_module_opens_only_with_trust(tmp_path):
    path = save(tmp_path / "module.pt", nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(UnsafeError, match=r"torch\.nn\.modules"):
        describe(path, Opening())
    opening = Opening(trust=True, inputs=(TensorSpec("input", "float32", ("batch", 4)),))
    found = artifact(path, opening)
    assert describe(path, opening).parameter_count == 10
    with open_torch(found) as runner:
        assert runner(runner.example({"batch": 3}, 0))["output"].shape == (3, 2)


# Factories


def test_factory_without_weights_is_the_same_at_each_opening():
    found = artifact(Path(material.__file__).with_name("tiny_models.py"), conv_opening())
    first, second = load(found), load(found)
    assert torch.equal(first.conv.weight, second.conv.weight)
    assert not first.training


def test_inputs_come_from_the_network_and_outputs_get_names():
    with open_torch(artifact(this_file(), factory("WithExample"))) as runner:
        assert runner.inputs == (TensorSpec("features", "float32", ("batch", 5)),)
        for batch in (2, 3):
            outputs = runner(runner.example({"batch": batch}, 0))
        assert list(outputs) == ["logits", "states.0", "states.1.0"]
        assert runner.outputs[0] == TensorSpec("logits", "float32", ("batch", 3))


def test_factory_may_return_example_inputs_which_bound_ids():
    with open_torch(artifact(this_file(), factory("with_example_tuple"))) as runner:
        assert runner.inputs == (TensorSpec("ids", "int64", ("batch", 4)),)
        assert runner.example({"batch": 50}, 0)["ids"].max() <= 5


def test_unknown_inputs_ask_with_the_names_of_forward():
    with pytest.raises(InputsUnknownError) as caught:
        open_torch(artifact(this_file(), factory("Bare")))
    assert '--input "first=' in caught.value.hint


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("WithExampel", UnknownNameError, "Did you mean 'WithExample'"),
        ("NOT_CALLABLE", UsageError, "must be callable"),
        ("Nothing", ModelError, "gave a Nothing, not a torch.nn.Module"),
        ("needs_an_argument", ModelError, "called without arguments"),
    ],
)
def test_a_factory_that_is_none_is_explained(name, error, words):
    with pytest.raises(error) as caught:
        load(Artifact(this_file(), "torch", Precision.FP32, opening=factory(name)))
    assert words in str(caught.value)


def test_failing_imports_are_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_network.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "fine_network.py").write_text(
        "from torch import nn\nmake = lambda: nn.Linear(2, 1)\n"
    )
    for name, words in (("broken_network", "pip install no_such_package"), ("absent", "no Python")):
        opening = Opening(factory=f"{name}:make")
        with pytest.raises(ModelError, match=words):
            load(Artifact(tmp_path / "broken_network.py", "torch", Precision.FP32, opening=opening))
    opening = Opening(factory="fine_network:make")  # the working folder is importable
    load(Artifact(tmp_path / "fine_network.py", "torch", Precision.FP32, opening=opening))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(64 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelError, match="out of proportion"):
        describe(path, Opening())


def test_a_pickle_cannot_write_into_the_reader_or_its_headers(tmp_path):
    """BUILD on a tensor or on what builds tensors would change what later files are read as."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
    tensor = rebuild + storage + b"I0\n(I4\nt(I1\ntI00\nNtR"
    for target in (rebuild, tensor):
        path = tmp_path / "w.pkl"
        path.write_bytes(b"\x80\x02" + target + b"}S'dtype'\nS'evil'\nsb.")
        with pytest.raises(ModelError):
            describe(path, Opening())
