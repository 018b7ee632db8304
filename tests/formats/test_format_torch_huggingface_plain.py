"""Folders with quantized or adapted weights, described and loaded as plain float32 networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from convkit.artifact import Artifact, Opening, Precision
from convkit.errors import ModelError, UnsupportedError, WeightsMismatchError
from convkit.formats.torch import describe, load, open_torch
from tests.checkpoint.packed_layers import GROUP, packed_state
from tests.checkpoint.tiny_language_models import (
    SIZES,
    folder_of,
    gpt2,
    llama,
    logits,
    transformers,
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def artifact(path: Path, **opening: Any) -> Artifact:
    stated = Opening(**opening)
    found = describe(path, stated)
    return Artifact(path, "torch", found.precision, found.inputs, found.outputs, (), stated)


def settings(method: str) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, "bits": 4, "group_size": GROUP}}


@pytest.fixture(scope="module", params=[4, 8])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder that transformers and bitsandbytes wrote, and their network."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes quantizes")
    path = tmp_path_factory.mktemp("bitsandbytes")
    llama().save_pretrained(path / "base")
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=request.param == 4,
        load_in_8bit=request.param == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    network = transformers.LlamaForCausalLM.from_pretrained(
        path / "base", quantization_config=how, device_map="cpu", dtype=torch.float32
    )
    network.generation_config.max_new_tokens = 7
    network.save_pretrained(path / "m")
    return path / "m", network


def test_what_bitsandbytes_quantized_loads_as_the_network_it_dequantizes_to(quantized: Any) -> None:
    path, network = quantized
    plain = load(artifact(path))
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    assert not hasattr(plain.config, "quantization_config")
    assert (plain.config.use_cache, plain.generation_config.max_new_tokens) == (False, 7)
    assert torch.equal(logits(plain), logits(network.dequantize(dtype=torch.float32)))


def test_quantized_weights_count_as_the_numbers_they_stand_for(quantized: Any) -> None:
    path, _ = quantized
    found = describe(path, Opening())
    assert found.parameter_count == llama().num_parameters()
    is_4_bits = found.details["quantization"].startswith("nf4")
    assert found.precision is (Precision.Q4 if is_4_bits else Precision.INT8)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_packed_weights_load_as_the_integers_they_hold(tmp_path: Path, method: str) -> None:
    network = llama()
    packed, plain = packed_state(network.state_dict(), method)
    path = folder_of(tmp_path / "m", packed, {**network.config.to_dict(), **settings(method)})
    network.load_state_dict(plain)
    found = artifact(path)
    assert torch.equal(logits(load(found)), logits(network))
    assert found.precision is Precision.Q4
    assert describe(path, Opening()).parameter_count == network.num_parameters()
    with open_torch(found) as runner:
        feeds = runner.example({"batch": 2, "sequence": 5}, 0)
        assert runner(feeds)["logits"].shape == (2, 5, SIZES["vocab_size"])


def test_packed_experts_are_stacked_by_transformers_itself(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    from safetensors.torch import load_file

    state = load_file(tmp_path / "base/model.safetensors")
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in state
    packed, plain = packed_state(state, "awq")
    words = json.loads((tmp_path / "base/config.json").read_text())
    quantized = folder_of(tmp_path / "awq", packed, {**words, **settings("awq")})
    reference = folder_of(tmp_path / "plain", plain, {**words, "dtype": "float32"})
    want = transformers.MixtralForCausalLM.from_pretrained(reference).eval()
    assert torch.equal(logits(load(artifact(quantized))), logits(want))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_an_adapter_is_part_of_the_network(tmp_path: Path, make: Any) -> None:
    peft = pytest.importorskip("peft", reason="peft makes the adapter")
    network = make()
    network.save_pretrained(tmp_path / "base")
    targets = ["q_proj", "c_attn", "c_proj", "down_proj"]
    names = [
        name for name in targets if any(k.endswith(f"{name}.weight") for k in network.state_dict())
    ]
    how = peft.LoraConfig(
        r=4, target_modules=names, init_lora_weights=False, fan_in_fan_out=make is gpt2
    )
    before = logits(network)
    made = peft.get_peft_model(network, how).eval()
    made.save_pretrained(tmp_path / "adapter")
    found = describe(tmp_path / "base", Opening(adapter=tmp_path / "adapter"))
    assert (found.precision, found.details["adapter_rank"]) == (Precision.FP32, 4)
    plain = load(artifact(tmp_path / "base", adapter=tmp_path / "adapter"))
    torch.testing.assert_close(logits(plain), logits(made), rtol=0, atol=2e-5)
    assert (before - logits(made)).abs().max() > 1e-3


def test_describing_packed_weights_needs_no_framework(tmp_path: Path) -> None:
    packed, _ = packed_state(llama().state_dict(), "gptq")
    path = folder_of(tmp_path / "m", packed, settings("gptq"))
    code = (
        "import sys; from pathlib import Path; from convkit.artifact import Opening;"
        "from convkit.formats.torch import describe;"
        f"d = describe(Path({str(path)!r}), Opening());"
        "assert not {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules);"
        "print(d.precision, d.parameter_count, d.details['quantization'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count = llama().num_parameters()
    assert done.stdout.strip() == f"q4 {count} GPTQ, 4 bits in groups of {GROUP}"


def test_a_method_that_is_not_read_is_still_described(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "hqq"}}
    path = folder_of(tmp_path / "m", {"w": torch.ones(3, 5)}, config)
    found = describe(path, Opening())
    assert (found.parameter_count, found.details["quantization"]) == (15, "hqq")


def test_layers_that_are_missing_are_named(tmp_path: Path) -> None:
    network = llama()
    packed, _ = packed_state(network.state_dict(), "gptq")
    lacking = {name: t for name, t in packed.items() if "layers.1.mlp.up_proj" not in name}
    path = folder_of(tmp_path / "m", lacking, {**network.config.to_dict(), **settings("gptq")})
    with pytest.raises(WeightsMismatchError, match=r"up_proj\.weight"):
        load(artifact(path))


def test_damage_is_told_in_the_words_of_the_reader(tmp_path: Path) -> None:
    network = llama()
    packed, _ = packed_state(network.state_dict(), "gptq")
    packed["model.layers.0.mlp.up_proj.g_idx"][:] = 99
    path = folder_of(tmp_path / "m", packed, {**network.config.to_dict(), **settings("gptq")})
    with pytest.raises(ModelError, match=r"up_proj\.weight' do not fit each other"):
        load(artifact(path))


def test_quantized_weights_of_a_network_in_the_folder_are_refused(tmp_path: Path) -> None:
    own = {
        "architectures": ["OwnNet"],
        "auto_map": {"AutoModel": "net.OwnNet"},
        "model_type": "own",
    }
    packed, _ = packed_state(llama().state_dict(), "gptq")
    path = folder_of(tmp_path / "m", packed, {**own, **settings("gptq")})
    with pytest.raises(UnsupportedError, match="its own network code"):
        load(artifact(path, trust=True))
