from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from convkit.artifact import Artifact, Opening, Precision
from convkit.converters.torch_to_onnx.mobius import mobius
from convkit.errors import RungSkipped
from convkit.formats import torch as torch_format
from convkit.step import Work
from tests import material
from tests.tiny_models import TINY_TRANSFORMER

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("mobius", reason="mobius-onnx is not installed")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "model"
    torch.manual_seed(0)
    network = transformers.BertModel(transformers.BertConfig(**TINY_TRANSFORMER))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # as initialized, attention hardly matters
    network.save_pretrained(path)
    return path


def convert(path: Path, out: Path, **options: object) -> onnx.ModelProto:
    found = torch_format.describe(path, Opening())
    source = Artifact(path, "torch", found.precision, found.inputs)
    with torch_format.open_torch(source) as runner:
        for length in (5, 7):
            feeds = runner.example({"batch": length - 3, "sequence": length}, 0)
            runner(feeds)
        source = Artifact(path, "torch", found.precision, runner.inputs, runner.outputs)
    work = Work([feeds], torch_format.load, print, lambda what, done, total: None)
    mobius.run(source, out, work, **options)
    return onnx.load(out)


def assert_agrees(path: Path, out: Path, *, atol: float) -> None:
    """Compares with transformers where whole rows, parts of rows and nothing are padding."""
    network = transformers.BertModel.from_pretrained(path).eval()
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(3)
    for batch, length, padding in ((1, 9, 0), (3, 7, 2), (7, 7, 3), (2, 21, 20)):
        feeds = {
            "input_ids": generator.integers(0, 119, (batch, length)),
            "attention_mask": np.ones((batch, length), np.int64),
            "token_type_ids": generator.integers(0, 2, (batch, length)),
        }
        if padding:
            feeds["attention_mask"][-1, -padding:] = 0
        with torch.inference_mode():
            want = network(**{k: torch.from_numpy(v) for k, v in feeds.items()})
        got = session.run(None, feeds)
        np.testing.assert_allclose(got[0], want.last_hidden_state.float().numpy(), atol=atol)
        np.testing.assert_allclose(got[1], want.pooler_output.float().numpy(), atol=atol)


@pytest.mark.parametrize("opset", [20, 23])
def test_bert_agrees_with_transformers_padding_included(bert, tmp_path, opset):
    model = convert(bert, tmp_path / "m.onnx", opset=opset)
    # float32 sums in another order; layer norms keep values near 1.
    assert_agrees(bert, tmp_path / "m.onnx", atol=2e-5)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
    assert [i.name for i in model.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [o.name for o in model.graph.output] == ["last_hidden_state", "pooler_output"]
    dims = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", "sequence"]


def test_half_precision_weights_stay_half(bert, tmp_path):
    network = transformers.BertModel.from_pretrained(bert).to(torch.float16)
    network.save_pretrained(tmp_path / "half")
    model = convert(tmp_path / "half", tmp_path / "m.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT not in kinds
    assert onnx.TensorProto.FLOAT16 in kinds


def test_what_was_not_checked_is_left_to_the_next_rung(bert, tmp_path):
    copy = Path(shutil.copytree(bert, tmp_path / "m"))
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"model_type": "bert"', '"model_type": "lm"'))
    source = Artifact(copy, "torch", torch_format.describe(bert, Opening()).precision)
    work = Work([], torch_format.load, print, lambda what, done, total: None)
    with pytest.raises(RungSkipped, match="not one that was checked"):
        mobius.run(source, tmp_path / "m.onnx", work)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    factory = Artifact(tmp_path / "w.pt", "torch", source.precision, opening=Opening(factory="a:b"))
    with pytest.raises(RungSkipped, match="folders only"):
        mobius.run(factory, tmp_path / "m.onnx", work)


def test_an_opset_without_its_operators_is_left_to_the_next_rung(bert, tmp_path):
    with pytest.raises(RungSkipped, match="does not exist at opset 17"):
        convert(bert, tmp_path / "m.onnx", opset=17)


def test_minilm_agrees_and_its_source_is_untouched(tmp_path):
    path = material.minilm_folder()
    source = Artifact(path, "torch", Precision.FP32)
    before = source.sha256()
    convert(path, tmp_path / "m.onnx")
    assert_agrees(path, tmp_path / "m.onnx", atol=2e-5)
    assert source.sha256() == before


def test_what_the_config_leaves_out_is_as_transformers_has_it(bert, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("layer_norm_eps", "hidden_act", "type_vocab_size", "pad_token_id"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    model = convert(folder, tmp_path / "m.onnx")
    assert_agrees(folder, tmp_path / "m.onnx", atol=2e-5)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    epsilons = {a.f for node in norms for a in node.attribute if a.name == "epsilon"}
    assert epsilons == {np.float32(transformers.BertConfig().layer_norm_eps)}
