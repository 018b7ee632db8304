"""transformers itself says which layers it gives to bitsandbytes."""

from __future__ import annotations

from typing import Any

import pytest

from convkit.errors import UnsupportedError, UsageError
from convkit.quantization import bitsandbytes_layers
from convkit.quantization.bitsandbytes_layers import Layers, chosen, is_left_out, layers_of

torch = pytest.importorskip("torch", reason="PyTorch makes the networks")
transformers = pytest.importorskip("transformers", reason="transformers makes the networks")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes takes their layers")

SMALL = {"num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "num_local_experts": 2}


def network_of(name: str, **changes: Any) -> Any:
    kind = getattr(transformers, name)
    config = kind.config_class(**changes)
    for key, value in SMALL.items():
        if hasattr(config, key):
            setattr(config, key, value)
    if hasattr(config, "layer_types") and config.layer_types:
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        return kind(config)


def taken_by_transformers(network: Any) -> set[str]:
    """The layers that become bitsandbytes' when this network is loaded."""
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer

    left = HfQuantizer.get_modules_to_not_convert(network, None, network._keep_in_fp32_modules)
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True)
    replace_with_bnb_linear(network, left, settings)
    kind = bitsandbytes.nn.Linear4bit
    return {name for name, module in network.named_modules() if isinstance(module, kind)}


def assert_same_layers(network: Any) -> Layers:
    config = {**network.config.to_dict(), "architectures": [type(network).__name__]}
    layers = layers_of(config, list(network.state_dict()))
    assert set(chosen(layers, ()).values()) == taken_by_transformers(network)
    return layers


@pytest.mark.parametrize("name", sorted(bitsandbytes_layers._DECODERS))
def test_names_of_decoders_tell_what_transformers_quantizes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(name)
    monkeypatch.delattr(bitsandbytes_layers, "_empty_network")  # names are enough
    assert_same_layers(network)


@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "GPT2LMHeadModel", "MixtralForCausalLM"]
)
def test_other_networks_are_asked_what_transformers_quantizes(name: str) -> None:
    layers = assert_same_layers(network_of(name))
    assert bool(layers.turned) == (name == "GPT2LMHeadModel")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["T5ForConditionalGeneration", "ViTForImageClassification", "WhisperForConditionalGeneration",
     "OPTForCausalLM", "BloomForCausalLM", "GPTNeoXForCausalLM", "Qwen3MoeForCausalLM"],
)  # fmt: skip
def test_networks_of_all_kinds_are_asked_what_transformers_quantizes(name: str) -> None:
    assert_same_layers(network_of(name))


def test_weights_under_names_of_the_network_inside_belong_to_the_same_layers() -> None:
    network = network_of("BertForSequenceClassification")
    config = {**network.config.to_dict(), "architectures": ["BertForSequenceClassification"]}
    names = [name.removeprefix("bert.") for name in network.state_dict()]
    layers = layers_of(config, names)
    weight = "encoder.layer.0.attention.self.query.weight"
    assert layers.modules[weight] == f"bert.{weight.removesuffix('.weight')}"
    assert not layers.strange


@pytest.mark.parametrize(
    ("pattern", "module", "fits"),
    [
        ("layer.1", "layer.1.attn", True),
        ("layer.1", "layer.11.attn", False),
        ("mlp.gate", "mlp.gate_proj", False),
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("model.layers.(0|1)", "model.layers.1.mlp.up_proj", True),
    ],
)
def test_patterns_fit_whole_names_from_the_beginning_or_ends(
    pattern: str, module: str, fits: bool
) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    assert is_left_out(module, [pattern]) is fits
    assert should_convert_module(module, [pattern]) is not fits


def test_a_name_that_fits_no_layer_is_refused_with_the_nearest() -> None:
    layers = Layers({"a.q_proj.weight": "a.q_proj", "lm_head.weight": "lm_head"})
    with pytest.raises(UsageError, match="No linear layer is called 'q_prj'") as found:
        chosen(layers, ["q_prj"])
    assert found.value.hint == "Did you mean 'q_proj'?"
    with pytest.raises(UsageError, match="regular expression"):
        chosen(layers, ["q_proj("])


def test_a_model_without_a_layer_to_quantize_is_refused() -> None:
    layers = Layers({"a.q_proj.weight": "a.q_proj", "lm_head.weight": "lm_head"})
    with pytest.raises(UnsupportedError, match="no linear layer") as found:
        chosen(layers, ["q_proj"])
    assert "left out: a.q_proj, lm_head" in found.value.why[0]
    with pytest.raises(UnsupportedError, match="has no network for NobodysModel"):
        layers_of({"architectures": ["NobodysModel"], "model_type": "nobody"}, ["a.weight"])
