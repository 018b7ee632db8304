from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from convkit.artifact import Artifact, Opening, Precision, TensorSpec
from convkit.errors import (
    ModelError,
    SamplesError,
    UnsafeError,
    UnsupportedError,
    WeightsMismatchError,
)
from convkit.formats.torch import describe, load, matches, open_torch
from tests import material
from tests.tiny_models import TINY_TRANSFORMER

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "model"
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**TINY_TRANSFORMER)).eval().save_pretrained(path)
    return path


@pytest.fixture
def folder(bert, tmp_path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "model"))


def artifact(path: Path, opening: Opening | None = None) -> Artifact:
    opening = opening or Opening()
    found = describe(path, opening)
    return Artifact(path, "torch", found.precision, found.inputs, found.outputs, (), opening)


def rewrite(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_folder_is_described_without_frameworks_as_it_opens(bert):
    code = (
        "import sys; from pathlib import Path; from convkit.artifact import Opening;"
        "from convkit.formats.torch import describe;"
        f"d = describe(Path({str(bert)!r}), Opening());"
        "assert not {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules);"
        "print(d.precision, d.parameter_count, d.details['architecture'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    network = transformers.BertModel.from_pretrained(bert)
    assert done.stdout.split() == ["fp32", str(network.num_parameters()), "BertModel"]
    with open_torch(artifact(bert)) as runner:
        assert runner.inputs == describe(bert, Opening()).inputs


def test_folder_runs_as_transformers_does(bert):
    network = transformers.AutoModel.from_pretrained(bert).eval()
    with open_torch(artifact(bert)) as runner:
        for batch, length in ((1, 5), (3, 7)):
            feeds = runner.example({"batch": batch, "sequence": length}, 1)
            got = runner(feeds)
            with torch.inference_mode():
                want = network(**{k: torch.from_numpy(v) for k, v in feeds.items()})
            for name in ("last_hidden_state", "pooler_output"):
                np.testing.assert_array_equal(got[name], want[name].numpy())
        assert [str(spec) for spec in runner.outputs] == [
            "last_hidden_state: float32[batch, sequence, 32]",
            "pooler_output: float32[batch, 32]",
        ]


def test_examples_make_sense(bert):
    with open_torch(artifact(bert)) as runner:
        feeds = runner.example({"batch": 3, "sequence": 9}, 4)
        again = runner.example({"batch": 3, "sequence": 9}, 4)
    assert feeds["input_ids"].max() < TINY_TRANSFORMER["vocab_size"]
    assert feeds["token_type_ids"].max() <= 1
    assert feeds["attention_mask"][0].all()
    assert not feeds["attention_mask"][-1, -1]  # padding, so that a mask that is ignored shows
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)


def test_sharded_and_pickled_weights_load_alike(bert, tmp_path):
    whole = load(artifact(bert)).state_dict()
    network = transformers.BertModel.from_pretrained(bert)
    network.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    (tmp_path / "pickled").mkdir()
    shutil.copy(bert / "config.json", tmp_path / "pickled")
    torch.save(network.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    for name in ("sharded", "pickled"):
        found = artifact(tmp_path / name)
        state = load(found).state_dict()
        assert all(torch.equal(state[key], whole[key]) for key in whole)
        count = describe(tmp_path / name, Opening()).parameter_count
        assert count == sum(p.numel() for p in network.parameters())


def test_missing_shard_is_named(bert, tmp_path):
    transformers.BertModel.from_pretrained(bert).save_pretrained(tmp_path, max_shard_size="30KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=lost.name):
        describe(tmp_path, Opening())


def test_an_index_that_leaves_the_folder_is_refused(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"embeddings.word_embeddings.weight": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeError, match="outside its folder"):
        describe(folder, Opening())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"architectures": ["BertMod', "not valid JSON"),
        ("[]", "names neither"),
        ('{"hidden_size": 3}', "names neither"),
    ],
)
def test_broken_config_is_a_model_error(folder, content, words):
    (folder / "config.json").write_text(content)
    assert matches(folder, Opening())
    with pytest.raises(ModelError, match=words):
        describe(folder, Opening())


def test_folder_without_config_or_weights_says_which(folder):
    (folder / "config.json").rename(folder / "config.old")
    with pytest.raises(ModelError, match=r"no config\.json"):
        describe(folder, Opening())
    (folder / "config.old").rename(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        describe(folder, Opening())


def test_truncated_weights_are_refused_with_sizes(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"truncated: it has \d+ bytes, its header promises \d+"):
        describe(folder, Opening())


def test_architecture_and_weights_that_do_not_fit_are_refused(folder):
    rewrite(folder, intermediate_size=64)
    with pytest.raises((ModelError, WeightsMismatchError)):
        load(artifact(folder))
    rewrite(folder, intermediate_size=48, architectures=["BertForTokenClassification"])
    with pytest.raises(WeightsMismatchError, match="classifier"):
        load(artifact(folder))


def test_weights_of_fewer_layers_than_config_says_are_counted(folder):
    rewrite(folder, num_hidden_layers=5)
    with pytest.raises(WeightsMismatchError) as refusal:
        load(artifact(folder))
    assert "The weights have 2 layers; config.json says 5" in refusal.value.hint


def test_weights_quantized_in_an_unread_way_are_told_so_whatever_transformers_lacks(folder):
    settings = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}
    rewrite(folder, quantization_config=settings)
    with pytest.raises(UnsupportedError, match="GPTQ, checkpoint_format marlin, which is not read"):
        load(artifact(folder))


def test_what_transformers_says_of_a_value_in_config_is_told_whole(folder):
    rewrite(folder, num_hidden_layers="two")
    with pytest.raises(ModelError) as refusal:
        load(artifact(folder))
    assert "num_hidden_layers" in str(refusal.value)
    assert "two" in str(refusal.value)


def test_weights_of_another_size_are_named_with_both_shapes(folder):
    rewrite(folder, intermediate_size=64)
    with pytest.raises(WeightsMismatchError) as caught:
        load(artifact(folder))
    assert any("intermediate.dense.weight: file 48x" in line for line in caught.value.why)


def test_an_input_that_the_network_does_not_take_is_refused(folder):
    given = Opening(inputs=(TensorSpec("nope", "int64", ("batch", 4)),))
    with pytest.raises(SamplesError, match="takes no 'nope'"):
        open_torch(artifact(folder, given))


def test_unknown_architecture_offers_the_nearest(folder):
    rewrite(folder, architectures=["BertModle"])
    with pytest.raises(UnsupportedError, match="BertModle") as caught:
        load(artifact(folder))
    assert "BertModel" in caught.value.hint


def test_network_code_in_the_folder_needs_trust(folder):
    (folder / "net.py").write_text("raise SystemExit('was run')\n")
    rewrite(folder, architectures=["OwnNet"], auto_map={"AutoModel": "net.OwnNet"})
    with pytest.raises(UnsafeError, match="auto_map"):
        load(artifact(folder))


def test_sentence_encoder_saved_without_its_pooler_opens_without_it(bert, tmp_path):
    network = transformers.BertModel.from_pretrained(bert, add_pooling_layer=False)
    network.save_pretrained(tmp_path / "m")
    with open_torch(artifact(tmp_path / "m")) as runner:
        assert list(runner(runner.example({}, 0))) == ["last_hidden_state"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_folder_keeps_its_precision(bert, tmp_path, dtype):
    transformers.BertModel.from_pretrained(bert).to(dtype).save_pretrained(tmp_path / "m")
    found = artifact(tmp_path / "m")
    assert found.precision in (Precision.FP16, Precision.BF16)
    with open_torch(found) as runner:
        array = runner(runner.example({}, 0))["last_hidden_state"]
    assert array.dtype.name == str(dtype).removeprefix("torch.")


def test_inputs_of_other_kinds_of_networks(tmp_path):
    t = transformers
    made = {
        "vit": t.ViTModel(t.ViTConfig(**TINY_TRANSFORMER, image_size=32, patch_size=8)),
        "t5": t.T5ForConditionalGeneration(
            t.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=50)
        ),
        "distilbert": t.DistilBertModel(
            t.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=50)
        ),
        "wav2vec2": t.Wav2Vec2Model(
            t.Wav2Vec2Config(
                **TINY_TRANSFORMER,
                conv_dim=(8,) * 7,
                num_conv_pos_embeddings=8,
                num_conv_pos_embedding_groups=2,
            )
        ),
    }
    seen = {}
    for name, network in made.items():
        network.save_pretrained(tmp_path / name)
        with open_torch(artifact(tmp_path / name)) as runner:
            runner(runner.example({"batch": 2}, 0))
            seen[name] = [str(spec) for spec in runner.inputs]
    text = "int64[batch, sequence]"
    assert seen["vit"] == ["pixel_values: float32[batch, 3, 32, 32]"]
    assert seen["distilbert"] == [f"input_ids: {text}", f"attention_mask: {text}"]
    assert seen["t5"][2] == "decoder_input_ids: int64[batch, decoder_sequence]"
    assert seen["wav2vec2"] == ["input_values: float32[batch, samples]"]


def test_command_line_process_leaves_the_compiler_out_and_can_still_load_it(bert):
    code = (
        "import os, sys; os.environ['CONVKIT_PROCESS'] = '1';"
        "from pathlib import Path; from convkit.formats.torch import *;"
        f"p = Path({str(bert)!r}); o = Opening(); d = describe(p, o);"
        "r = open_torch(Artifact(p, 'torch', d.precision, opening=o)); r(r.example({}, 0));"
        "assert 'torch._dynamo' not in sys.modules, 'loaded';"
        "import torch, torch._dynamo.eval_frame;"
        "f = torch.compile(lambda x: x + 1, backend='eager');"
        "assert f(torch.ones(1)).item() == 2"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_minilm_from_its_package_runs():
    path = material.minilm_folder()
    found = artifact(path)
    assert describe(path, Opening()).parameter_count == 22_713_216
    with open_torch(found) as runner:
        hidden = runner(runner.example({"batch": 2, "sequence": 5}, 0))["last_hidden_state"]
    assert hidden.shape == (2, 5, 384)
