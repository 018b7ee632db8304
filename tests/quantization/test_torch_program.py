"""Programs with quantized weights; PyTorch's eager networks judge, and its own loader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import convkit
from convkit.artifact import Precision
from convkit.errors import NoRouteError, UnsupportedError, UsageError
from convkit.formats.torch_program import describe_program
from convkit.quantization.torch_program_quantizing import MARK
from convkit.quantization.torch_program_weights import Outcome, quantize_program

torch = pytest.importorskip("torch", reason="PyTorch runs the programs")

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes self.recurrent")

SCHEMES = {"llm_int8": 30.0, "nf4": 12.0, "fp4": 10.0}
"""Least signal-to-noise ratios in dB; of Gaussian weights alone they are 44, 20 and 18."""


class Everything(torch.nn.Module):
    """An embedding that is also the output, a recurrent layer, convolutions, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(64, 128)
        self.recurrent = torch.nn.GRU(128, 64, batch_first=True)
        self.along = torch.nn.Conv1d(64, 96, 3, padding=1)
        self.linear = torch.nn.Linear(96, 128)
        self.small = torch.nn.Linear(128, 2)
        self.odd = torch.nn.Parameter(torch.randn(33, 128) / 8)

    def forward(self, ids: Any) -> dict[str, Any]:
        hidden, _ = self.recurrent(self.embedding(ids))
        hidden = self.along(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = torch.tanh(self.linear(hidden))
        tied = torch.nn.functional.linear(hidden, self.embedding.weight)
        return {"tied": tied, "small": self.small(hidden), "odd": hidden @ self.odd.T}


@pytest.fixture(scope="module")
def network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return Everything().eval()


IDS = torch.arange(21).reshape(3, 7)


def exported(network: Any) -> Any:
    batch = torch.export.Dim("batch", min=1, max=32)
    return torch.export.export(network, (IDS,), dynamic_shapes=({0: batch},))


def ratio_db(want: Any, got: Any) -> float:
    return float(10 * torch.log10(want.square().sum() / (got - want).square().sum()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_kind_of_layer_computes_nearly_the_same_after_loading(
    tmp_path: Path, network: Any, scheme: str
) -> None:
    program = exported(network)
    outcome = quantize_program(program, scheme, (), 64)
    assert outcome.element_count == sum(p.numel() for p in network.parameters())
    assert "small" not in outcome.modules
    torch.export.save(program, tmp_path / "m.pt2")
    loaded = torch.export.load(tmp_path / "m.pt2").module()
    for ids in (IDS, IDS[:1], torch.arange(35).reshape(5, 7)):
        with torch.no_grad():
            want, got = network(ids), loaded(ids)
        for name, expected in want.items():
            assert got[name].shape == expected.shape
            assert ratio_db(expected, got[name]) > SCHEMES[scheme], name
    assert not any(
        tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() >= 4096
        for tensor in program.state_dict.values()
    )


def test_one_weight_in_two_places_is_kept_once(network: Any) -> None:
    program = exported(network)
    outcome = quantize_program(program, "llm_int8", (), 64)
    assert [m for m in outcome.modules if "embedding" in m] == ["embedding"]
    assert (outcome.multiplied, outcome.unpacked) == (3, 4)


def test_linear_layers_multiply_the_integers_that_their_scales_say(network: Any) -> None:
    layer = network.linear
    inputs = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(layer, (inputs,))
    assert quantize_program(program, "llm_int8", (), 64) == Outcome(("weight",), 1, 0, 128 * 97)
    steps = inputs.abs().amax(1, keepdim=True) / 127
    scales = layer.weight.abs().amax(1) / 127
    rows, columns = (inputs / steps).round().double(), (layer.weight / scales[:, None]).round()
    want = rows @ columns.double().T * steps * scales + layer.bias
    got = program.module()(inputs)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_unpacked_weights_are_what_codes_and_scales_of_bitsandbytes_stand_for(kind: str) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes unpacks")
    layer = torch.nn.Linear(128, 40, bias=False)
    program = torch.export.export(layer, (torch.eye(128),))
    quantize_program(program, kind, (), 64)
    packed, state = functional.quantize_4bit(layer.weight.detach(), quant_type=kind)
    want = functional.dequantize_4bit(packed, state)
    assert torch.equal(program.module()(torch.eye(128)).detach().T, want)


def test_layers_to_skip_stay_and_wrong_names_are_refused_with_the_nearest(network: Any) -> None:
    outcome = quantize_program(exported(network), "llm_int8", ["recurrent", "odd"], 64)
    assert outcome.modules == ("embedding", "along", "linear")
    with pytest.raises(UsageError) as found:
        quantize_program(exported(network), "llm_int8", ["alnog"], 64)
    assert found.value.hint == "Did you mean 'along'?"
    program = torch.export.export(torch.nn.Linear(4, 4), (torch.ones(1, 4),))
    with pytest.raises(UnsupportedError, match="no linear layer"):
        quantize_program(program, "llm_int8", (), 64)


FACTORY = """
import torch
def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(128, 256), torch.nn.ReLU(), torch.nn.Linear(256, 40)
    ).eval()
"""


@pytest.mark.parametrize("precision", ["int8", "q4"])
def test_networks_of_factories_become_programs_that_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    (tmp_path / f"factory_{precision}.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "m.pt2"
    report = convkit.convert(
        f"factory_{precision}:build", to="torch", precision=precision, out=out,
        inputs=["input=float32[batch,tokens,128]"],
    )  # fmt: skip
    assert report.passed
    described = describe_program(out)
    assert described.precision is Precision(precision)
    assert described.parameter_count == 128 * 256 + 256 + 256 * 40 + 40
    assert described.details["quantization"].endswith("by convkit")
    assert any("a call here" in note for step in report.steps for note in step.notes)
    with pytest.raises(NoRouteError):
        convkit.convert(out, to="torch", precision="q4" if precision == "int8" else "int8")


@pytest.mark.slow
def test_what_is_quantized_runs_where_there_is_only_pytorch(tmp_path: Path, network: Any) -> None:
    program = exported(network)
    quantize_program(program, "nf4", (), 64)
    torch.export.save(program, tmp_path / "m.pt2")
    code = (
        "import sys, torch; m = torch.export.load(sys.argv[1]).module();"
        "print(m(torch.zeros(2, 7, dtype=torch.long))['odd'].shape);"
        "assert not any(n.startswith(('convkit', 'torchao', 'bitsandbytes')) for n in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.pt2")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "torch.Size([2, 7, 33])", done.stderr


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"precision": "fp64", "words": "", "parameter_count": 1}']
)
def test_a_mark_that_says_nonsense_is_passed_over(tmp_path: Path, text: str) -> None:
    program = torch.export.export(torch.nn.Linear(4, 4), (torch.ones(1, 4),))
    torch.export.save(program, tmp_path / "m.pt2", extra_files={MARK: text})
    assert describe_program(tmp_path / "m.pt2").precision is Precision.FP32
