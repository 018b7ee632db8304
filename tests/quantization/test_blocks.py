"""Weights in blocks: what ONNX Runtime computes with them, and how little they lose."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convkit.errors import UnsupportedError
from convkit.quantization.blocks import Blocks, affine, quantized, symmetric
from convkit.quantization.half_quadratic import half_quadratic

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

Array = np.ndarray[Any, Any]
WEIGHT = np.random.default_rng(0).standard_t(5, (96, 160)).astype(np.float32)
IDS = np.array([[3, 0, 95], [7, 7, 1]])


def noise_db(reference: Array, found: Array) -> float:
    error = np.square(reference.astype(np.float64) - found).sum()
    power = np.square(reference.astype(np.float64)).sum()
    return float(10 * np.log10(power / error)) if error else float("inf")


def saved(path: Path, text: str, **weights: Array) -> Path:
    model = onnx.parser.parse_model(text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def run(path: Path, **feeds: Array) -> Array:
    options = ort.SessionOptions()  # else DequantizeLinear becomes a product of eight bits
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def quantized_file(path: Path, settings: Any) -> tuple[Path, list[str]]:
    from convkit.onnx_typing import load_typed
    from convkit.passes.onnx_half_writing import write_model
    from convkit.quantization.block_graph import quantize_blocks

    model, notes = load_typed(path), list[str]()
    quantize_blocks(model, path.parent, settings, note=notes.append)
    out = path.with_name("q4.onnx")
    write_model(model, out, path.parent, "q4.data")
    onnx.checker.check_model(onnx.load(out), full_check=False)
    return out, notes


def settings(**changes: Any) -> Any:
    from convkit.quantization.block_graph import BlockSettings

    return BlockSettings(**{"accuracy_level": 0, "head_bits": 4, **changes})


ROUNDINGS = {
    "symmetric": (settings(is_symmetric=True), symmetric),
    "affine": (settings(is_symmetric=False), affine),
    "zero points": (settings(scheme="hqq", is_symmetric=False), half_quadratic),
    "eight bits": (settings(head_bits=8), partial(symmetric, bits=8)),
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_the_runtime_computes_with_what_blocks_stand_for(name: str, tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["":20]> g (float[b,s,160] x) => (float[b,s,96] y) '
    source = saved(tmp_path / "m.onnx", text + "{ y = MatMul(x, w) }", w=WEIGHT.T.copy())
    how, rounded = ROUNDINGS[name]
    made, _ = quantized_file(source, how)
    bits = 8 if name == "eight bits" else 4
    expected = quantized(WEIGHT, 32, rounded, bits).floats()
    x = np.random.default_rng(1).standard_normal((2, 3, 160)).astype(np.float32)
    assert noise_db(x @ expected.T, run(made, x=x)) > 100
    assert noise_db(WEIGHT, expected) > (38 if bits == 8 else 17)


def test_a_gemm_keeps_its_factor_and_bias_and_rows_that_no_block_divides(tmp_path: Path) -> None:
    weight, bias = WEIGHT[:, :150].copy(), WEIGHT[:, 0].copy()
    text = '<ir_version: 10, opset_import: ["":20]> g (float[b,150] x) => (float[b,96] y) '
    body = "{ y = Gemm <transB = 1, alpha = 0.5> (x, w, b) }"
    source = saved(tmp_path / "m.onnx", text + body, w=weight, b=bias)
    made, _ = quantized_file(source, settings())
    x = np.random.default_rng(1).standard_normal((5, 150)).astype(np.float32)
    expected = x @ quantized(weight * np.float32(0.5), 32, symmetric).floats().T + bias
    assert noise_db(expected, run(made, x=x)) > 100


@pytest.mark.parametrize("bits", [4, 8])
def test_a_table_that_is_a_head_as_well_is_kept_once(bits: int, tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["":20]> g (int64[b,s] i) => (float[b,s,96] y) '
    body = "{ e = Gather(w, i) t = Transpose<perm=[1,0]>(w) r = Relu(e) y = MatMul(r, t) }"
    source = saved(tmp_path / "m.onnx", text + body, w=WEIGHT)
    made, _ = quantized_file(source, settings(head_bits=bits))
    rounded = quantized(WEIGHT, 32, partial(symmetric, bits=bits), bits).floats()
    looked_up = np.maximum(rounded[IDS], 0)
    assert noise_db(looked_up @ WEIGHT.T, run(made, i=IDS)) > 100


def test_a_table_and_a_head_that_scales_it_have_blocks_of_their_own(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["":20]> g (int64[b] i) => (float[b,96] y) '
    body = "{ e = Gather(w, i) y = Gemm <transB = 1, alpha = 0.25> (e, w) }"
    source = saved(tmp_path / "m.onnx", text + body, w=WEIGHT)
    made, _ = quantized_file(source, settings(head_bits=8))
    looked_up, head = (
        quantized(WEIGHT * np.float32(f), 32, partial(symmetric, bits=8), 8).floats()
        for f in (1, 0.25)
    )
    assert noise_db(looked_up[IDS[0]] @ head.T, run(made, i=IDS[0])) > 100


def test_targets_without_kernels_get_blocks_in_standard_operators(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["":21]> g (float[b,160] x) => (float[b,96] y) '
    source = saved(tmp_path / "m.onnx", text + "{ y = MatMul(x, w) }", w=WEIGHT.T.copy())
    made, _ = quantized_file(source, settings(has_kernels=False))
    model = onnx.load(made)
    assert {node.domain for node in model.graph.node} == {""}
    assert onnx.TensorProto.INT4 in {tensor.data_type for tensor in model.graph.initializer}
    x = np.random.default_rng(1).standard_normal((5, 160)).astype(np.float32)
    expected = x @ quantized(WEIGHT, 32, symmetric).floats().T
    assert noise_db(expected, run(made, x=x)) > 100


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_are_those_of_bitsandbytes(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is missing")
    weight = WEIGHT[:, :128].copy()  # bitsandbytes unpacks rows of whole blocks only
    text = '<ir_version: 10, opset_import: ["":20]> g (float[b,128] x) => (float[b,96] y) '
    source = saved(tmp_path / "m.onnx", text + "{ y = MatMul(x, w) }", w=weight.T.copy())
    made, _ = quantized_file(source, settings(scheme=kind, block=64))
    codes, state = functional.quantize_4bit(torch.from_numpy(weight), None, None, 64, False, kind)
    theirs = functional.dequantize_4bit(codes, state).numpy()
    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    assert noise_db(x @ theirs.T, run(made, x=x)) > 100


@pytest.mark.parametrize("block", [32, 128])
def test_blocks_lose_less_than_those_of_onnx_runtimes_quantizer(block: int, tmp_path: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    weight = np.random.default_rng(2).standard_t(4, (256, 512)).astype(np.float32)
    text = '<ir_version: 10, opset_import: ["":20]> g (float[b,512] x) => (float[b,256] y) '
    source = saved(tmp_path / "m.onnx", text + "{ y = MatMul(x, w) }", w=weight.T.copy())
    identity = np.eye(512, dtype=np.float32)
    for is_symmetric, rounded in ((True, symmetric), (False, affine)):
        peer = MatMulNBitsQuantizer(
            onnx.load(source), block_size=block, is_symmetric=is_symmetric, accuracy_level=0
        )
        peer.process()
        peer.model.save_model_to_file(str(tmp_path / "peer.onnx"))
        theirs = run(tmp_path / "peer.onnx", x=identity).T
        ours = quantized(weight, block, rounded).floats()
        assert noise_db(weight, ours) > noise_db(weight, theirs) + 0.2


@pytest.mark.parametrize("rounded", [symmetric, affine, half_quadratic])
def test_blocks_of_one_value_and_of_zeros_are_exact(rounded: Any) -> None:
    rows = np.repeat(np.array([[0.0], [0.25], [-3.0]], np.float32), 32, axis=1)
    made: Blocks = quantized(rows, 32, rounded)
    assert np.isfinite(made.scales).all()
    np.testing.assert_allclose(made.floats(), rows, atol=1e-6)


def test_values_on_a_grid_with_offsets_are_exact() -> None:
    generator = np.random.default_rng(3)
    levels = generator.integers(0, 16, (8, 4, 32))
    levels[..., 0], levels[..., 1] = 0, 15
    scales, offsets = generator.uniform(0.01, 1, (2, 8, 4, 1))
    rows = (levels * scales - offsets).reshape(8, -1).astype(np.float32)
    np.testing.assert_allclose(quantized(rows, 32, affine).floats(), rows, atol=2e-6)


def test_a_model_without_products_is_refused(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["":20]> g (float[b,4] x) => (float[b,4] y) '
    source = saved(tmp_path / "m.onnx", text + "{ y = Relu(x) }")
    with pytest.raises(UnsupportedError, match="nothing in the model to quantize"):
        quantized_file(source, settings())


def test_a_table_that_is_multiplied_with_a_factor_is_looked_up_without_it(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["":20]> g (int64[s] i) => (float[s,96] y) '
    body = "{ e = Gather(w, i) y = Gemm <transB = 1, alpha = 0.5> (e, w) }"
    source = saved(tmp_path / "m.onnx", text + body, w=WEIGHT)
    made, _ = quantized_file(source, settings())
    rows = quantized(WEIGHT, 32, symmetric).floats()
    halves = quantized(WEIGHT * np.float32(0.5), 32, symmetric).floats()
    assert noise_db(rows[IDS[0]] @ halves.T, run(made, i=IDS[0])) > 100
