from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.artifact import Artifact, Precision
from convkit.checkpoint.folder import open_folder
from convkit.checkpoint.rows import Held, Rows
from convkit.converters.decoder_graph.build import build
from convkit.converters.decoder_graph.families import blueprint
from convkit.errors import ModelError, UnsupportedError, UsageError
from convkit.formats.onnx_true_half import open_true_half
from tests.converters import decoder_models as models
from tests.converters.decoder_models import Session, agreement_db, onnx, text, torch

SAMPLE = ("llama", "gemma3", "qwen2-moe", "phi3-long", "gpt2", "falcon-new", "stablelm-parallel")
NAMES = [
    pytest.param(name, marks=[] if name in SAMPLE else [pytest.mark.slow]) for name in models.MODELS
]
CLOSE_DB = 100.0
"""float32 sums in another order; relative 1e-5."""


@dataclass(frozen=True)
class Saved:
    folder: Path
    network: Any


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    @cache
    def make(name: str) -> Saved:
        folder = tmp_path_factory.mktemp(name) / "model"
        return Saved(folder, models.save(name, folder))

    return make


@pytest.mark.parametrize("name", [n for n in NAMES if n.values[0] != "llama-dynamic"])
def test_logits_are_those_of_transformers_whatever_is_padded(saved, tmp_path, name):
    model = saved(name)
    path = models.convert(model.folder, tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = Session(path)
    rows = [text(1, 1), text(1, 13), text(3, 11), text(3, 11, "right"), text(3, 11, "left")]
    for some in rows:
        wanted = models.expected(model.network, some)[some.is_text]
        got, _ = session.run(some)
        assert agreement_db(wanted, got[some.is_text]) > CLOSE_DB


@pytest.mark.parametrize("name", [n for n in NAMES if n.values[0] not in models.FORGETTING])
def test_a_text_in_pieces_is_continued_as_the_whole(saved, tmp_path, name):
    session = Session(models.convert(saved(name).folder, tmp_path / "m.onnx"))
    for some in (text(1, 9), text(3, 9, "right"), text(3, 9, "left")):
        whole, _ = session.run(some)
        for ends in ([4, 9], list(range(1, 10))):
            got = session.pieces(some, ends)
            assert agreement_db(whole[some.is_text], got[some.is_text]) > CLOSE_DB


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_theta": 9000.0}}),
        ("llama", {"rms_norm_eps": 1e-3}),
        ("llama", {"hidden_act": "gelu"}),
        ("gemma3", {"sliding_window": 6}),
        ("gemma3", {"query_pre_attn_scalar": 23}),
        ("gemma3", {"layer_types": ["full_attention"] * 3}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": False}),
        ("gpt2", {"activation_function": "gelu"}),
        ("qwen2-moe", {"norm_topk_prob": True}),
        ("qwen2-moe", {"num_experts_per_tok": 3}),
        ("stablelm-parallel", {"layer_norm_eps": 1e-3}),
        pytest.param("gemma2", {"attn_logit_softcapping": 2.2}, marks=pytest.mark.slow),
        pytest.param("gemma2", {"final_logit_softcapping": 3.1}, marks=pytest.mark.slow),
        pytest.param("mistral", {"sliding_window": 6}, marks=pytest.mark.slow),
        pytest.param("llama-yarn", {"rope_parameters": None}, marks=pytest.mark.slow),
        pytest.param("llama-3.1", {"rope_parameters": None}, marks=pytest.mark.slow),
    ],
)
def test_a_changed_option_would_show(saved, tmp_path, name, changes):
    model = saved(name)
    session = Session(models.convert(model.folder, tmp_path / "m.onnx", changes))
    some = text(1, 13)
    got, _ = session.run(some)
    assert agreement_db(models.expected(model.network, some), got) < CLOSE_DB - 20


def test_long_texts_turn_with_the_long_factors(saved, tmp_path):
    model = saved("phi3-long")
    session = Session(models.convert(model.folder, tmp_path / "m.onnx"))
    for length in (7, 8, 9, 30):  # it was first trained on 8 tokens
        some = text(2, length)
        got, _ = session.run(some)
        assert agreement_db(models.expected(model.network, some), got) > CLOSE_DB
    some = text(1, 9)
    beginning = some.part(0, 8)
    short, _ = session.run(beginning)
    long, _ = session.run(some)
    assert agreement_db(long[:, :8], short) < CLOSE_DB - 20


def test_frequencies_follow_the_length_of_the_text(tmp_path):
    network = models.save("llama-dynamic", tmp_path / "model")
    session = Session(models.convert(tmp_path / "model", tmp_path / "m.onnx"))
    for length in (5, 9, 20, 30):  # transformers keeps the greatest, so lengths rise
        some = text(1, length)
        got, _ = session.run(some)
        assert agreement_db(models.expected(network, some), got) > CLOSE_DB


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "gemma3",
        "gpt2",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("gemma2", "qwen2-sliding", "phi3-long", "falcon-new", "qwen3-moe")
        ),
    ],
)
def test_fused_attention_agrees_with_transformers(saved, tmp_path, name):
    model = saved(name)
    session = Session(models.convert(model.folder, tmp_path / "m.onnx", attention="fused"))
    for some in (text(1, 1), text(1, 13), text(3, 11, "right"), text(3, 11, "left")):
        wanted = models.expected(model.network, some)[some.is_text]
        got, _ = session.run(some)
        assert agreement_db(wanted, got[some.is_text]) > CLOSE_DB
    if name in models.FORGETTING:
        return
    # Several rows go on token by token; one row in pieces of any length.
    for some, ends in ((text(3, 9, "left"), [6, 7, 8, 9]), (text(1, 9), [4, 8, 9])):
        whole, _ = session.run(some)
        got = session.pieces(some, ends)
        assert agreement_db(whole[some.is_text], got[some.is_text]) > CLOSE_DB


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_older_and_newer_opsets_compute_the_same(saved, tmp_path, name, opset):
    model = saved(name)
    path = models.convert(model.folder, tmp_path / "m.onnx", opset=opset)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", opset)]
    some = text(2, 9, "right")
    got, _ = Session(path).run(some)
    wanted = models.expected(model.network, some)[some.is_text]
    assert agreement_db(wanted, got[some.is_text]) > CLOSE_DB


@pytest.mark.parametrize("attention", ["plain", "fused"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_half_precision_is_as_exact_as_in_pytorch(tmp_path, name, attention):
    network = models.save(name, tmp_path / "model", torch.float16)
    options = {"precision": Precision.FP16, "attention": attention}
    path = models.convert(tmp_path / "model", tmp_path / "m.onnx", **options)
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    some = text(3, 11, "right")
    rounded = models.expected(network, some)[some.is_text]
    exact = models.expected(network.float(), some)[some.is_text]
    got, _ = Session(path).run(some)
    # ONNX Runtime computes halves in float32 on a CPU, so it may only be nearer.
    assert agreement_db(exact, got[some.is_text]) > agreement_db(exact, rounded) - 3


def test_bfloat16_is_as_exact_as_in_pytorch(tmp_path):
    network = models.save("llama", tmp_path / "model", torch.bfloat16)
    path = models.convert(tmp_path / "model", tmp_path / "m.onnx", precision=Precision.BF16)
    some = text(2, 9)
    rounded = models.expected(network, some)
    exact = models.expected(network.float(), some)
    with open_true_half(Artifact(path, "onnx", Precision.BF16)) as runner:
        feeds = {
            "input_ids": some.ids, "attention_mask": some.mask, "position_ids": some.positions,
        }  # fmt: skip
        past = {
            spec.name: np.zeros((2, spec.shape[1], 0, spec.shape[3]), spec.dtype)
            for spec in runner.inputs
            if spec.name.startswith("past")
        }
        got = runner({**feeds, **past})["logits"].astype(np.float32)
    assert agreement_db(exact, got) > agreement_db(exact, rounded) - 3


def test_an_expert_computes_on_the_tokens_that_chose_it_and_no_others(saved, tmp_path):
    model = saved("qwen2-moe")
    path = models.convert(model.folder, tmp_path / "m.onnx")
    proto = onnx.load(path)
    visitors = [f"layer_0/feed_forward/visitors_{number}" for number in range(5)]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in visitors)
    onnx.save(proto, path)
    session = Session(path)
    router = model.network.model.layers[0].mlp.gate
    chosen: list[Any] = []
    hook = router.register_forward_hook(lambda *call: chosen.append(call[2][2]))
    for length in (1, 40):
        some = text(1, length)
        models.expected(model.network, some)
        given = session.runtime.run(visitors, session.feeds(some))
        wanted = np.bincount(chosen[-1].ravel(), minlength=5)
        assert [len(rows) for rows in given] == wanted.tolist()
    hook.remove()
    assert np.bincount(chosen[0].ravel(), minlength=5).tolist().count(0) == 3


def test_experts_stacked_in_one_tensor_are_the_same(saved, tmp_path):
    model = saved("qwen3-moe")
    tensors: dict[str, Rows] = {
        name: Held(tensor.numpy()) for name, tensor in model.network.state_dict().items()
    }
    assert tensors["model.layers.1.mlp.experts.gate_up_proj"].shape == (5, 48, 32)
    config = models.config_of(model.folder)
    built = build(blueprint(config), tensors, config)
    built.write(tmp_path / "m.onnx")
    some = text(1, 13)
    got, _ = Session(tmp_path / "m.onnx").run(some)
    assert agreement_db(models.expected(model.network, some), got) > CLOSE_DB


def test_initializers_are_the_tensors_of_the_checkpoint_bit_by_bit(saved, tmp_path):
    folder = saved("gpt2").folder
    proto = onnx.load(models.convert(folder, tmp_path / "m.onnx"))
    metadata = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert metadata["convkit.config"] == models.config_of(folder)
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    with open_folder(folder) as checkpoint:
        assert {source for source, _ in metadata["convkit.weights"].values()} == set(
            checkpoint.tensors
        )
        for name, (source, how) in metadata["convkit.weights"].items():
            assert how == ""
            wanted = checkpoint.tensors[source].array()
            assert onnx.numpy_helper.to_array(initializers[name]).tobytes() == wanted.tobytes()


def test_a_head_equal_to_the_embedding_is_stored_once_and_another_is_kept(saved, tmp_path):
    model = saved("llama-3.1")
    config = models.config_of(model.folder)
    with open_folder(model.folder) as checkpoint:
        tensors = dict(checkpoint.tensors)
        table = tensors["model.embed_tokens.weight"].array()
        for head, is_tied in ((table, True), (table[::-1].copy(), False)):
            built = build(blueprint(config), {**tensors, "lm_head.weight": Held(head)}, config)
            assert ("lm_head.weight" not in {w.name for w in built.weights}) == is_tied
            built.write(tmp_path / "m.onnx")
            some = text(1, 5)
            got, _ = Session(tmp_path / "m.onnx").run(some)
            plain = models.expected(model.network, some)
            assert agreement_db(plain if is_tied else plain[..., ::-1], got) > CLOSE_DB


def test_names_without_the_first_part_are_found(saved, tmp_path):
    model = saved("gpt2")
    config = models.config_of(model.folder)
    with open_folder(model.folder) as checkpoint:
        bare = {k.removeprefix("transformer."): v for k, v in checkpoint.tensors.items()}
        masks = {"h.0.attn.bias": Held(np.ones((4, 4)))}
        build(blueprint(config), {**bare, **masks}, config).write(tmp_path / "m.onnx")
    some = text(1, 5)
    got, _ = Session(tmp_path / "m.onnx").run(some)
    assert agreement_db(models.expected(model.network, some), got) > CLOSE_DB


def test_tensors_left_over_missing_or_of_another_shape_are_named(saved):
    folder = saved("llama").folder
    config = models.config_of(folder)
    plan = blueprint(config)
    name = "model.layers.1.mlp.up_proj.weight"
    with open_folder(folder) as checkpoint:
        tensors = dict(checkpoint.tensors)
        with pytest.raises(UnsupportedError, match=r"no place in the network: model\.extra\.bias"):
            build(plan, {**tensors, "model.extra.bias": Held(np.ones(3))}, config)
        with pytest.raises(UnsupportedError, match="table"):
            build(plan, tensors, config, others=["model.table"])
        with pytest.raises(ModelError, match=rf"no tensor '{name}'"):
            build(plan, {k: v for k, v in tensors.items() if k != name}, config)
        with pytest.raises(ModelError, match=f"'{name}' does not fit .* 2 x 2, 48 x 32"):
            build(plan, {**tensors, name: Held(np.ones((2, 2)))}, config)


def test_fused_attention_refuses_heads_it_cannot_compute(saved, tmp_path):
    with pytest.raises(UnsupportedError, match="multiple of 8 numbers; these have 12"):
        models.convert(saved("mistral").folder, tmp_path / "m.onnx", attention="fused")


def test_an_unknown_activation_is_refused(saved, tmp_path):
    with pytest.raises(UnsupportedError, match="activation 'relu6' has no expression"):
        models.convert(saved("llama").folder, tmp_path / "m.onnx", {"hidden_act": "relu6"})


def test_unknown_attention_and_old_opsets_are_refused(saved):
    config = models.config_of(saved("llama").folder)
    with pytest.raises(UsageError, match="attention is one of plain, fused, not 'flash'"):
        build(blueprint(config), {}, config, attention="flash")
    with pytest.raises(UsageError, match="opset 18 or newer, not 17"):
        build(blueprint(config), {}, config, opset=17)


class Endless(Rows):
    """A tensor that is made as it is read."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.dtype = shape, "F32"

    def stored(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        return np.full((end - begin, self.row_length), begin % 7, np.float32).view(np.uint8)


@pytest.mark.parametrize("limit", [1 << 20, 1 << 40])
def test_weights_are_written_without_being_held(saved, tmp_path, limit):
    config = {**models.config_of(saved("llama").folder), "vocab_size": 250_000}
    with open_folder(saved("llama").folder) as checkpoint:
        big = {
            "model.embed_tokens.weight": Endless(250_000, 32),
            "lm_head.weight": Endless(250_000, 32),
        }
        tracemalloc.start()
        built = build(blueprint(config), {**checkpoint.tensors, **big}, config)
        built.write(tmp_path / "m.onnx", external_over_bytes=limit)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    files = {file.name for file in tmp_path.iterdir()}
    assert files == ({"m.onnx", "m.onnx.data"} if limit == 1 << 20 else {"m.onnx"})
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > 64_000_000
    assert peak < 20_000_000
    session = Session(tmp_path / "m.onnx")
    assert session.run(text(1, 2))[0].shape == (1, 2, 250_000)
